"""requirements.txt as pip reads it: continued lines, comments, includes within the ML repo, hashes, options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from reconciler.environments.reading import Reader, elsewhere
from reconciler.errors import BuildError, Where

_INCLUDE = re.compile(r"^(-r|--requirement|-c|--constraint)[ =]*(\S.*)$")
_HASH = re.compile(r"\s--hash[= ](\S+)")
_INDEX_OPTIONS = {"-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--no-index", "--trusted-host"}


def read_file(reader: Reader, path: Path, asked_at: Where, *, constraint: bool = False, within: tuple[Path, ...] = ()) -> None:
    """Read a requirements file and those that it includes. Raises BuildError with the file and the line."""
    if path.resolve() in within:
        raise BuildError("FL3007", f"{path.name} includes itself.", cure="Remove one of the -r lines.", where=asked_at)
    for number, text in _logical_lines(reader.text_of(path, asked_at)):
        where = Where(reader.name_of(path), number)
        read_line(reader, text, where, path.parent, constraint=constraint, within=(*within, path.resolve()))


def read_line(
    reader: Reader, text: str, where: Where, folder: Path, *, constraint: bool = False, within: tuple[Path, ...] = ()
) -> None:
    """One logical line of a requirements file, or one entry of the pip list of a conda file."""
    included = _INCLUDE.match(text)
    if included:
        only_limits = constraint or included[1] in {"-c", "--constraint"}
        read_file(reader, folder / included[2].strip(), where, constraint=only_limits, within=within)
        return
    if text.startswith("-"):
        option = re.split(r"[\s=]", text)[0]
        if option in {"-e", "--editable"}:
            raise elsewhere(text, where)
        why = "the operator chooses the package index" if option in _INDEX_OPTIONS else "only wheels are installed, with hashes"
        reader.warnings.append(f"{where}: the option {option} is ignored, {why}")
        return
    bare = re.split(r"\s--(?:hash|config-settings?|global-option)\b", text)[0].strip()
    reader.add(bare, where, hashes=_HASH.findall(text), constraint=constraint)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    joined, start = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        start = start or number
        clean = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if clean.endswith("\\"):
            joined += clean[:-1] + " "
            continue
        if (joined + clean).strip():
            yield start, (joined + clean).strip()
        joined, start = "", 0
    if joined.strip():
        yield start, joined.strip()
