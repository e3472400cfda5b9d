"""A runtime in a folder of its own, and services that speak HTTP without a model."""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.runtimes.model import Service, ServiceSpec
from reconciler.runtimes.process import ProcessRuntime

SERVER = Path(__file__).with_name("server.py")


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[ProcessRuntime]:
    made = ProcessRuntime(tmp_path / "services")
    yield made
    for service in made.observe():
        made.remove(service.name)


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., ServiceSpec]:
    def make(say: str = "one", *flags: str, name: str = "demo", **changes: Any) -> ServiceSpec:
        settings: dict[str, Any] = {
            "health_path": "/health", "labels": {"flops.digest": say}, "start_timeout": 20.0, "health_interval": 0.1,
        }  # fmt: skip
        return ServiceSpec(name, (sys.executable, str(SERVER), "--say", say, *flags), tmp_path, **(settings | changes))

    return make


def get(address: str, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def observed(runtime: ProcessRuntime, name: str = "demo") -> Service:
    return next(service for service in runtime.observe() if service.name == name)
