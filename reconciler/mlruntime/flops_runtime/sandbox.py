"""The kernel's own fence around the user's code: Landlock, no capabilities, no new privileges, no core dumps.

A process that has entered can write below `writable` only, read its environment, the system's libraries and what it was
given in `readable`, and neither bind nor connect TCP sockets. It is inherited by every child and cannot be left. Domains
nest: a learner enters a tighter one inside the aggregator's, so it can reach neither the results nor another learner. The
kernel also keeps a process from looking into (`/proc/PID/environ`, ptrace) or signalling one outside its domain.

Rights that a kernel does not know are left out; `enter` says which level was reached. UDP is not covered by Landlock.
It has to be called while the process has one thread, since the kernel restricts the calling thread and its children.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_RULE_PATH_BENEATH = 1
_CREATE_VERSION = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_CAPABILITY_VERSION_3 = 0x20080522

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ABI1 = (1 << 13) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _READ_FILE | _READ_DIR
_RUN = _READ | _EXECUTE
_NET_BIND_CONNECT = 0b11
_SCOPE_ABSTRACT_SIGNAL = 0b11

_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")
_SYSTEM_FILES = (
    "/etc/ssl", "/etc/ca-certificates", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/passwd",
    "/etc/group", "/etc/nsswitch.conf", "/etc/localtime", "/etc/timezone", "/etc/hosts", "/etc/mime.types",
    "/etc/os-release", "/etc/alternatives", "/proc", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm")  # noqa: S108

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The Landlock version of this kernel; 0 if there is none."""
    if sys.platform != "linux":
        return 0
    version = _libc.syscall(_CREATE, None, 0, _CREATE_VERSION)
    return max(0, int(version))


def enter(readable: Iterable[Path], writable: Iterable[Path]) -> str:
    """Enters the sandbox for good and says how far it reaches, as in "Landlock ABI 7: files, TCP, signals".

    Paths that do not exist are skipped. Never raises for a kernel that cannot: the answer says so.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _drop_capabilities()
    version = abi()
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return "none: the kernel refuses PR_SET_NO_NEW_PRIVS"
    if version == 0:
        return "none: the kernel has no Landlock"
    handled = _ABI1
    handled |= _REFER if version >= 2 else 0
    handled |= _TRUNCATE if version >= 3 else 0
    handled |= _IOCTL_DEV if version >= 5 else 0
    attributes = struct.pack("=Q", handled)
    attributes += struct.pack("=Q", _NET_BIND_CONNECT) if version >= 4 else b""
    attributes += struct.pack("=Q", _SCOPE_ABSTRACT_SIGNAL) if version >= 6 else b""
    ruleset = _libc.syscall(_CREATE, attributes, len(attributes), 0)
    if ruleset < 0:
        return f"none: Landlock answers {os.strerror(ctypes.get_errno())}"
    try:
        for name in (*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix):
            _allow(ruleset, Path(name), _RUN & handled)
        # In an image packages need not lie below the interpreter's prefix.
        packages = [Path(name) for name in sys.path if name.startswith("/")]
        for path in (*map(Path, _SYSTEM_FILES), *packages, *readable):
            _allow(ruleset, path, _READ & handled)
        for path in (*map(Path, _DEVICES), *writable):
            _allow(ruleset, path, handled & ~_EXECUTE)
        if _libc.syscall(_RESTRICT, ruleset, 0) != 0:
            return f"none: Landlock answers {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(ruleset)
    reach = ["files", *(["TCP"] if version >= 4 else []), *(["signals"] if version >= 6 else [])]
    return f"Landlock ABI {version}: {', '.join(reach)}"


def die_with_parent() -> None:
    """This process is killed when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def _drop_capabilities() -> None:
    """Gives up root's powers, for good: with CAP_PERFMON the kernel lets root read any process' environment."""
    for number in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    _libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            access &= _OF_FILES
        _libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", access, fd), 0)
    finally:
        os.close(fd)
