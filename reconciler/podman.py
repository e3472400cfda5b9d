"""Podman speaks Docker's API, nearly: where it does not, whoever talks to an engine asks here which one it is."""

from __future__ import annotations

from typing import Any


def is_podman(client: Any) -> bool:
    """Whether Podman answers; `client` is one of Docker's SDK. Raises what the SDK raises.

    By a header of the ping: its version, as Docker's API asks for it, takes Podman seconds on a busy machine.
    """
    return "Libpod-API-Version" in client.api.get(f"{client.api.base_url}/_ping").headers
