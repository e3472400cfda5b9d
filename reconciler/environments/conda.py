"""conda's environment files as requirements of the package index: names, version forms, and what only conda has."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.utils import canonicalize_name

from reconciler.environments.model import PythonWish
from reconciler.environments.names import CONDA_RENAMED, OURS, only_in_conda
from reconciler.environments.pip_files import read_line
from reconciler.environments.reading import Reader
from reconciler.errors import BuildError, SpecErrors, Where
from reconciler.spec.yaml_reader import Document, read

_PACKAGE = re.compile(r"^(?:[\w./-]+::)?([A-Za-z0-9_][\w.-]*)\s*(.*)$")
_VERSION = re.compile(r"^(==|!=|~=|>=|<=|=|>|<)?\s*([0-9][\w.!+*-]*)(?:\s*=\s*(\S+)|\s+(\S+))?$")
_BRACKETS = re.compile(r"^\[.*?\bversion\s*=\s*['\"]?([^'\"\]]+)['\"]?.*\]$")


def read_conda(reader: Reader, path: Path) -> None:
    """Read conda.yaml. Raises BuildError with the line."""
    document = _document(reader, path)
    value = document.value if isinstance(document.value, dict) else {}
    dependencies = value.get("dependencies")
    if not isinstance(dependencies, list):
        raise BuildError(
            "FL3005", "There is no list `dependencies`.", cure="Add it, with `pip:` as its last item.", where=Where(reader.file, 1)
        )
    for index, item in enumerate(dependencies):
        where = Where(reader.file, document.values.get(("dependencies", index), (0, 0))[0])
        if isinstance(item, dict) and set(item) == {"pip"} and isinstance(item["pip"] or [], list):
            for number, text in enumerate(item["pip"] or []):
                place = Where(reader.file, document.values[("dependencies", index, "pip", number)][0])
                if not isinstance(text, str):
                    raise BuildError("FL3006", "An entry of the pip list is no requirement.", cure="Correct it.", where=place)
                read_line(reader, text.strip(), place, path.parent)
        elif isinstance(item, str):
            _package(reader, item.strip(), where)
        else:
            raise BuildError("FL3006", "An entry is neither a package nor a pip list.", cure="Correct it.", where=where)


def _document(reader: Reader, path: Path) -> Document:
    text = reader.text_of(path, Where(reader.file))
    try:
        return read(text.encode(), reader.file)
    except SpecErrors as errors:
        # FLOps' own documentation shows the pip list outside of `dependencies`, which no YAML parser takes.
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(r"^-\s+pip:\s*$", line) and re.search(r"^\s+-\s", "\n".join(text.splitlines()[: number - 1]), re.MULTILINE):
                raise BuildError(
                    "FL3004",
                    "`- pip:` stands outside of the list `dependencies`.",
                    cure="Indent it as far as the packages above it, and its own entries by two spaces more.",
                    where=Where(reader.file, number),
                ) from errors
        first = errors.errors[0]
        raise BuildError("FL3004", first.cause, cure=first.cure, where=first.where) from errors


def _package(reader: Reader, text: str, where: Where) -> None:
    found = _PACKAGE.match(text)
    if not found:
        raise BuildError("FL3001", f"{text[:60]!r} is not a package.", cure="Write it as `name=1.2.3`.", where=where)
    name = canonicalize_name(found[1]) if not found[1].startswith("_") else found[1].lower()
    if name not in {"python", *OURS} and only_in_conda(name):
        reader.lines.append(f"{text}: dropped, a library of conda's own; wheels bring what they need")
        return
    version, build = _version(found[2].strip(), text, where)
    if name == "python":
        reader.python = python_wish(version, text)
        return
    if re.search(r"cuda|gpu", f"{name} {build}"):
        reader.warnings.append(f"{text}: learners and the server use the CPU; the GPU build is not installed")
    if name in CONDA_RENAMED:
        reader.lines.append(f"{text}: called {CONDA_RENAMED[name]} in the package index")
        name = CONDA_RENAMED[name]
    reader.add(f"{name}{version}", where)


def python_wish(specifier: str, text: str) -> PythonWish | None:
    """A specifier of Python versions as a wish; exact versions ask for their minor version (3.10.14 is met by any 3.10)."""
    if not specifier:
        return None
    return PythonWish(text, re.sub(r"==\s*(\d+\.\d+)(\.[\d*]+)?", r"==\1.*", specifier))


def _version(text: str, entry: str, where: Where) -> tuple[str, str]:
    """conda's `=1.2`, `==1.2`, ` 1.2`, `>=1,<2`, `=1.2=build`, `[version='>=1']` as PEP 440, and the build."""
    brackets = _BRACKETS.match(text)
    parts, build = [], ""
    for part in (brackets[1] if brackets else text).split(","):
        if part.strip() in {"", "*", "=*", "==*"}:
            continue
        found = _VERSION.match(part.strip())
        if not found:
            raise BuildError(
                "FL3001",
                f"The version of {entry[:60]!r} cannot be translated for the package index.",
                cure="Write one version or range: `name=1.2.3` or `name>=1.2,<2`.",
                where=where,
            )
        sign, number = found[1] or "==", found[2]
        build = found[3] or found[4] or build
        if sign == "=":
            short = number.count(".") < 2 and not number.endswith("*") and not (found[3] or found[4])
            sign, number = "==", f"{number}.*" if short else number
        elif sign not in {"==", "!="}:
            number = number.removesuffix(".*")
        parts.append(f"{sign}{number}")
    return ",".join(parts), build
