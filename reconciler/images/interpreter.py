"""Images without a base: a layer with the Python of this machine, its standard library and the shared libraries that wheels expect.

For the machine's own platform alone: another one's interpreter is not here. What is in the layer is named by what it was copied
from, so the same machine gives the same layer; another release of Python or of the C library gives another one.
"""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson
import uv

from reconciler.errors import ImageError
from reconciler.images.model import Platform
from reconciler.images.records import Records
from reconciler.images.tarball import Entry, Layer, write_layer

PYTHON: Final = "/usr/local/bin/python{version}"
ENVIRONMENT: Final = (
    "PATH=/usr/local/bin:/usr/bin:/bin",
    "LD_LIBRARY_PATH=/usr/local/lib",
    "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
)
_LIBRARIES: Final = "usr/local/lib"
_LEFT_OUT: Final = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "__pycache__"}
)
_WHEELS_EXPECT: Final = (
    "libstdc++.so.6", "libgcc_s.so.1", "libresolv.so.2", "libnss_dns.so.2", "libnss_files.so.2", "libpthread.so.0", "libdl.so.2",
    "librt.so.1", "libutil.so.1", "libz.so.1",
)  # fmt: skip
_ASK: Final = (
    "import json, os, platform, sys, sysconfig; print(json.dumps({'executable': os.path.realpath(sys.executable), "
    "'stdlib': sysconfig.get_path('stdlib'), 'dynload': [p for p in sys.path if p.endswith('lib-dynload')], "
    "'full': platform.python_version(), 'libc': platform.libc_ver()}))"
)


def host_platform() -> Platform:
    """The platform of this machine."""
    return Platform.parse(f"{platform.system().lower()}/{platform.machine().lower()}")


def host_glibc() -> int:
    """36 for glibc 2.36; 17 where it is not known, which the oldest wheels want."""
    found = re.fullmatch(r"2\.(\d+).*", platform.libc_ver()[1])
    return int(found[1]) if found else 17


def interpreter_layer(version: str, wanted: Platform, records: Records, compression: str) -> Layer:
    """The layer for a Python version such as `3.11`. Raises ImageError FL6125 for another platform or a Python that is not here."""
    if not host_platform().runs_on(wanted):
        raise ImageError(
            "FL6125",
            f"Without a base image there is this machine's Python alone; it is one for {host_platform()}, not for {wanted}.",
            cure="Set images.default_base in flops.yaml, or base_image in the plan, to an image for that platform too.",
        )
    found = _find(version)
    executable = Path(found["executable"])
    about = executable.stat()
    inputs = ["interpreter", compression, found, about.st_size, about.st_mtime_ns]

    def make() -> list[Layer]:
        return [write_layer(records.layout, f"Python {found['full']}", _entries(executable, found, version), compression)]

    return records.layers(inputs, make)[0]


@cache
def _find(version: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
        environment.pop("VIRTUAL_ENV", None)
        found = subprocess.run(
            [uv.find_uv_bin(), "python", "find", "--system", "--no-project", version], cwd=empty, env=environment,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        path = found.stdout.strip()
        if found.returncode or not path:
            raise ImageError(
                "FL6125",
                f"There is no base image, and no Python {version} on this machine.",
                cure="Install it, or set base_image in the build plan to an image that has it.",
            )
        asked = subprocess.run([path, "-I", "-c", _ASK], cwd=empty, capture_output=True, check=True, timeout=60)
    answer: dict[str, Any] = orjson.loads(asked.stdout)
    return answer


def _entries(executable: Path, found: dict[str, Any], version: str) -> list[Entry]:
    library = f"usr/local/lib/python{version}"
    entries = [_file("usr/local/bin/python" + version, executable, executable_file=True)]
    entries += [Entry(f"usr/local/bin/{name}", 0, link=f"python{version}") for name in ("python3", "python")]
    binaries = [executable]
    for folder, prefix in [
        (Path(found["stdlib"]), library),
        *((Path(item), f"{library}/lib-dynload") for item in found["dynload"]),
    ]:
        for path, name in _standard_library(folder):
            entries.append(_file(f"{prefix}/{name}", path))
            if path.suffix == ".so":
                binaries.append(path)
    for name, path in sorted(_shared_libraries(binaries).items()):
        loader = name.startswith("/")
        entries.append(_file(name[1:] if loader else f"{_LIBRARIES}/{name}", path, executable_file=True))
    entries += [
        _text("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\nflops:x:65532:65532:flops:/tmp:/sbin/nologin\n"),
        _text("etc/group", "root:x:0:\nflops:x:65532:\n"),
        _text("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        Entry("tmp/", 0, mode=0o1777),
    ]
    bundle = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    if Path(bundle).is_file():
        entries.append(_file("etc/ssl/certs/ca-certificates.crt", Path(bundle)))
    return entries


def _standard_library(folder: Path) -> Iterable[tuple[Path, str]]:
    """The files of a standard library; distributions link some of them elsewhere, so links are followed here."""
    for found, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("config-"))
        for name in sorted(names):
            path = Path(found) / name
            if (
                path.is_file()
                and not name.endswith((".pyc", ".a", ".exe"))
                and name not in {"sitecustomize.py", "usercustomize.py"}
            ):
                yield path.resolve(), str(path.relative_to(folder))


def _shared_libraries(binaries: Iterable[Path]) -> dict[str, Path]:
    """What the dynamic loader finds for these files, and the loader itself under its full name."""
    done = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False, timeout=120)
    found: dict[str, Path] = {}
    for name, path in re.findall(r"^\s+(\S+) => (/\S+) \(0x", done.stdout, re.MULTILINE):
        found[name] = Path(path).resolve()
    for path in re.findall(r"^\s+(/\S*ld-linux\S+) \(0x", done.stdout, re.MULTILINE):
        found[path] = Path(path).resolve()
    folder = found["libc.so.6"].parent if "libc.so.6" in found else Path("/lib")
    for name in _WHEELS_EXPECT:
        if name not in found and (folder / name).exists():
            found[name] = (folder / name).resolve()
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False, timeout=60).stdout
    for name, path in re.findall(r"^\s+(\S+) \([^)]*\) => (/\S+)$", known, re.MULTILINE):
        if name in _WHEELS_EXPECT and name not in found:
            found[name] = Path(path).resolve()
    return found


def _file(name: str, path: Path, *, executable_file: bool = False) -> Entry:
    return Entry(name, path.stat().st_size, path, executable_file)


def _text(name: str, text: str) -> Entry:
    return Entry(name, len(text), text.encode())
