"""Flower's SuperLink as a service of ours; run by file name, never imported.

The app is Flower's own. As shipped it serves everything on one port, without an account: whoever reaches the port of the
nodes may also start runs and register keys. So it is served twice: over TLS for the network, where only the Fleet API (which
Flower authenticates by the nodes' keys) is let through, and on a loopback port for the reconciler, which has to show the
operator's secret. A key that is not allowed is refused by Flower and written down here.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import logging
import sys
import time
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

OPERATOR_HEADER = "x-flops-operator"
REFUSED, ALLOWED, SECRET = "refused.jsonl", "allowed.json", "operator.secret"
_FLEET, _HEALTH, _KEY_HEADER = "/v1/fleet/", "/health", "flwr-public-key"
_REFUSED_LIMIT = 256 * 1024
_BODY_LIMIT = 64 << 20


def main() -> None:
    """Serve the federation whose files are in the working directory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True, help="HOST:PORT of the Fleet API")
    parser.add_argument("--port", type=int, required=True, help="loopback port of the operator")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    secret = Path(SECRET).read_text(encoding="ascii").strip()
    from reconciler.nodes.superlink_fast import FastCalls

    logging.getLogger("flwr").setLevel(logging.WARNING)  # a line for each request would be megabytes a day

    asyncio.run(_serve(FastCalls(_superlink_app()), host.strip("[]"), int(port), arguments.port, secret))


def _superlink_app() -> Any:
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    config = SuperLinkLifespanConfig(
        control_address="", health_server_address=None, host="127.0.0.1", port=0, insecure=True, certificates=None,
        superexec_auth_secret=None, authn_plugin=load_control_authn_plugin(), event_log_plugin=None,
        fleet_event_log_plugin=None, enable_event_log=False, artifact_provider=None, enable_supernode_auth=True,
        fleet_api_type="grpc-rere", fleet_api_address=None, simulation=False, ssl_ca_certfile=None, ssl_certfile=None,
        ssl_keyfile=None, database=":flwr-in-memory:", isolation="process", runtime_dependency_install=False,
    )  # fmt: skip
    app = create_app(config, SuperLinkLifespan)
    _register(app.state.linkstate_factory.state())
    return app


def _register(state: Any) -> None:
    """The state is in memory (it costs a seventh of the time of Flower's SQLite): the allowed keys are read at each start."""
    from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID

    path = Path(ALLOWED)
    keys = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, key in keys.items():
        state.create_node(
            owner_aid=NOOP_FLWR_AID, owner_name=NOOP_ACCOUNT_NAME, public_key=key.encode(), heartbeat_interval=30, name=name
        )


async def _serve(app: Any, host: str, port: int, operator_port: int, secret: str) -> None:
    import uvicorn

    common: dict[str, Any] = {"log_level": "warning", "access_log": False, "timeout_keep_alive": 75, "timeout_graceful_shutdown": 2}
    operator = uvicorn.Server(uvicorn.Config(OperatorOnly(app, secret), host="127.0.0.1", port=operator_port, **common))
    fleet = uvicorn.Server(
        uvicorn.Config(
            FleetOnly(app), host=host, port=port, ssl_certfile="server.pem", ssl_keyfile="server.key", lifespan="off",
            **common,
        )
    )  # fmt: skip
    tasks = [asyncio.create_task(operator.serve()), asyncio.create_task(fleet.serve())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    operator.should_exit = fleet.should_exit = True
    await asyncio.gather(*tasks)


class OperatorOnly:
    """Lets through who shows the secret; anybody may ask for the health."""

    def __init__(self, app: Any, secret: str) -> None:
        self._app = app
        self._secret = secret.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] != _HEALTH:
            shown = dict(scope["headers"]).get(OPERATOR_HEADER.encode(), b"")
            if not hmac.compare_digest(shown, self._secret):
                await _answer(send, 401)
                return
        await self._app(scope, receive, send)


class FleetOnly:
    """Lets the Fleet API through, in bodies of a size that can be meant, and writes refused keys down."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._told: dict[tuple[str, str], float] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if not scope["path"].startswith(_FLEET):
            await _answer(send, 404)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            await _answer(send, 411)
            return
        if int(length) > _BODY_LIMIT:
            await _answer(send, 413)
            return

        async def watched(message: Any) -> None:
            # 401: no proof of a key, or a key that is known no more; otherwise Flower tells by the failed activation.
            if message["type"] == "http.response.start" and (
                message["status"] == 401 or (scope["path"].endswith("/activate-node") and message["status"] >= 400)
            ):
                self._refused(scope, headers)
            await send(message)

        await self._app(scope, receive, watched)

    def _refused(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        try:
            public = b64decode(headers.get(_KEY_HEADER.encode(), b""), validate=True)
        except ValueError:
            public = b""
        import base64

        shown = "SHA256:" + base64.b64encode(sha256(public).digest()).decode().rstrip("=") if public else "no key"
        client = str((scope.get("client") or ("?",))[0])
        now = time.time()
        # A node that is refused comes again and again: one line in ten minutes is enough, and many keys fill no disk.
        if now - self._told.get((shown, client), 0.0) < 600:
            return
        if len(self._told) > 1000:
            self._told.clear()
        self._told[shown, client] = now
        print(f"FL5803 refused a node: key {shown} from {client}", file=sys.stderr, flush=True)
        path = Path(REFUSED)
        if path.is_file() and path.stat().st_size > _REFUSED_LIMIT:
            path.replace(f"{REFUSED}.1")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": now, "key": shown, "from": client}) + "\n")


async def _answer(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    main()
