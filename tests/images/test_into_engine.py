"""From the store into a real engine without a registry."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from reconciler.errors import ImageError
from reconciler.images.engine import PREFIX, into_engine, remove_from_engine
from reconciler.images.layout import Layout
from reconciler.images.model import Platform
from tests.dockerkit import Cable, open_engine
from tests.images.imagekit import make_image

NAME = "acme/into-engine:1"
OWNER = "0123456789ab"
OURS = f"{PREFIX}{OWNER}/{NAME}"
AMD64 = Platform("linux", "amd64")


def test_the_engine_takes_it_once_and_knows_it_again(tmp_path: Path, engine: docker.DockerClient) -> None:
    layout = Layout(tmp_path / "store")
    index = make_image(layout, NAME, content=b"print('into the engine')\n")
    told: list[str] = []
    try:
        made = into_engine(engine, layout, NAME, AMD64, owner=OWNER, tell=told.append)
        manifest = layout.read_json(layout.read_json(index.digest)["manifests"][0]["digest"])
        assert made == manifest["config"]["digest"]
        assert engine.images.get(OURS).id == made
        assert not [tag for tag in engine.images.get(made).tags if "127.0.0.1" in tag]
        layout.delete(manifest["layers"][0]["digest"])
        assert into_engine(engine, layout, NAME, AMD64, owner=OWNER, tell=told.append) == made
        assert len(told) == 1
    finally:
        engine.images.remove(OURS, force=True)


def test_an_image_that_is_not_there_for_the_platform(tmp_path: Path, engine: docker.DockerClient) -> None:
    layout = Layout(tmp_path / "store")
    make_image(layout, NAME, platforms=("linux/arm64",))
    for name in (NAME, "acme/nothing:1"):
        with pytest.raises(ImageError) as refused:
            into_engine(engine, layout, name, AMD64, owner=OWNER, tell=lambda _line: None)
        assert refused.value.code == "FL6106"


def test_an_engine_that_is_gone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    make_image(layout, NAME)
    client = docker.DockerClient(base_url=f"unix://{tmp_path}/no.sock", version="1.41")
    with pytest.raises(ImageError) as refused:
        into_engine(client, layout, NAME, AMD64, owner=OWNER, tell=lambda _line: None)
    assert refused.value.code == "FL6126"
    assert refused.value.transient
    client.close()


def test_an_engine_that_goes_away_in_the_middle(tmp_path: Path, engine: docker.DockerClient) -> None:
    """It is told, and what was begun is finished when the engine is back."""
    layout = Layout(tmp_path / "store")
    make_image(layout, NAME, content=b"print('twice')\n")
    cable = Cable(open_engine())
    client = docker.DockerClient(base_url=cable.host)
    try:
        with pytest.raises(ImageError) as refused:
            into_engine(client, layout, NAME, AMD64, owner=OWNER, tell=lambda _line: cable.pull())
        assert (refused.value.code, refused.value.transient) == ("FL6126", True)
        cable.plug()
        made = into_engine(client, layout, NAME, AMD64, owner=OWNER, tell=lambda _line: None)
        assert engine.images.get(OURS).id == made
    finally:
        cable.throw_away()
        client.close()
        engine.images.remove(OURS, force=True)


def test_what_the_store_has_no_more_goes_and_what_others_have_or_run_stays(tmp_path: Path, engine: docker.DockerClient) -> None:
    layout = Layout(tmp_path / "store")
    names = {what: f"acme/{what}:1" for what in ("kept", "gone", "runs", "shared")}
    for what, name in names.items():
        make_image(layout, name, content=f"print({what!r})\n".encode())
        into_engine(engine, layout, name, AMD64, owner=OWNER, tell=lambda _line: None)
    into_engine(engine, layout, names["shared"], AMD64, owner="another", tell=lambda _line: None)
    container = engine.containers.create(f"{PREFIX}{OWNER}/{names['runs']}", command=["true"])
    ours = {what: f"{PREFIX}{OWNER}/{name}" for what, name in names.items()}
    try:
        wanted = sorted([ours["gone"], ours["shared"]])
        assert sorted(remove_from_engine(engine, OWNER, {names["kept"]}, dry_run=True)) == wanted
        assert engine.images.get(ours["gone"])
        assert sorted(remove_from_engine(engine, OWNER, {names["kept"]}, dry_run=False)) == wanted
        for name in wanted:
            with pytest.raises(docker.errors.ImageNotFound):
                engine.images.get(name)
        assert engine.images.get(f"{PREFIX}another/{names['shared']}")
        assert remove_from_engine(engine, OWNER, {names["kept"]}, dry_run=False) == []
    finally:
        container.remove(force=True)
        for owner in (OWNER, "another"):
            remove_from_engine(engine, owner, (), dry_run=False)
