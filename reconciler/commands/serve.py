"""`flops serve`: the loop, with everything that wakes it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from reconciler.console import CycleConsole
from reconciler.controller import Controller
from reconciler.engine import open_engine, read_config
from reconciler.events import Listener, Observer
from reconciler.logs import JsonLog
from reconciler.publishing import Publisher
from reconciler.redaction import learn
from reconciler.running import tidy
from reconciler.secrets import resolve
from reconciler.spec.operator import WebConfig
from reconciler.telemetry import open_telemetry
from reconciler.triggers.files import RefWatch, folders_to_watch
from reconciler.web.access import open_access
from reconciler.web.app import make_app
from reconciler.web.metrics import Metrics
from reconciler.web.server import WebServer, checked_address
from reconciler.web.webhooks import checked_secret


def serve(repo: Path, state: Path | None, console: Console, *, listen: str, as_json: bool, verbose: bool) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP says "look".

    `web.webhook_secret` of flops.yaml or `FLOPS_WEBHOOK_SECRET` lets webhooks in; `web.tokens` or `FLOPS_WEB_TOKEN` is needed to
    listen off loopback, and asked for by everything but health then.
    """
    web = read_config(repo).web
    secret = _webhook_secret(web)
    access = open_access(web.tokens, os.environ.get("FLOPS_WEB_TOKEN", ""), environ=os.environ)
    address = checked_address(listen, closed=access.closed) if listen else None
    engine = open_engine(repo, state)
    with ExitStack() as stack:
        engine.telemetry = open_telemetry(os.environ, engine.config.instance)
        stack.callback(engine.telemetry.close)
        screen: Listener = (
            JsonLog(engine.config.instance) if as_json else stack.enter_context(CycleConsole(console, verbose=verbose))
        )
        metrics = Metrics()
        observer = Observer(engine.journal, (screen, metrics))
        tidy(engine, observer)
        publisher = Publisher(engine.status, lambda text: observer.tell("", "warning", text))
        controller = Controller(engine, observer, publisher=publisher)
        metrics.watch(controller, publisher, time.monotonic)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: controller.stop())
        signal.signal(signal.SIGHUP, lambda *_: controller.wake())
        watch = RefWatch(folders_to_watch(engine.repo.git_dir, engine.repo.remote_url), engine.config.branch, controller.wake)
        stack.callback(watch.close)
        if watch.error:
            observer.tell("", "warning", f"file events cannot be had, so commits are seen by the poll alone: {watch.error}")
        if address:
            app = make_app(controller, engine.journal, metrics, branch=engine.config.branch, secret=secret, access=access)
            server = stack.enter_context(WebServer(app, *address))
            observer.tell("", "serve", f"webhooks, metrics and health at {address[0]}:{server.port}")
        observer.tell("", "serve", f"serving {engine.config.branch} as instance {engine.config.instance}")
        controller.serve()
        observer.tell("", "serve", "stopped; services stay up")
    return 0


def _webhook_secret(web: WebConfig) -> bytes | None:
    """The secret of flops.yaml, else that of the environment; None without one. Raises WebError, SecretError."""
    given = (
        resolve(web.webhook_secret, environ=os.environ).reveal() if web.webhook_secret else os.environ.get("FLOPS_WEBHOOK_SECRET")
    )
    if given is None:
        return None
    learn(given.strip())
    return checked_secret(given)
