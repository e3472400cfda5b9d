"""What may go into an image from a folder that somebody else filled."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from reconciler.errors import ImageError
from reconciler.images.tree import CODE, Limits, entries_of


def refused(root: Path, limits: Limits = CODE) -> ImageError:
    with pytest.raises(ImageError) as raised:
        entries_of(root, "ml_repo", limits)
    return raised.value


def test_files_by_name_without_byte_code(tmp_path: Path) -> None:
    for name in ("b.py", "a/x.py", "a/__pycache__/x.cpython-311.pyc", ".git/config", "c.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o700)
    found = entries_of(tmp_path, "ml_repo", CODE)
    assert [(entry.name, entry.executable) for entry in found] == [
        ("ml_repo/a/x.py", False), ("ml_repo/b.py", False), ("ml_repo/run.sh", True),
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "inside.py", "/proc/self/environ", "."])
def test_symbolic_links_are_refused_wherever_they_lead(tmp_path: Path, target: str) -> None:
    (tmp_path / "inside.py").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link").symlink_to(target)
    error = refused(tmp_path)
    assert error.code == "FL6113"
    assert str(error.where) == "sub/link"


def test_pipes_and_sockets_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path).code == "FL6113"
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        assert "a socket" in refused(tmp_path).cause


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_device_files_are_refused(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert "a device" in refused(tmp_path).cause


def test_a_sparse_file_counts_with_what_it_claims_to_hold(tmp_path: Path) -> None:
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(10 * 1024**3)
    error = refused(tmp_path)
    assert error.code == "FL6114"
    assert str(error.where) == "weights.bin"


def test_too_many_files_and_folders(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_text("")
    assert refused(tmp_path, Limits("ML repo", 4, 1000)).code == "FL6114"
    deep = tmp_path
    for _ in range(70):
        deep /= "d"
    deep.mkdir(parents=True)
    assert refused(tmp_path).code == "FL6114"


@pytest.mark.parametrize("name", [b"a\nb.py", b"a\x1b[2J.py", b"\xff.py", b"a\\b.py", "a\u202eb.py".encode()])
def test_names_that_no_file_should_have(tmp_path: Path, name: bytes) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    error = refused(tmp_path)
    assert error.code == "FL6116"
    assert str(error.where).isprintable()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path / "gone")
    assert error.code == "FL6115"
    assert error.transient
