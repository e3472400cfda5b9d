"""From the image store into a container engine of this machine, without a registry of its own.

The engine pulls from the store itself, served on loopback for as long as the pull takes: then it fetches only the layers that it
lacks, where `docker load` would be sent all of them again. Content decides: an image that the engine has is not pulled at all.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any

import docker
import docker.errors
import orjson
import requests
import uvicorn

from reconciler.errors import ImageError
from reconciler.images.cancelling import Cancelled, check, never
from reconciler.images.layout import Layout
from reconciler.images.model import INDEXES, Descriptor, Platform
from reconciler.images.serve import application
from reconciler.podman import is_podman

PREFIX = "flops.local/"
"""Names that images get in the engine: nothing is pulled from there, but `docker images` shows what is what. An owner follows,
since several reconcilers may share an engine, and each of them takes away its own names only."""


def into_engine(
    client: docker.DockerClient,
    layout: Layout,
    name: str,
    platform: Platform,
    *,
    owner: str,
    tell: Callable[[str], None],
    cancelled: Cancelled = never,
) -> str:
    """Bring an image of the store (`customer/project:tag`) into the engine, with a name of the owner's; the engine's id of it.

    Raises ImageError: FL6106 when there is no such image for the platform, FL6126 (transient) when the engine does not take it,
    FL6156 when it is cancelled; the engine keeps the layers that it has by then.
    """
    manifest = _manifest(layout, name, platform)
    config = str(layout.read_json(manifest.digest)["config"]["digest"])
    try:
        own = f"{PREFIX}{owner}/{name}"
        known = _known(client, config) or _known(client, own, manifest.digest)
        repository, _, tag = name.rpartition(":")
        if known:
            client.images.get(known).tag(own.rpartition(":")[0], tag=tag)
            return known
        tell(f"the engine takes {name} for {platform}")
        with _served(layout) as host:
            pulled = f"{host}/{repository}@{manifest.digest}"
            _pull(client, pulled, cancelled)
        image = client.images.get(pulled)
        image.tag(own.rpartition(":")[0], tag=tag)
        with contextlib.suppress(docker.errors.APIError):
            # The address was there for this pull alone; the name above keeps the image.
            client.images.remove(pulled, noprune=True)
        return str(image.id)
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise ImageError(
            "FL6126",
            f"The container engine does not take the image {name}: {str(error)[:200]}.",
            cure="See whether it runs and has space; if it is on another machine, name a registry that both reach.",
            transient=True,
        ) from error


def remove_from_engine(client: docker.DockerClient, owner: str, kept: Collection[str], *, dry_run: bool) -> list[str]:
    """Take an owner's names from images that are not `kept` (`customer/project:tag`), and with the last name the image; the names.

    What a container was made from stays. Raises ImageError FL6126 (transient) when the engine does not answer.
    """
    prefix, gone = f"{PREFIX}{owner}/", []
    try:
        needed = {item["ImageID"] for item in client.api.containers(all=True)}
        for image in client.api.images():
            if image["Id"] in needed:
                continue
            names = [tag for tag in image.get("RepoTags") or [] if tag.startswith(prefix)]
            for name in sorted(tag for tag in names if tag.removeprefix(prefix) not in kept):
                with contextlib.suppress(docker.errors.ImageNotFound):
                    if not dry_run:
                        client.images.remove(name)
                    gone.append(name)
    except (docker.errors.DockerException, requests.RequestException) as error:
        cause = f"The container engine does not tell of its images: {str(error)[:200]}."
        raise ImageError("FL6126", cause, cure="See whether it runs.", transient=True) from error
    return gone


def _pull(client: docker.DockerClient, reference: str, cancelled: Cancelled) -> None:
    pull = _podman_pull if is_podman(client) else _docker_pull
    # Whoever stops listening ends the pull.
    with contextlib.closing(pull(client, reference)) as progress:
        for line in progress:
            check(cancelled)
            if line.get("error"):
                raise docker.errors.APIError(str(line["error"]))


def _docker_pull(client: docker.DockerClient, reference: str) -> Generator[dict[str, Any], None, None]:
    yield from client.api.pull(reference, stream=True, decode=True)


def _podman_pull(client: docker.DockerClient, reference: str) -> Generator[dict[str, Any], None, None]:
    """By Podman's own API: Docker takes loopback without TLS, Podman only when it is told to, which Docker's API cannot say."""
    question = {"reference": reference, "tlsVerify": "false"}
    url = f"{client.api.base_url}/v4.0.0/libpod/images/pull"
    with client.api.post(url, params=question, stream=True, timeout=None) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            yield orjson.loads(line)


def _manifest(layout: Layout, name: str, platform: Platform) -> Descriptor:
    top = layout.resolve(name)
    found = top
    if top is not None and top.media_type in INDEXES:
        entries = [Descriptor.from_dict(item) for item in layout.read_json(top.digest).get("manifests") or []]
        found = next((entry for entry in entries if entry.platform and entry.platform.runs_on(platform)), None)
    if found is None:
        raise ImageError("FL6106", f"The image store has no {name} for {platform}.", cure="Build it again.", transient=True)
    return found


def _known(client: docker.DockerClient, reference: str, digest: str = "") -> str | None:
    """The id of an image that is there; by its name only when it is the one with this digest."""
    try:
        image = client.images.get(reference)
    except docker.errors.ImageNotFound:
        return None
    if digest and not any(str(item).endswith(digest) for item in image.attrs.get("RepoDigests") or []):
        return None
    return str(image.id)


@contextlib.contextmanager
def _served(layout: Layout) -> Iterator[str]:
    """The store as a registry on loopback. Its end is not waited for: the server looks ten times a second whether to stop, which
    would be most of the time that a pull of one small layer takes. It closes its socket itself."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application(layout), log_level="error", access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    server.force_exit = True
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="image-store", daemon=True).start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
