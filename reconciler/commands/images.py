"""`flops images`, `flops gc`, `flops registry serve`: the image store, for people and machines."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.filesize import decimal

from reconciler.digests import short
from reconciler.engine import Engine, image_layout, open_engine
from reconciler.images.collect import collect, list_images, set_pin
from reconciler.images.layout import Layout
from reconciler.terminal import Listing, show

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def show_images(repo: Path, state: Path | None, console: Console, project: str, *, as_json: bool) -> int:
    """Print what the store has; exit code 0."""
    engine = open_engine(repo, state)
    found = [image for image in list_images(_layout(engine), in_use=running(engine)) if project in image.project]
    if as_json:
        console.out(orjson.dumps([asdict(image) for image in found], option=orjson.OPT_INDENT_2).decode(), highlight=False)
        return 0
    table = Listing("image", "digest", "platforms", "size", "shared", "created", "", right=("size", "shared"))
    for image in found:
        marks = ", ".join(word for word, true in (("in use", image.in_use), ("pinned", image.pinned)) if true)
        platforms = ", ".join(platform.removeprefix("linux/") for platform in image.platforms)
        cells = [image.name, short(image.digest.removeprefix("sha256:")), platforms, decimal(image.size), decimal(image.shared)]
        table.add_row(*cells, image.created, marks)
    show(console, table)
    return 0


def pin_images(repo: Path, state: Path | None, console: Console, names: list[str], *, pinned: bool) -> None:
    """Keep images for good, or let them go."""
    layout = _layout(open_engine(repo, state))
    for name in names:
        set_pin(layout, name, pinned=pinned)
        console.print(f"{'pinned' if pinned else 'no longer pinned'}: {name}", highlight=False, markup=False)


def collect_images(
    repo: Path, state: Path | None, console: Console, *, keep_last: int, grace: float, dry_run: bool, as_json: bool
) -> int:  # fmt: skip
    """Take what nobody needs, and say what it was."""
    engine = open_engine(repo, state)
    done = collect(_layout(engine), keep_last=keep_last, in_use=running(engine), grace=grace, dry_run=dry_run)
    left = [*engine.remove_leftovers(dry_run=dry_run), *engine.remove_engine_images(dry_run=dry_run)]
    if as_json:
        console.out(orjson.dumps({**asdict(done), "containers": left}, option=orjson.OPT_INDENT_2).decode(), highlight=False)
        return 0
    would = "would remove" if dry_run else "removed"
    for name in (*done.removed, *left):
        console.print(f"{would} {name}", highlight=False, markup=False)
    console.print(f"{would} {done.blobs} blobs, {decimal(done.freed)}; {len(done.kept)} images stay", highlight=False)
    return 0


def serve_registry(repo: Path, state: Path | None, console: Console, *, host: str, port: int) -> None:
    """Serve the store until interrupted."""
    from reconciler.images.serve import run_server

    def ready(address: str) -> None:
        console.print(f"pull from {address}/CUSTOMER/PROJECT:TAG", highlight=False, markup=False, soft_wrap=True)
        if not _is_loopback(host):
            console.print("everybody who reaches this address can pull every image, without a password", style="yellow")

    run_server(_layout(open_engine(repo, state)), host, port, ready)


def running(engine: Engine) -> set[str]:
    """Digests of the images that services run from, by what their labels say."""
    found: set[str] = set()
    for service in engine.runtime.observe():
        for value in service.labels.values():
            found.update(_DIGEST.findall(str(value)))
    return found


def _layout(engine: Engine) -> Layout:
    return Layout(image_layout(engine.state))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
