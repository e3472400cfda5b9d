"""From conda.yaml, requirements.txt or pyproject.toml to PEP 508 requirements, with a report of what was changed."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from reconciler.environments.conda import python_wish, read_conda
from reconciler.environments.model import Declaration
from reconciler.environments.pip_files import read_file
from reconciler.environments.reading import Reader
from reconciler.errors import BuildError, Where

CONDA_FILES = ("conda.yaml", "conda.yml", "environment.yaml", "environment.yml")
FILES = (*CONDA_FILES, "requirements.txt", "pyproject.toml")


def read_declaration(folder: Path) -> Declaration:
    """The dependencies of an ML repo from the first file that it has. Raises BuildError with file and line."""
    present = [name for name in FILES if (folder / name).is_file()]
    # A pyproject.toml may be there for the sake of linters only.
    if not present or (present == ["pyproject.toml"] and not _declares(folder / "pyproject.toml")):
        raise BuildError("FL3003", "The ML repo declares no dependencies.", cure="Add a conda.yaml or a requirements.txt.")
    first = present[0]
    reader = Reader(folder, first)
    if first in CONDA_FILES:
        read_conda(reader, folder / first)
    elif first == "requirements.txt":
        read_file(reader, folder / first, Where(first))
    else:
        _pyproject(reader, folder / first)
    others = [name for name in present[1:] if name != "pyproject.toml"]
    if others and first in CONDA_FILES:
        reader.lines.append(f"{', '.join(others)}: not read beside {first}, except where that includes it")
    return reader.done()


def _declares(path: Path) -> bool:
    text = path.read_text(errors="replace")
    return "[project" in text or "[tool.poetry" in text or "dependencies" in text


def _pyproject(reader: Reader, path: Path) -> None:
    text = reader.text_of(path, Where(reader.file))
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BuildError("FL3004", f"This is not valid TOML: {error}.", cure="Correct it.", where=Where(reader.file)) from error
    project = content.get("project")
    dependencies = project.get("dependencies", []) if isinstance(project, dict) else None
    if not isinstance(project, dict) or not isinstance(dependencies, list):
        cure = "Poetry's own table is not read: write them as `[project] dependencies`." if "poetry" in text else "Add it."
        raise BuildError("FL3005", "There is no list `dependencies` in `[project]`.", cure=cure, where=Where(reader.file))
    for item in dependencies:
        reader.add(str(item), Where(reader.file, _line_of(text, str(item))))
    wish = project.get("requires-python")
    if isinstance(wish, str) and wish:
        try:
            reader.python = python_wish(str(SpecifierSet(wish)), f"requires-python {wish}")
        except InvalidSpecifier as error:
            where = Where(reader.file, _line_of(text, wish))
            raise BuildError(
                "FL3001", f"{wish!r} is no range of Python versions.", cure='Write it as ">=3.10".', where=where
            ) from error


def _line_of(text: str, wanted: str) -> int:
    """The first line with that text in quotes; 0 if it is written with escapes."""
    quoted = (f'"{wanted}"', f"'{wanted}'")
    return next((number for number, line in enumerate(text.splitlines(), 1) if any(form in line for form in quoted)), 0)
