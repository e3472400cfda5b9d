"""The image store as a registry, asked by Docker, skopeo and our own client; and by people who want what they may not have."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.model import Descriptor
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from reconciler.images.sbom import CYCLONEDX, Materials, attach_sbom
from reconciler.images.serve import application, run_server
from tests.engine import BASE, tool, until
from tests.images.imagekit import PATIENT, layout_at, make_image

OTHER = "sha256:" + "1" * 64


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_at(tmp_path)


@pytest.fixture
def client(layout: Layout) -> TestClient:
    return TestClient(application(layout))


class Served:
    """A served layout on a free port."""

    def __init__(self, layout: Layout) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(application(layout), log_level="warning", lifespan="off", ws="none"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture
def served(layout: Layout) -> Iterator[str]:
    server = Served(layout)
    yield server.host
    server.stop()


def test_docker_pulls_and_runs_from_it(base_layout: Path, engine: docker.DockerClient) -> None:
    server = Served(Layout(base_layout))
    name = f"{server.host}/{BASE}"
    try:
        image = engine.images.pull(name)
        said = engine.containers.run(image, ["python3", "-c", "print(6 * 7)"], remove=True, network_disabled=True)
        assert said.strip() == b"42"
        assert image.attrs["Architecture"] == "amd64"
    finally:
        engine.images.remove(name, force=True)
        server.stop()


def test_skopeo_inspects_and_copies_every_platform(tmp_path: Path, layout: Layout, served: str) -> None:
    index = make_image(layout, "acme/digits:1")
    shown = subprocess.run(
        [tool("skopeo"), "inspect", "--tls-verify=false", f"docker://{served}/acme/digits:1"], capture_output=True, check=True
    )  # fmt: skip
    assert json.loads(shown.stdout)["Digest"] == index.digest
    copy = tmp_path / "copy"
    subprocess.run(
        [tool("skopeo"), "copy", "-q", "--all", "--src-tls-verify=false", f"docker://{served}/acme/digits:1", f"oci:{copy}:1"],
        check=True,
    )  # fmt: skip
    found = json.loads((copy / "index.json").read_bytes())["manifests"][0]
    assert found["digest"] == index.digest


def test_our_own_client_sees_what_is_attached(layout: Layout, served: str) -> None:
    index = make_image(layout, "acme/digits:1")
    attached = attach_sbom(layout, index, Materials("digits", "2024-01-02T03:04:05Z", "numpy==1.26.4\n", "3.11"))
    with Registry(served, patience=PATIENT) as client:
        assert client.tags("acme/digits") == ["1"]
        assert [(item.digest, item.artifact_type) for item in client.referrers("acme/digits", index.digest)] == [
            (attached.digest, CYCLONEDX)
        ]
        assert client.referrers("acme/digits", OTHER) == []
        data, _ = client.manifest(Reference.parse(f"{served}/acme/digits@{attached.digest}"))
        assert Descriptor.from_dict(json.loads(data)["subject"]).digest == index.digest
        # Nothing can be written.
        with pytest.raises(ImageError, match="UNSUPPORTED"):
            client.put_manifest(Reference.parse(f"{served}/acme/digits:2"), b"{}", "application/json")


def test_ranges_and_heads(layout: Layout, client: TestClient) -> None:
    index = make_image(layout, "acme/digits:1", platforms=("linux/amd64",))
    manifest = layout.read_json(layout.read_json(index.digest)["manifests"][0]["digest"])
    layer = Descriptor.from_dict(manifest["layers"][0])
    url, data = f"/v2/acme/digits/blobs/{layer.digest}", layout.read(layer.digest)
    head = client.head(url)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(layer.size), b"")
    assert client.get(url).content == data
    part = client.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, data[10:20], f"bytes 10-19/{layer.size}")
    assert client.get(url, headers={"Range": f"bytes={layer.size}-"}).status_code == 416
    found = client.head("/v2/acme/digits/manifests/1")
    assert (found.headers["Docker-Content-Digest"], found.headers["Content-Type"]) == (index.digest, index.media_type)
    assert client.get("/v2/").headers["Docker-Distribution-Api-Version"] == "registry/2.0"


def test_lists_come_by_pages(layout: Layout, client: TestClient) -> None:
    for number in range(5):
        make_image(layout, f"acme/p{number % 2}:{number}", content=b"%d" % number)
    assert client.get("/v2/_catalog").json() == {"repositories": ["acme/p0", "acme/p1"]}
    first = client.get("/v2/acme/p0/tags/list?n=2")
    assert first.json() == {"name": "acme/p0", "tags": ["0", "2"]}
    following = first.headers["Link"].partition("<")[2].partition(">")[0]
    second = client.get(following)
    assert second.json()["tags"] == ["4"]
    assert "Link" not in second.headers
    assert client.get("/v2/acme/p0/tags/list?n=x").status_code == 400


def test_a_repository_has_only_what_its_tags_reach(layout: Layout, client: TestClient) -> None:
    mine, theirs = make_image(layout, "acme/mine:1", content=b"mine"), make_image(layout, "rival/theirs:1", content=b"theirs")
    assert client.get(f"/v2/acme/mine/manifests/{mine.digest}").status_code == 200
    assert client.get(f"/v2/acme/mine/manifests/{theirs.digest}").status_code == 404
    assert client.get(f"/v2/acme/mine/blobs/{theirs.digest}").status_code == 404
    layout.untag("acme/mine:1")
    answer = client.get(f"/v2/acme/mine/manifests/{mine.digest}")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "NAME_UNKNOWN")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/acme/digits/blobs/../../../../../../etc/passwd", "/v2/acme/digits/blobs/sha256:..%2f..%2f..%2f..%2findex.json",
        "/v2/acme/digits/blobs/%2fetc%2fpasswd", "/v2/../../etc/manifests/passwd", f"/v2/../acme/blobs/{OTHER}",
        "/v2/acme/digits/manifests/..%2f..%2foci-layout", "/index.json", "/v2/acme/digits/referrers/sha256:..", "/",
    ],
)  # fmt: skip
def test_no_path_leads_out(layout: Layout, served: str, path: str) -> None:
    make_image(layout, "acme/digits:1")
    # As raw as it comes: no client may tidy the path up.
    with socket.create_connection(("127.0.0.1", int(served.partition(":")[2]))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {served}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert int(answer.split()[1]) in {400, 404}, answer
    assert b"root:" not in answer
    assert b"imageLayoutVersion" not in answer


def test_a_damaged_manifest_is_not_served(layout: Layout, client: TestClient) -> None:
    index = make_image(layout, "acme/digits:1")
    assert client.get("/v2/acme/digits/manifests/1").status_code == 200
    layout.blob_path(index.digest).write_bytes(b"{}")
    answer = client.get("/v2/acme/digits/manifests/1")
    assert answer.status_code == 500
    assert "damaged" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_written(client: TestClient, method: str) -> None:
    for path in ("/v2/acme/digits/blobs/uploads/", "/v2/acme/digits/manifests/1", f"/v2/acme/digits/blobs/{OTHER}"):
        assert client.request(method, path).status_code == 405


def test_an_empty_store(client: TestClient) -> None:
    assert client.get("/v2/_catalog").json() == {"repositories": []}
    assert client.get("/v2/acme/digits/tags/list").status_code == 404


def test_a_port_that_is_taken(layout: Layout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ImageError, match="FL6170"):
        run_server(layout, "127.0.0.1", taken.getsockname()[1], lambda _address: None)


def test_the_command_serves_and_ends(tmp_path: Path) -> None:
    import os
    import signal
    import sys

    repo = tmp_path / "repo"
    subprocess.run(["git", "init", "-q", "-b", "main", str(repo)], check=True)
    make_image(Layout(tmp_path / "state" / "images"), "acme/digits:1")
    command = [
        sys.executable,
        "-m",
        "reconciler.cli",
        "registry",
        "serve",
        "--port",
        "0",
        "--repo",
        str(repo),
        "--state",
        str(tmp_path / "state"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split()[2].partition("/")[0]
        assert httpx.get(f"http://{address}/v2/acme/digits/tags/list").json()["tags"] == ["1"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in {0, 130}
