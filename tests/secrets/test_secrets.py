"""Secrets by reference: what is named is found, what cannot be used is one clear error, and nothing shows the value."""

from __future__ import annotations

import os
import pickle
import traceback
from pathlib import Path

import pytest

from reconciler.errors import SecretError, SpecErrors
from reconciler.secrets import MAX_BYTES, resolve
from reconciler.spec.loader import load
from reconciler.spec.secret_ref import SecretRef

VALUE = "canary-7f3a9"


def test_a_variable_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(VALUE + "\r\n")
    assert resolve(SecretRef(env="TOKEN"), environ={"TOKEN": VALUE}).reveal() == VALUE
    assert resolve(SecretRef(file=str(file)), environ={}).reveal() == VALUE
    file.write_text("another")
    assert resolve(SecretRef(file=str(file)), environ={}).reveal() == "another"


def test_nothing_shows_the_value(tmp_path: Path) -> None:
    secret = resolve(SecretRef(env="TOKEN"), environ={"TOKEN": VALUE})
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>20}", repr([secret]), repr({"a": secret})]
    assert not [text for text in shown if VALUE in text]
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    file = tmp_path / "token"
    file.write_bytes(VALUE.encode() + b"\xff")
    with pytest.raises(SecretError, match="FL9603") as caught:
        resolve(SecretRef(file=str(file)), environ={})
    assert VALUE not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "FL9603"), (b" \n", "FL9603"), (b"\xff\xfe", "FL9603"), (b"x" * (MAX_BYTES + 2), "FL9603"), (None, "FL9602")],
)
def test_a_file_that_is_no_secret(tmp_path: Path, content: bytes | None, code: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SecretError, match=code):
        resolve(SecretRef(file=str(file)), environ={})


def test_a_pipe_or_a_folder_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ""):
        with pytest.raises(SecretError, match="FL9602"):
            resolve(SecretRef(file=str(tmp_path / name)), environ={})


@pytest.mark.parametrize(("environ", "code"), [({}, "FL9601"), ({"TOKEN": ""}, "FL9603"), ({"TOKEN": "x" * 70_000}, "FL9603")])
def test_a_variable_that_is_no_secret(environ: dict[str, str], code: str) -> None:
    with pytest.raises(SecretError, match=code):
        resolve(SecretRef(env="TOKEN"), environ=environ)


@pytest.mark.parametrize("text", ["{}", "{env: A, file: /b}", "{env: 'A-B'}", "{file: relative}", "{value: canary}", "{env: ''}"])
def test_a_reference_names_one_place(text: str) -> None:
    with pytest.raises(SpecErrors):
        load(SecretRef, text.encode(), "flops.yaml")
