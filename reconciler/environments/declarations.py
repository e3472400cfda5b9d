"""From conda.yaml, requirements.txt or pyproject.toml to PEP 508 requirements, with a report of what was changed.

Only packages from the package index are taken: no URLs, no paths, no indexes of the ML repo's own choosing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from reconciler.environments.model import Declaration, DependencyReport
from reconciler.errors import BuildError, SpecErrors, Where
from reconciler.spec.yaml_reader import Document, read

CONDA_FILES = ("conda.yaml", "conda.yml", "environment.yaml", "environment.yml")
_NOT_FROM_INDEX = frozenset(
    {"pip", "setuptools", "wheel", "cudatoolkit", "cudnn", "mkl", "libgcc", "libgcc-ng", "libstdcxx-ng", "openblas", "blas",
     "nomkl", "ca-certificates", "openssl", "cpuonly", "pytorch-cuda", "zlib", "conda"}
)  # fmt: skip
_RENAMED = {"pytorch": "torch", "pytorch-cpu": "torch", "tensorflow-gpu": "tensorflow", "opencv": "opencv-python-headless",
            "py-opencv": "opencv-python-headless", "matplotlib-base": "matplotlib", "msgpack-python": "msgpack"}  # fmt: skip
_OURS = {
    "mlflow": "replaced by mlflow-skinny: learners need no tracking server",
    "mlflow-skinny": "given by the runtime",
    "flops-utils": "its names are given by the runtime",
    "flwr": "given by the runtime, in one version for all learners",
    "datasets": "given by the runtime, in the version that FLOps' repos need",
}
_CONDA = re.compile(r"^(?:[\w-]+::)?([A-Za-z0-9][\w.-]*)\s*(.*)$")


class _Reader:
    """Collects requirements, and what is to be said about them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.requirements: list[tuple[str, int]] = []
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.python: str | None = None

    def add(self, text: str, line: int) -> None:
        """One PEP 508 requirement."""
        where = Where(self.file, line)
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise BuildError(
                "FL3001", f"{text[:60]!r} is not a requirement.", cure="Write it as `name==1.2.3`.", where=where
            ) from error
        if requirement.url:
            raise BuildError(
                "FL3002", f"{requirement.name} comes from a URL.", cure="Use a version from the package index.", where=where
            )
        name = canonicalize_name(requirement.name)
        if name in _OURS:
            self.lines.append(f"{text}: {_OURS[name]}")
        elif name in _NOT_FROM_INDEX:
            self.lines.append(f"{text}: not needed in a wheel environment, dropped")
        else:
            self.requirements.append((str(requirement), line))

    def done(self) -> Declaration:
        """What was read."""
        report = DependencyReport(tuple(self.lines), tuple(self.warnings))
        return Declaration(self.file, tuple(self.requirements), self.python, report)


def read_declaration(folder: Path) -> Declaration:
    """The dependencies of an ML repo from the first file that it has. Raises BuildError with file and line."""
    for name in CONDA_FILES:
        if (folder / name).is_file():
            return _conda(folder / name)
    if (folder / "requirements.txt").is_file():
        return _requirements(folder)
    if (folder / "pyproject.toml").is_file():
        return _pyproject(folder / "pyproject.toml")
    raise BuildError("FL3003", "The ML repo declares no dependencies.", cure="Add a conda.yaml or a requirements.txt.")


def _conda(path: Path) -> Declaration:
    reader = _Reader(path.name)
    try:
        document = read(path.read_bytes(), path.name)
    except SpecErrors as errors:
        first = errors.errors[0]
        raise BuildError("FL3004", first.cause, cure=first.cure, where=first.where) from errors
    value = document.value if isinstance(document.value, dict) else {}
    dependencies = value.get("dependencies")
    if not isinstance(dependencies, list):
        raise BuildError(
            "FL3005", "There is no list `dependencies`.", cure="Add it, with `pip:` as its last item.", where=Where(path.name, 1)
        )
    for index, item in enumerate(dependencies):
        line = _line(document, index)
        if isinstance(item, dict) and isinstance(item.get("pip"), list):
            for number, text in enumerate(item["pip"]):
                _pip_line(reader, str(text), document.values[("dependencies", index, "pip", number)][0], path.parent)
        elif isinstance(item, str):
            _conda_line(reader, item, line)
        else:
            raise BuildError(
                "FL3006", "An entry is neither a package nor a pip list.", cure="Correct it.", where=Where(path.name, line)
            )
    return reader.done()


def _line(document: Document, index: int) -> int:
    return document.values.get(("dependencies", index), (0, 0))[0]


def _conda_line(reader: _Reader, text: str, line: int) -> None:
    found = _CONDA.match(text.strip())
    if not found:
        raise BuildError("FL3001", f"{text[:60]!r} is not a package.", cure="Correct it.", where=Where(reader.file, line))
    name, version = found[1].lower(), _conda_version(found[2])
    if name == "python":
        reader.python = _python(version)
        return
    if name in _RENAMED:
        reader.lines.append(f"{text}: called {_RENAMED[name]} in the package index")
        name = _RENAMED[name]
    reader.add(f"{name}{version}", line)


def _conda_version(text: str) -> str:
    """conda's `=1.2`, `==1.2`, `1.2`, `>=1,<2` and `=1.2=build` as PEP 440."""
    text = text.strip()
    if not text:
        return ""
    text = text.split("=py")[0]
    parts = []
    for part in text.split(","):
        clean = part.strip()
        if re.match(r"^=[^=]", clean):
            number = clean[1:].split("=")[0].strip()
            clean = f"=={number}" if number.count(".") >= 2 or number.endswith("*") else f"=={number}.*"
        elif re.match(r"^\d", clean):
            clean = f"=={clean.split('=')[0].split()[0]}"
        parts.append(clean)
    return ",".join(parts)


def _requirements(folder: Path) -> Declaration:
    reader = _Reader("requirements.txt")
    _requirements_file(reader, folder / "requirements.txt", folder, depth=0)
    return reader.done()


def _requirements_file(reader: _Reader, path: Path, folder: Path, depth: int) -> None:
    where = Where(path.name)
    if depth > 5 or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise BuildError("FL3007", "An included file is not in the ML repo.", cure="Correct the -r line.", where=where)
    for number, text in _logical_lines(path.read_text(errors="replace")):
        included = re.match(r"^(?:-r|--requirement)[ =]?(\S+)$", text)
        if included:
            _requirements_file(reader, path.parent / included[1], folder, depth + 1)
        else:
            _pip_line(reader, text, number, folder)


def _pip_line(reader: _Reader, text: str, line: int, folder: Path) -> None:
    included = re.match(r"^(?:-r|--requirement)[ =]?(\S+)$", text)
    if included:
        _requirements_file(reader, folder / included[1], folder, 1)
        return
    if text.startswith("-"):
        option = text.split()[0]
        if option in {"-e", "--editable"}:
            raise BuildError(
                "FL3002",
                "An editable requirement cannot be locked.",
                cure="Use a released version.",
                where=Where(reader.file, line),
            )
        reader.warnings.append(f"line {line}: the option {option} is ignored, the operator chooses the package index")
        return
    reader.add(re.split(r"\s+--hash", text)[0].strip(), line)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    joined, start = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        start = start or number
        clean = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if clean.endswith("\\"):
            joined += clean[:-1] + " "
            continue
        if joined + clean:
            yield start, (joined + clean).strip()
        joined, start = "", 0


def _pyproject(path: Path) -> Declaration:
    reader = _Reader(path.name)
    try:
        project = tomllib.loads(path.read_text(errors="replace")).get("project", {})
    except tomllib.TOMLDecodeError as error:
        raise BuildError("FL3004", f"This is not valid TOML: {error}.", cure="Correct it.", where=Where(path.name)) from error
    for text in project.get("dependencies", []):
        reader.add(str(text), 0)
    if project.get("requires-python"):
        reader.python = _python(str(project["requires-python"]))
    return reader.done()


def _python(version: str) -> str | None:
    found = re.search(r"(\d+\.\d+)", version)
    return found[1] if found else None
