"""`flops init`: a fresh GitOps repo with the layout of ours.

The templates are the one source of the example projects; the copies at the top of our own repo are compared with them by
`make check`. Schemas are made from the models, never copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reconciler.errors import ControllerError
from reconciler.spec.schemas import files as schema_files

TEMPLATES = Path(__file__).parent / "templates"
_CUSTOMER = "customerID: demo"
_PROJECTS = "projects/"
FIRST = ("mnist-classic", "mnist-hierarchical")
"""The examples that a fresh repo starts with: those whose libraries install everywhere in seconds."""
_STANDS_ON = {"mnist-hierarchical": "mnist-classic"}
"""An example that has its ML repo from another one."""


def examples() -> list[str]:
    """The names of the example projects."""
    return sorted(path.name for path in (TEMPLATES / _PROJECTS).iterdir() if (path / "sla.yaml").is_file())


def init_repository(directory: Path, *, customer: str = "demo", force: bool = False, projects: Sequence[str] = FIRST) -> list[Path]:
    """Write the files of a fresh GitOps repo with these examples; their paths relative to it.

    Raises ControllerError for a full folder, a file, and an example that there is not.
    """
    for unknown in sorted(set(projects) - set(examples())):
        raise ControllerError("FL9103", f"There is no example {unknown!r}.", cure=f"There are: {', '.join(examples())}.")
    if directory.exists() and not directory.is_dir():
        raise ControllerError("FL9102", f"{directory} is a file.", cure="Choose another name.")
    if directory.exists() and any(item.name != ".git" for item in directory.iterdir()) and not force:
        raise ControllerError("FL9101", f"{directory} is not empty.", cure="Choose another folder, or say --force.")
    chosen = {*projects, *(_STANDS_ON[name] for name in projects if name in _STANDS_ON)}
    wanted = tuple(f"{_PROJECTS}{name}/" for name in chosen)
    contents = {
        name: content for name, content in template_files().items() if not name.startswith(_PROJECTS) or name.startswith(wanted)
    }
    written = []
    for name, content in sorted(contents.items()):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.replace(_CUSTOMER.encode(), f"customerID: {customer}".encode()))
        written.append(Path(name))
    return written


def template_files() -> dict[str, bytes]:
    """Every file of a fresh GitOps repo by its path."""
    found = {
        str(path.relative_to(TEMPLATES)): path.read_bytes()
        for path in sorted(TEMPLATES.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    # A package may not ship a file that is called .gitignore: build tools obey it.
    found[".gitignore"] = found.pop("gitignore")
    return found | {f"schemas/{name}": content for name, content in schema_files().items()}


SHARED = ("projects/", "schemas/", ".vscode/", "build_plans/", "ci/", "flops.yaml")
"""What our own repo, itself a GitOps repo, has in common with a fresh one."""


def main(arguments: list[str]) -> int:
    """Copy the shared templates to the top of our repo, or compare them with `--check`."""
    root = Path(__file__).parents[2]
    shared = {name: content for name, content in template_files().items() if name.startswith(SHARED)}
    stale = [name for name, content in shared.items() if not _same(root / name, content)]
    if "--check" in arguments:
        for name in stale:
            print(f"{name} differs from its template: run `make sync`")
        return 1 if stale else 0
    for name in stale:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(shared[name])
    return 0


def _same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
