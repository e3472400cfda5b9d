"""Pushing to and reading from a real registry, when all is well."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from reconciler.errors import ImageError
from reconciler.images.credentials import DockerConfig
from reconciler.images.model import Descriptor
from reconciler.images.push import push
from reconciler.images.reference import Reference, is_loopback, split_name
from reconciler.images.registry import Registry
from tests.engine import LOGIN, RunningRegistry, StartRegistry, tool
from tests.images.imagekit import PATIENT, layout_at, make_image
from tests.images.proxy import Proxy
from tests.images.tokens import TokenService


def test_an_index_with_two_platforms_is_pushed_and_read_by_others(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    index = make_image(layout, "acme/digits:1")
    target = Reference.parse(f"{registry.host}/acme/digits:1")
    with Registry(registry.host, patience=PATIENT) as client:
        done = push(layout, index, target, registry=client)
        assert (done.uploaded, done.present, done.digest) == (4, 0, index.digest)
        assert client.digest_of(target) == index.digest
        assert client.tags("acme/digits") == ["1"]
        assert client.tags("acme/nothing") == []
        data, found = client.manifest(target)
    assert (found.digest, data) == (index.digest, layout.read(index.digest))
    shown = subprocess.run(
        [tool("skopeo"), "inspect", "--raw", "--tls-verify=false", f"docker://{target}"], capture_output=True, check=True
    )  # fmt: skip
    assert {item["platform"]["architecture"] for item in json.loads(shown.stdout)["manifests"]} == {"amd64", "arm64"}


def test_what_the_registry_has_is_not_sent_again(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    first, second = make_image(layout), make_image(layout, platforms=("linux/amd64",))
    with Registry(registry.host, patience=PATIENT) as client:
        push(layout, first, Reference.parse(f"{registry.host}/acme/a:1"), registry=client)
        again = push(layout, first, Reference.parse(f"{registry.host}/acme/a:2"), registry=client)
        assert (again.uploaded, again.bytes_sent) == (0, 0)
        shared = push(layout, second, Reference.parse(f"{registry.host}/acme/a:3"), registry=client)
        assert (shared.uploaded, shared.present) == (0, 2)
        assert client.tags("acme/a") == ["1", "2", "3"]


def test_base_layers_are_mounted_from_the_repository_they_come_from(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    index = make_image(layout, platforms=("linux/amd64",))
    base = Reference.parse(f"{registry.host}/library/base:1")
    manifest = layout.read_json(Descriptor.from_dict(layout.read_json(index.digest)["manifests"][0]).digest)
    layer = Descriptor.from_dict(manifest["layers"][0])
    with Registry(registry.host, patience=PATIENT) as client:
        push(layout, index, base, registry=client)
        layout.blob_path(layer.digest).unlink()
        done = push(layout, index, Reference.parse(f"{registry.host}/acme/other:1"), registry=client, sources={layer.digest: base})
        assert (done.mounted, done.uploaded) == (1, 1)
        # Elsewhere it cannot be mounted, and it is not here: nothing is published.
        with pytest.raises(ImageError, match="FL6106"):
            push(layout, index, Reference.parse(f"{registry.host}/acme/third:1"), registry=client)
        assert client.tags("acme/third") == []


def test_a_large_blob_survives_connections_that_break(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    blob = layout.add_bytes(os.urandom(3_000_000), "application/octet-stream")
    cuts = [1_000_000, 700_000]
    proxy = Proxy(registry.port, lambda head: cuts.pop() if head.startswith("PATCH") and cuts else None)
    with Registry(proxy.host, patience=PATIENT) as client:
        client.upload("acme/data", blob, layout.blob_path(blob.digest))
    assert sum(head.startswith("PATCH") for head in proxy.heads) == 3
    with Registry(registry.host, patience=PATIENT) as client:
        assert client.has_blob("acme/data", blob.digest)
        copy = layout_at(tmp_path / "copy")
        with copy.writer() as writer:
            assert client.fetch("acme/data", blob, writer).digest == blob.digest


def test_an_upload_goes_on_after_the_chunks_that_arrived(tmp_path: Path, registry: RunningRegistry) -> None:
    """Two connections go before their chunk arrives: nothing that the registry has is sent again."""
    layout, sent, cuts = layout_at(tmp_path), [], [3, 6]
    blob = layout.add_bytes(os.urandom(3_000_000), "application/octet-stream")

    def spoil(head: str) -> int | None:
        if not head.startswith("PATCH"):
            return None
        chunk = re.search(r"(?i)content-range: (\S+)", head)
        sent.append(chunk[1] if chunk else "")
        return 0 if len(sent) in cuts else None

    proxy = Proxy(registry.port, spoil)
    with Registry(proxy.host, patience=PATIENT, chunk=700_000) as client:
        client.upload("acme/data", blob, layout.blob_path(blob.digest))
        assert client.has_blob("acme/data", blob.digest)
    begins = [int(chunk.partition("-")[0]) for chunk in sent]
    assert begins == [0, 700_000, 1_400_000, 1_400_000, 2_100_000, 2_800_000, 2_800_000]
    assert sum(head.startswith("GET") and "/uploads/" in head for head in proxy.heads) == 2


def test_an_upload_that_breaks_within_a_chunk(tmp_path: Path, registry: RunningRegistry) -> None:
    """docker-registry does not go on after part of a request: it is sent anew, and so often at most as tries are allowed."""
    layout = layout_at(tmp_path)
    blob = layout.add_bytes(os.urandom(2_000_000), "application/octet-stream")
    cuts = [200_000]
    proxy = Proxy(registry.port, lambda head: cuts.pop() if "ange: 700000-" in head and cuts else None)
    with Registry(proxy.host, patience=PATIENT, chunk=700_000) as client:
        client.upload("acme/data", blob, layout.blob_path(blob.digest))
        assert client.has_blob("acme/data", blob.digest)
    always = Proxy(registry.port, lambda head: 200_000 if "ange: 700000-" in head else None)
    other = layout.add_bytes(os.urandom(2_000_000), "application/octet-stream")
    with Registry(always.host, patience=PATIENT, chunk=700_000) as client, pytest.raises(ImageError, match="FL6142"):
        client.upload("acme/data", other, layout.blob_path(other.digest))
    assert sum("ange: 700000-" in head for head in always.heads) <= 2 * PATIENT.attempts


def test_a_download_goes_on_after_what_arrived(tmp_path: Path, registry: RunningRegistry) -> None:
    layout, copy = layout_at(tmp_path), layout_at(tmp_path / "copy")
    data = os.urandom(2_000_000)
    blob = layout.add_bytes(data, "application/octet-stream")
    with Registry(registry.host, patience=PATIENT) as client:
        client.upload("acme/data", blob, layout.blob_path(blob.digest))
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + data[:600_000]]
    proxy = Proxy(registry.port, lambda head: answers.pop() if head.startswith("GET") and answers else None)
    with Registry(proxy.host, patience=PATIENT) as client, copy.writer() as writer:
        client.fetch("acme/data", blob, writer)
    assert copy.read(blob.digest) == data
    ranges = [line for head in proxy.heads for line in head.splitlines() if line.lower().startswith("range:")]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].split("=")[1].rstrip("-")) <= 600_000


def test_credentials_of_dockers_config(tmp_path: Path, start_registry: StartRegistry) -> None:
    registry = start_registry(login=True)
    layout = layout_at(tmp_path)
    index = make_image(layout)
    target = Reference.parse(f"{registry.host}/acme/digits:1")
    auth = base64.b64encode(":".join(LOGIN).encode()).decode()

    def attempt(content: dict[str, object]) -> str:
        config = tmp_path / "config.json"
        config.write_text(json.dumps(content))
        with Registry(registry.host, config=DockerConfig(config), patience=PATIENT) as client:
            return push(layout, index, target, registry=client).digest

    for bad in ({}, {"auths": {registry.host: {"auth": base64.b64encode(b"somebody:wrong").decode()}}}):
        with pytest.raises(ImageError, match="docker login") as refused:
            attempt(bad)
        assert (refused.value.code, refused.value.transient) == ("FL6145", False)
        assert "wrong" not in str(refused.value)
    assert attempt({"auths": {registry.host: {"auth": auth}}}) == index.digest


def test_tokens_of_a_token_service(tmp_path: Path, start_registry: StartRegistry) -> None:
    tokens = TokenService(tmp_path / "tokens")
    registry = start_registry(extra=tokens.config)
    layout = layout_at(tmp_path)
    index = make_image(layout)
    layer = layout.read_json(layout.read_json(index.digest)["manifests"][0]["digest"])["layers"][0]["digest"]
    target = Reference.parse(f"{registry.host}/acme/digits:1")
    config = tmp_path / "config.json"

    def client(login: str) -> Registry:
        entry = {"auth": base64.b64encode(login.encode()).decode()}
        config.write_text(json.dumps({"auths": {registry.host: entry} if login else {}}))
        return Registry(registry.host, config=DockerConfig(config), patience=PATIENT)

    with client(":".join(LOGIN)) as somebody:
        push(layout, index, target, registry=somebody)
        asked = len(tokens.asked)
        push(layout, index, target.at("2"), registry=somebody)
        assert len(tokens.asked) == asked, "a token serves until it is refused"
        done = push(layout, index, Reference.parse(f"{registry.host}/acme/copy:1"), registry=somebody, sources={layer: target})
        assert done.mounted == 1
    with client("") as anybody:
        assert anybody.digest_of(target) == index.digest
        with pytest.raises(ImageError, match="FL6145"):
            push(layout, make_image(layout, content=b"mine"), target, registry=anybody)
    with client("somebody:wrong") as stranger, pytest.raises(ImageError, match="not accepted"):
        stranger.digest_of(target)
    tokens.close()


def test_credential_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-vault"
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$host" = other.example.invalid ] && { echo "credentials not found in"; exit 1; }\n'
        'echo "{\\"Username\\": \\"u\\", \\"Secret\\": \\"p-$host\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"credHelpers": {"one.example.invalid": "vault", "bad.example.invalid": "lost"}, "credsStore": "vault"})
    )
    config = DockerConfig(path)
    login = config.login("one.example.invalid")
    assert login is not None
    assert (login.user, login.password) == ("u", "p-one.example.invalid")
    assert "p-one" not in repr(login)
    assert config.login("other.example.invalid") is None
    with pytest.raises(ImageError, match="docker-credential-lost failed: it is not installed"):
        config.login("bad.example.invalid")
    assert DockerConfig(tmp_path / "none.json").login("one.example.invalid") is None
    path.write_text("{")
    with pytest.raises(ImageError, match="FL6141"):
        config.login("one.example.invalid")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("docker://localhost:5000/a/b:1", ("localhost:5000", "a/b", "1", "")),
        ("registry.example.invalid/a", ("registry.example.invalid", "a", "", "")),
        ("[::1]:5000/a", ("[::1]:5000", "a", "", "")),
        (f"127.0.0.1:5000/a:2@sha256:{'0' * 64}", ("127.0.0.1:5000", "a", "2", f"sha256:{'0' * 64}")),
    ],
)
def test_references(text: str, found: tuple[str, ...]) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.tag, reference.digest) == found
    assert str(reference) == text.removeprefix("docker://")


@pytest.mark.parametrize(
    "text",
    ["python:3.11", "library/python", "host.example.invalid/A", "h.x.invalid/a:b:c", "-h.x/a", "h.x/../a", "h.x/a@sha256:1", ""],
)  # fmt: skip
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(ImageError, match=r"FL6140|FL6102"):
        Reference.parse(text)


def test_only_this_machine_is_spoken_to_in_plain_text() -> None:
    assert [is_loopback(host) for host in ("localhost:1", "127.0.0.2", "[::1]:5000")] == [True] * 3
    assert [is_loopback(host) for host in ("localhost.example.invalid", "10.0.0.1:5000", "127.0.0.1.example.invalid")] == [
        False
    ] * 3
    assert split_name("acme/digits:1") == ("acme/digits", "1")
    assert split_name("acme/digits") == ("acme/digits", "latest")
