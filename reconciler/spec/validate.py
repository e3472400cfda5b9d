"""`flops validate`: every file of a GitOps repo, each alone and all together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson

from reconciler.errors import FlopsError, SpecError, SpecErrors, Where
from reconciler.spec.loader import load_mock_data, load_operator_config, load_sla
from reconciler.spec.models import NAME, ProjectSLA

SLA_NAMES = ("sla.yaml", "sla.yml", "sla.json")
MOCK_NAMES = ("mock_data.yaml", "mock_data.yml", "mock_data.json")
OPERATOR_NAME = "flops.yaml"


def validate_paths(paths: Sequence[Path], *, root: Path) -> tuple[list[FlopsError], int]:
    """All errors of these files and folders (of the whole repo when none is given), and how many files were read."""
    files = sorted(set(_expand(paths, root)))
    errors: list[FlopsError] = []
    slas: dict[str, tuple[ProjectSLA, str]] = {}
    for file in files:
        shown = str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
        try:
            sla = _validate(file, shown)
        except SpecErrors as found:
            errors += found.errors
            continue
        if sla is not None and file.name in SLA_NAMES:
            slas[file.parent.name] = (sla, shown)
    errors += _names(files, root)
    errors += dependency_errors({name: tuple(sla.depends_on) for name, (sla, _) in slas.items()}, slas)
    return errors, len(files)


def dependency_errors(depends: dict[str, tuple[str, ...]], slas: dict[str, tuple[ProjectSLA, str]]) -> Iterable[SpecError]:
    """Dependencies that do not exist, and circles."""
    for name, needed in sorted(depends.items()):
        where = Where(slas[name][1])
        for other in needed:
            if other not in depends:
                yield SpecError("FL1031", f"depends_on names {other!r}, which is no project.", cure="Correct it.", where=where)
        if _reaches(name, name, depends):
            yield SpecError("FL1032", f"{name} depends on itself in a circle.", cure="Break the circle.", where=where)


def format_errors(errors: Sequence[FlopsError], form: str, *, checked: int) -> str:
    """The errors as text, JSON or GitHub's annotations."""
    if form == "json":
        content = {"checked": checked, "errors": [error.to_dict() for error in errors]}
        return orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()
    if form == "github":
        return "\n".join(_annotation(error) for error in errors)
    lines = [str(error) for error in errors]
    lines.append(f"{checked} files, {len(errors)} errors" if errors else f"{checked} files are valid")
    return "\n".join(lines)


def _validate(file: Path, shown: str) -> ProjectSLA | None:
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise SpecErrors([SpecError("FL1033", f"{reason}.", cure="Check the path.", where=Where(shown))]) from error
    if file.name in MOCK_NAMES:
        load_mock_data(data, shown)
    elif file.name == OPERATOR_NAME:
        load_operator_config(data, shown)
    else:
        return load_sla(data, shown)
    return None


def _expand(paths: Sequence[Path], root: Path) -> Iterable[Path]:
    for path in paths or [root]:
        if not path.is_dir():
            yield path
            continue
        for folder in (path, *sorted(path.glob("projects/*")), *sorted(path.glob("*"))):
            if folder.is_dir():
                yield from (folder / name for name in (*SLA_NAMES, *MOCK_NAMES) if (folder / name).is_file())
        if (path / OPERATOR_NAME).is_file():
            yield path / OPERATOR_NAME


def _names(files: Sequence[Path], root: Path) -> Iterable[SpecError]:
    folders: dict[Path, list[str]] = {}
    for file in files:
        if file.name in SLA_NAMES:
            folders.setdefault(file.parent, []).append(file.name)
    for folder, names in sorted(folders.items()):
        shown = str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
        if len(names) > 1:
            cause = f"The project has {len(names)} SLAs: {', '.join(names)}."
            yield SpecError("FL1034", cause, cure="Keep one.", where=Where(shown))
        if folder.parent.name == "projects" and not re.match(NAME, folder.name):
            cause = f"{folder.name!r} is not a project name."
            yield SpecError("FL1035", cause, cure="Use a-z, 0-9 and -, at most 63.", where=Where(shown))


def _reaches(start: str, target: str, depends: dict[str, tuple[str, ...]]) -> bool:
    seen: set[str] = set()
    todo = list(depends.get(start, ()))
    while todo:
        name = todo.pop()
        if name == target:
            return True
        if name not in seen:
            seen.add(name)
            todo += depends.get(name, ())
    return False


def _annotation(error: FlopsError) -> str:
    where = error.where or Where("")
    properties = {"file": where.path, "line": where.line or 1, "col": where.column or 1, "title": error.code}
    head = ",".join(f"{key}={_escape(str(value), ',:')}" for key, value in properties.items())
    return f"::error {head}::{_escape(f'{error.cause} {error.cure}')}"


def _escape(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
