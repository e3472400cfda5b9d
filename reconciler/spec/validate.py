"""`flops validate`: every file of a GitOps repo, each alone and all together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import orjson

from reconciler.errors import FlopsError, SpecError, SpecErrors, Where
from reconciler.spec.base import NAME
from reconciler.spec.build_plan import KINDS
from reconciler.spec.dependencies import circles, missing
from reconciler.spec.loader import load_build_plan, load_document, load_mock_data, load_node, load_operator_config
from reconciler.spec.models import ProjectSLA
from reconciler.spec.yaml_reader import MAX_BYTES, Document, read

SLA_NAMES = ("sla.yaml", "sla.yml", "sla.json")
MOCK_NAMES = ("mock_data.yaml", "mock_data.yml", "mock_data.json")
OPERATOR_NAME = "flops.yaml"
PLANS = "build_plans"
NODES = "nodes"


@dataclass(frozen=True, slots=True)
class _Project:
    """An SLA that is valid in itself, with what is needed to point at its dependencies."""

    file: Path
    shown: str
    depends_on: tuple[str, ...]
    document: Document

    def where(self, index: int) -> Where:
        place = self.document.values.get(("depends_on", index)) or self.document.values.get(("depends_on",), (1, 1))
        return Where(self.shown, *place)


def validate_paths(paths: Sequence[Path], *, root: Path) -> tuple[list[FlopsError], int]:
    """All errors of these files and folders (of the whole repo when none is given), and how many files were read.

    A folder is searched below; what starts with a dot, and symbolic links, are left out. Dependencies are looked for beside the
    project, also when they were not asked for.
    """
    files = sorted(set(_expand(paths, root)))
    errors: list[FlopsError] = []
    projects: list[_Project] = []
    for file in files:
        try:
            found = _validate(file, _shown(file, root))
        except SpecErrors as refused:
            errors += refused.errors
            continue
        if found:
            projects.append(found)
    errors += _names(files, root)
    errors += _dependencies(projects, root)
    return errors, len(files)


def _dependencies(asked: Sequence[_Project], root: Path) -> Iterable[SpecError]:
    folders: dict[Path, dict[str, _Project]] = {}
    for project in asked:
        folders.setdefault(project.file.parent.parent, {})[project.file.parent.name] = project
    for folder, projects in sorted(folders.items()):
        if not any(project.depends_on for project in projects.values()):
            continue
        # A project whose SLA is wrong is told about by its own errors: it does exist.
        known = {name: file for file in _slas(folder) if (name := file.parent.name)}
        depends = {name: project.depends_on for name, project in projects.items()}
        depends |= {name: _depends_on(file, root) for name, file in known.items() if name not in depends}
        for name, index, other in missing(depends, known):
            if name in projects:
                close = get_close_matches(other, known, n=1)
                cure = f"Did you mean {close[0]!r}?" if close else "Correct it, or add that project."
                yield SpecError(
                    "FL1031", f"depends_on names {other!r}, which is no project.", cure=cure, where=projects[name].where(index)
                )
        for circle in circles(depends):
            name = next((name for name in circle if name in projects), "")
            if name:
                following = circle[circle.index(name) + 1]
                where = projects[name].where(depends[name].index(following))
                cause = f"Projects wait for each other: {' → '.join(circle)}."
                yield SpecError("FL1032", cause, cure="Take one of them out of depends_on.", where=where)


def _depends_on(file: Path, root: Path) -> tuple[str, ...]:
    try:
        found = _validate(file, _shown(file, root))
    except SpecErrors:
        return ()
    return found.depends_on if found else ()


def format_errors(errors: Sequence[FlopsError], form: str, *, checked: int) -> str:
    """The errors as text, JSON or GitHub's annotations."""
    if form == "json":
        content = {"checked": checked, "errors": [error.to_dict() for error in errors]}
        return orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()
    if form == "github":
        return "\n".join(_annotation(error) for error in errors)
    lines = [_printable(str(error)) for error in errors]
    lines.append(f"{checked} files, {len(errors)} errors" if errors else f"{checked} files are valid")
    return "\n".join(lines)


def _validate(file: Path, shown: str) -> _Project | None:
    data = _read(file, shown)
    if file.name in MOCK_NAMES:
        load_mock_data(data, shown)
    elif file.name == OPERATOR_NAME:
        load_operator_config(data, shown)
    elif file.parent.name == PLANS:
        if file.stem not in KINDS:
            cause = f"{file.name!r} is the plan of no kind of image."
            raise SpecErrors([SpecError("FL1044", cause, cure=f"Call it {', '.join(KINDS)} (.yaml).", where=Where(shown))])
        load_build_plan(data, shown)
    elif file.parent.name == NODES:
        load_node(data, shown)
    else:
        document = read(data, shown)
        sla = load_document(ProjectSLA, document, shown)
        if file.name in SLA_NAMES:
            return _Project(file, shown, tuple(sla.depends_on), document)
    return None


def _read(file: Path, shown: str) -> bytes:
    """At most a little more than what is allowed, and from plain files only: a link may lead to a secret, a pipe never ends."""
    try:
        if file.is_symlink() or (file.exists() and not file.is_file()):
            cause = "It is a symbolic link or a special file."
            raise SpecErrors([SpecError("FL1033", cause, cure="Put the file itself there.", where=Where(shown))])
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "It cannot be read"
        raise SpecErrors([SpecError("FL1033", f"{reason}.", cure="Check the path.", where=Where(shown))]) from error


def _expand(paths: Sequence[Path], root: Path) -> Iterable[Path]:
    if not paths:
        for folder in sorted(path for path in root.glob("projects/*") if path.is_dir() and not path.is_symlink()):
            yield from _declaring(folder)
        yield from _plans(root)
        yield from _nodes(root / NODES)
        if _there(root / OPERATOR_NAME):
            yield root / OPERATOR_NAME
        return
    for path in paths:
        if not path.is_dir() or path.is_symlink():
            yield path
            continue
        for found, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from _declaring(Path(found))
            if Path(found).name == NODES:
                yield from _nodes(Path(found))
            if OPERATOR_NAME in names:
                yield Path(found) / OPERATOR_NAME


def _declaring(folder: Path) -> Iterable[Path]:
    yield from (folder / name for name in (*SLA_NAMES, *MOCK_NAMES) if _there(folder / name))
    yield from _plans(folder.parent if folder.name == PLANS else folder)


def _plans(folder: Path) -> Iterable[Path]:
    """The build plans of the repo or of a project; other files, such as a README, are nobody's business."""
    return (path for path in sorted((folder / PLANS).glob("*")) if path.suffix in {".yaml", ".yml", ".json"})


def _nodes(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.glob("*")) if path.suffix in (".yaml", ".yml", ".json"))


def _slas(folder: Path) -> Iterable[Path]:
    return (path for name in SLA_NAMES for path in sorted(folder.glob(f"*/{name}")))


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _names(files: Sequence[Path], root: Path) -> Iterable[SpecError]:
    folders: dict[Path, list[str]] = {}
    for file in files:
        if file.name in SLA_NAMES:
            folders.setdefault(file.parent, []).append(file.name)
    for folder, names in sorted(folders.items()):
        shown = _shown(folder, root)
        if len(names) > 1:
            cause = f"The project has {len(names)} SLAs: {', '.join(names)}."
            yield SpecError("FL1034", cause, cure="Keep one.", where=Where(shown))
        if folder.parent.name == "projects" and not re.fullmatch(NAME, folder.name):
            cause = f"{folder.name!r} is not a project name."
            yield SpecError("FL1035", cause, cure="Use a-z, 0-9 and -, at most 63.", where=Where(shown))


def _annotation(error: FlopsError) -> str:
    where = error.where or Where("")
    properties = {"file": where.path, "line": where.line or 1, "col": where.column or 1, "title": error.code}
    head = ",".join(f"{key}={_escape(str(value), ',:')}" for key, value in properties.items())
    return f"::error {head}::{_escape(f'{error.cause} {error.cure}')}"


def _printable(text: str) -> str:
    """Without what a file's name could do to a terminal."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def _escape(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
