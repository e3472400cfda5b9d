"""Locks and environments on disk, shared by all projects of a user.

A lock is made once per declaration: the same declaration gives the same versions until it changes, like a moving ref that is
resolved once. An environment is made once per lock; it is complete or it is not there. Nothing of the ML repo is run here:
only wheels are installed, and uv runs in an empty folder, so that no configuration of the ML repo is read.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
from filelock import FileLock
from packaging.utils import canonicalize_name
from packaging.version import Version

from reconciler.digests import digest_of
from reconciler.environments.declarations import read_declaration
from reconciler.environments.interpreters import choose, interpreters
from reconciler.environments.model import Declaration, DependencyReport, Environment, Lock, Wanted
from reconciler.environments.torch_builds import for_cpu, installing
from reconciler.environments.uv_command import UvFailed, run_uv
from reconciler.errors import BuildError, Where
from reconciler.refusals import disk_is_full

RUNTIME: tuple[str, ...] = (
    "flwr>=1.20",  # the learners speak Flower's messages
    "datasets>=3.6,<4",  # 4 and later break `dataset["image"].reshape` of FLOps' repos
    "mlflow-skinny>=3",  # saves the model in MLflow's form
    "pandas",
    "pillow",
    "numpy",
    "cloudpickle",
    "uvicorn",  # the inference server
    "starlette",
    "orjson",
)
HELPERS = frozenset({"cloudpickle", "packaging", "psutil", "pyyaml", "protobuf", "requests", "typing-extensions"})
"""Packages that exported conda files pin although the model does not care; they may be newer when the runtime needs it."""
FLAVORS = {"sklearn": ("scikit-learn",), "pytorch": ("torch",), "keras": ("keras>=3",)}
TENSORFLOW = frozenset({"tensorflow", "tensorflow-cpu"})
KERAS_BACKENDS = TENSORFLOW | {"torch", "jax"}
DEFAULT_BACKEND = "jax"
"""Of those that Keras 3 runs on the one whose wheels in the package index are small and for the CPU."""

Tell = Callable[[str], None]


class EnvironmentStore:
    """Locks below `root/locks`, environments below `root/envs`."""

    def __init__(self, root: Path, *, runtime: Sequence[str] = RUNTIME) -> None:
        self._root = root.absolute()
        self._runtime = tuple(runtime)
        self._known: dict[str, Lock] = {}

    def lock(self, repo_dir: Path, *, flavor: str, on_line: Tell | None = None) -> Lock:
        """The lock of an ML repo's dependencies. Raises BuildError with the file and line that is to blame."""
        declaration = read_declaration(repo_dir)
        asked = [[(item.text, item.hashes) for item in found] for found in (declaration.requirements, declaration.constraints)]
        backend = _backend(declaration, flavor)
        key = digest_of([asked, declaration.python and declaration.python.specifier, flavor, self._runtime, *backend])[:32]
        path = self._root / "locks" / f"{key}.json"
        if key not in self._known:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                self._known[key] = _read_lock(path) or self._make_lock(declaration, flavor, path, on_line or _silent)
        return self._known[key]

    def ensure(self, lock: Lock, *, on_line: Tell | None = None) -> Environment:
        """The environment of a lock, built unless it is there."""
        started = time.monotonic()
        path = self._root / "envs" / lock.digest[:32]
        if self._complete(path):
            return Environment(lock.digest, path, path / "bin" / "python", built=False, seconds=time.monotonic() - started)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            built = not self._complete(path)
            if built:
                self._build(lock, path, on_line or _silent)
        return Environment(lock.digest, path, path / "bin" / "python", built=built, seconds=time.monotonic() - started)

    def _make_lock(self, declaration: Declaration, flavor: str, path: Path, tell: Tell) -> Lock:
        tell(f"locking {declaration.file} …")
        python, warnings = choose(declaration.python, interpreters())
        wanted = [item.text for item in declaration.requirements]
        limits = [item.text for item in declaration.constraints]
        named = {_name(text) for text in wanted}
        # An older TensorFlow brings the Keras that it was made with.
        of_flavor = () if flavor == "keras" and named & TENSORFLOW else FLAVORS.get(flavor, ())
        wanted += [item for item in (*self._runtime, *of_flavor, *_backend(declaration, flavor)) if _name(item) not in named]
        version = python.version
        try:
            text = _compile(wanted, limits, version)
        except UvFailed as failed:
            loosened, changes = _loosen(wanted)
            try:
                if not changes:
                    raise failed
                text, wanted = _compile(loosened, limits, version), loosened
            except UvFailed:
                raise _lock_error(declaration, failed.said) from failed
            warnings += changes

        def compile_with(arguments: Sequence[str], more: Sequence[str]) -> str:
            return _compile(wanted, [*limits, *more], version, arguments)

        if limit := _undeclared(text):
            limits.append(limit)
            text = _compile(wanted, limits, version)
        text = for_cpu(text, compile_with, python=version, file=declaration.file)
        for item in (*declaration.requirements, *declaration.constraints):
            text = _only_hashes(text, item)
        report = DependencyReport(declaration.report.lines, (*declaration.report.warnings, *warnings))
        lock = Lock(digest_of([version, text]), version, text, report)
        content = {
            "digest": lock.digest,
            "python": version,
            "requirements": text,
            "lines": report.lines,
            "warnings": report.warnings,
        }
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(orjson.dumps(content))
        temporary.replace(path)
        return lock

    def _build(self, lock: Lock, path: Path, tell: Tell) -> None:
        for remains in path.parent.glob(f".{path.name}-*"):
            shutil.rmtree(remains, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        tell(f"building the environment {lock.digest[:12]} for Python {lock.python} …")
        try:
            python = next((item for item in interpreters() if item.version == lock.python), None)
            if python is None:
                raise _interpreter_gone(lock.python)
            requirements = folder / "requirements.txt"
            requirements.write_text(lock.requirements)
            run_uv(["venv", "--quiet", "--relocatable", "--python", python.path, str(folder / "venv")])
            run_uv(
                ["pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode", "--only-binary", ":all:",
                 *installing(lock.requirements), "--python", str(folder / "venv" / "bin" / "python"), str(requirements)],
            )  # fmt: skip
            (folder / "venv" / ".complete").write_text(lock.digest)
            (folder / "venv").replace(path)
        except UvFailed as failed:
            raise _build_error(failed.said) from failed
        except OSError as error:
            if disk_is_full(error):
                raise _disk_full() from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _complete(path: Path) -> bool:
        """Complete, and its interpreter still there: the one that it was made from may have been removed."""
        return (path / ".complete").is_file() and (path / "bin" / "python").exists()


def _silent(_line: str) -> None:
    return None


def _loosen(wanted: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The requirements with the pins of helper packages as lower bounds, and what is to be said about that."""
    found, changes = [], []
    for text in wanted:
        name, _, version = text.partition("==")
        if version and name.strip().lower() in HELPERS:
            changes.append(f"{text} does not go with the runtime: a newer {name.strip()} is used")
            text = f"{name.strip()}>={version.strip().removesuffix('.*')}"
        found.append(text)
    return found, tuple(changes)


def _backend(declaration: Declaration, flavor: str) -> tuple[str, ...]:
    """What Keras is to run on, when the ML repo names nothing."""
    named = {_name(item.text) for item in declaration.requirements}
    return (DEFAULT_BACKEND,) if flavor == "keras" and not named & KERAS_BACKENDS else ()


def _compile(wanted: Sequence[str], limits: Sequence[str], version: str, arguments: Sequence[str] = ()) -> str:
    return run_uv(
        ["pip", "compile", "-", "--quiet", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-header",
         "--no-annotate", "--only-binary", ":all:", "--python-version", version, "--constraints", "constraints.txt", *arguments],
        files={"constraints.txt": "\n".join(limits) + "\n"},
        stdin="\n".join(wanted) + "\n",
    )  # fmt: skip


def _undeclared(lock: str) -> str:
    """A limit that packages have without declaring it: PyArrow 26 does not load beside NumPy 1, which FLOps' repos pin."""
    pins = {name: Version(version) for name, version in re.findall(r"^([\w.-]+)==([\w.!+-]+)", lock, re.MULTILINE)}
    conflict = pins.get("numpy", Version("2")).major < 2 and pins.get("pyarrow", Version("0")).major >= 26
    return "pyarrow<26" if conflict else ""


def _name(requirement: str) -> str:
    return canonicalize_name(re.split(r"[\s<>=!~;\[]", requirement)[0])


def _only_hashes(lock: str, wanted: Wanted) -> str:
    """The lock with those hashes only that the ML repo allows for a package. Raises BuildError when none is left."""
    found = (
        re.search(rf"^{re.escape(_name(wanted.text))}==.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL) if wanted.hashes else None
    )
    if not found:
        return lock
    first, *_ = found[0].split(" \\\n", 1)
    kept = [item for item in re.findall(r"--hash=(\S+)", found[0]) if item in wanted.hashes]
    if not kept:
        raise BuildError(
            "FL3017",
            f"No file of {first} in the package index has a hash that is allowed for it.",
            cure="Make the hashes anew, with wheels among them; or take them out: the lock has its own.",
            where=wanted.where,
        )
    block = " \\\n".join([first, *(f"    --hash={item}" for item in kept)]) + "\n"
    return lock[: found.start()] + block + lock[found.end() :]


def _interpreter_gone(version: str) -> BuildError:
    return BuildError("FL3010", f"Python {version} is not on this machine any more.", cure="Install it again.", transient=True)


def _read_lock(path: Path) -> Lock | None:
    if not path.is_file():
        return None
    try:
        content = orjson.loads(path.read_bytes())
        report = DependencyReport(tuple(content["lines"]), tuple(content["warnings"]))
        lock = Lock(content["digest"], content["python"], content["requirements"], report)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return lock if lock.digest == digest_of([lock.python, lock.requirements]) else None


def _lock_error(declaration: Declaration, said: str) -> BuildError:
    where = Where(declaration.file)
    for item in (*declaration.requirements, *declaration.constraints):
        name = re.escape(_name(item.text))
        if re.search(rf"Because {name} was not found|no versions of {name}\b|no version of {name}\b", said):
            return BuildError(
                "FL3011", f"The package index has no {item.text}.", cure="Correct the name or the version.", where=item.where
            )
    if re.search(r"no wheels|no usable wheels|Building source distributions", said):
        return BuildError("FL3012", f"A package has no wheel: {_short(said)}", cure="Choose a version with a wheel.", where=where)
    if re.search(r"error sending request|Failed to fetch|dns error|timed out|Could not connect", said, re.IGNORECASE):
        return BuildError("FL3013", "The package index does not answer.", cure="It is tried again.", where=where, transient=True)
    return BuildError(
        "FL3014",
        f"The dependencies cannot be satisfied together: {_short(said)}",
        cure="Loosen one of the pins; the runtime adds flwr, datasets and mlflow-skinny.",
        where=where,
    )


def _build_error(said: str) -> BuildError:
    if "No space left" in said or "os error 28" in said:
        return _disk_full()
    return BuildError("FL3015", f"The environment cannot be built: {_short(said)}", cure="It is tried again.", transient=True)


def _disk_full() -> BuildError:
    return BuildError("FL3016", "The disk is full; the environment was not built.", cure="Free some space.", transient=True)


def _short(said: str) -> str:
    text = " ".join(line.strip(" ×╰─▶│├┬") for line in said.splitlines() if line.strip())
    return text[:600] + ("…" if len(text) > 600 else "")
