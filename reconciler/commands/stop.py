"""`flops stop`: nothing of a state directory runs any more, but what a reconciler that still works looks after."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from reconciler.engine import open_engine


def stop_all(repo: Path, state: Path | None, console: Console) -> None:
    """Stop every service, then remove what is left in the container engine. Raises ServingError when that does not answer."""
    engine = open_engine(repo, state)
    left = engine.remove_leftovers()  # while the inventory still says that there may be some
    for service in engine.runtime.observe():
        engine.runtime.remove(service.name)
        console.print(f"stopped {service.name}", highlight=False, markup=False)
    for name in (*left, *engine.remove_leftovers()):
        console.print(f"removed {name}", highlight=False, markup=False)
