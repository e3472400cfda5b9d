"""Secrets by reference: what is named is found, what cannot be used is one clear error, and nothing shows the value."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import traceback
from pathlib import Path

import pytest

from reconciler.errors import SecretError, SpecErrors
from reconciler.redaction import mask
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


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{env: A, file: /b}",
        "{env: 'A-B'}",
        "{file: relative}",
        "{value: canary}",
        "{env: ''}",
        "{file: /a, key: b}",
        "{sops: /a, key: 'b\"]'}",
        "{sops: -a}",
    ],
)
def test_a_reference_names_one_place(text: str) -> None:
    with pytest.raises(SpecErrors):
        load(SecretRef, text.encode(), "flops.yaml")


def _tool(folder: Path, name: str, script: str) -> None:
    """A program in the place of a tool, to see how it is called."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_how_sops_is_called(tmp_path: Path) -> None:
    _tool(tmp_path, "sops", f'printf "%s\\n" "$@" > {tmp_path}/arguments; /usr/bin/env > {tmp_path}/environment; echo {VALUE}')
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SOPS_AGE_KEY_FILE": "/keys", "FLOPS_WEB_TOKEN": "no", "LD_PRELOAD": ""}
    ref = SecretRef(sops="/etc/flops/secrets.yaml", key="web.token")
    assert resolve(ref, environ=environ).reveal() == VALUE
    said = (tmp_path / "arguments").read_text().split("\n")[:-1]
    assert said == ["--decrypt", "--extract", '["web"]["token"]', "/etc/flops/secrets.yaml"]
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert names - {"PWD", "_", "SHLVL", "OLDPWD"} == {"PATH", "SOPS_AGE_KEY_FILE"}


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (f"echo {VALUE} >&2; echo {VALUE}; exit 3", "FL9502"),
        ("sleep 60", "FL9503"),
        ("exec 1>&-; sleep 60", "FL9503"),
        ("yes canary-7f3a9", "FL9504"),
        ("true", "FL9603"),
        ("", "FL9501"),
    ],
)
def test_a_tool_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, code: str) -> None:
    monkeypatch.setattr("reconciler.decryption.LIMIT_SECONDS", 0.2 if code == "FL9503" else 20.0)
    if script:
        _tool(tmp_path, "sops", script)
    path = str(tmp_path) if not script else f"{tmp_path}:/usr/bin:/bin"
    with pytest.raises(SecretError, match=code) as caught:
        resolve(SecretRef(sops="/etc/flops/secrets.yaml"), environ={"PATH": path})
    assert VALUE not in "".join(traceback.format_exception(caught.value))


@pytest.mark.skipif(not shutil.which("age"), reason="age is not installed")
def test_age_itself(tmp_path: Path) -> None:
    identity, file = tmp_path / "identity", tmp_path / "secret.age"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    recipient = subprocess.run(["age-keygen", "-y", identity], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["age", "--encrypt", "-r", recipient, "-o", file], input=f"{VALUE}\n".encode(), check=True)
    environ = {"PATH": os.environ["PATH"], "SOPS_AGE_KEY_FILE": str(identity)}
    assert resolve(SecretRef(age=str(file)), environ=environ).reveal() == VALUE
    subprocess.run(["age-keygen", "-o", tmp_path / "other"], check=True, capture_output=True)
    with pytest.raises(SecretError, match="FL9502"):
        resolve(SecretRef(age=str(file)), environ=environ | {"SOPS_AGE_KEY_FILE": str(tmp_path / "other")})
    with pytest.raises(SecretError, match="SOPS_AGE_KEY_FILE"):
        resolve(SecretRef(age=str(file)), environ={"PATH": os.environ["PATH"]})


def test_what_was_resolved_is_masked_from_then_on() -> None:
    assert mask(f"it is {VALUE}") == f"it is {VALUE}"
    resolve(SecretRef(env="TOKEN"), environ={"TOKEN": VALUE})
    assert mask(f"it is {VALUE}") == "it is ***"
