"""Collects what a dependency file asks for, whatever its format, and what is to be said about that.

Only packages from the package index are taken: no URLs, no paths, no indexes of the ML repo's own choosing.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from reconciler.environments.model import Declaration, DependencyReport, PythonWish, Wanted
from reconciler.environments.names import INSTALLERS, OURS, RENAMED
from reconciler.errors import BuildError, Where

MAX_BYTES = 1_000_000
_ELSEWHERE = re.compile(
    r"^(?:[a-z+]+://|(?:git|hg|svn|bzr)\+|file:|\.{0,2}/|\.{1,2}$|~/|[A-Za-z]:\\)|\.(?:whl|zip|tar\.gz)$", re.IGNORECASE
)


class Reader:
    """The requirements of one declaration; `file` is the file that it begins with."""

    def __init__(self, folder: Path, file: str) -> None:
        self.folder = folder.resolve()
        self.file = file
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.python: PythonWish | None = None
        self._requirements: list[Wanted] = []
        self._constraints: list[Wanted] = []

    def add(self, text: str, where: Where, *, hashes: Sequence[str] = (), constraint: bool = False) -> None:
        """One PEP 508 requirement. Raises BuildError for what is none, and for what does not come from the package index."""
        if _ELSEWHERE.search(text.split(";")[0].strip()):
            raise elsewhere(text, where)
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            single = re.match(r"^[\w.-]+\s*=\s*[\d.]+$", text)
            cure = "pip wants two equal signs: `name==1.2.3`." if single else "Write it as `name==1.2.3`."
            raise BuildError("FL3001", f"{text[:60]!r} is not a requirement.", cure=cure, where=where) from error
        if requirement.url:
            raise elsewhere(text, where)
        name = canonicalize_name(requirement.name)
        if name in OURS:
            if not constraint:
                self.lines.append(f"{text}: {OURS[name]}")
        elif name in INSTALLERS:
            self.lines.append(f"{text}: dropped, the environment is installed from outside")
        else:
            if name in RENAMED:
                self.lines.append(f"{text}: called {RENAMED[name]} in the package index")
                requirement.name = RENAMED[name]
            (self._constraints if constraint else self._requirements).append(Wanted(str(requirement), where, tuple(hashes)))

    def text_of(self, path: Path, asked_at: Where) -> str:
        """A text file of the ML repo: within its folder, not too large, in UTF-8 or, as Windows shells write it, in UTF-16."""
        if not path.resolve().is_relative_to(self.folder) or not path.is_file():
            raise BuildError(
                "FL3007",
                f"The included file {path.name!r} is not in the ML repo.",
                cure="Correct the line, or add the file.",
                where=asked_at,
            )
        data = path.read_bytes()
        name = self.name_of(path)
        if len(data) > MAX_BYTES:
            raise BuildError(
                "FL3004", f"It has more than {MAX_BYTES:,} bytes.", cure="Take out what it needs not.", where=Where(name)
            )
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            return data.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise BuildError("FL3004", "It is not UTF-8.", cure="Save it as UTF-8.", where=Where(name, line)) from error

    def name_of(self, path: Path) -> str:
        """The path of a file within the ML repo."""
        return path.resolve().relative_to(self.folder).as_posix()

    def done(self) -> Declaration:
        """What was read."""
        report = DependencyReport(tuple(self.lines), tuple(self.warnings))
        return Declaration(self.file, tuple(self._requirements), tuple(self._constraints), self.python, report)


def elsewhere(text: str, where: Where) -> BuildError:
    """The error for a requirement that is a URL, a path or a version-control address."""
    shown = re.sub(r"//[^/@\s]+@", "//…@", text)[:80]
    return BuildError(
        "FL3002",
        f"{shown!r} does not come from the package index.",
        cure="Use a released version, `name==1.2.3`; code of your own belongs into the ML repo.",
        where=where,
    )
