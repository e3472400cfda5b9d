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
from reconciler.engine import open_engine
from reconciler.events import Listener, Observer
from reconciler.logs import JsonLog
from reconciler.publishing import Publisher
from reconciler.running import tidy
from reconciler.triggers.files import RefWatch, folders_to_watch
from reconciler.web.app import make_app
from reconciler.web.metrics import Metrics
from reconciler.web.server import WebServer, checked_address
from reconciler.web.webhooks import checked_secret


def serve(repo: Path, state: Path | None, console: Console, *, listen: str, as_json: bool, verbose: bool) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP says "look".

    `FLOPS_WEBHOOK_SECRET` lets webhooks in; `FLOPS_WEB_TOKEN` is needed to listen off loopback, and asked for by metrics then.
    """
    token = os.environ.get("FLOPS_WEB_TOKEN", "")
    given = os.environ.get("FLOPS_WEBHOOK_SECRET")
    secret = checked_secret(given) if given is not None else None
    address = checked_address(listen, token) if listen else None
    engine = open_engine(repo, state)
    with ExitStack() as stack:
        screen: Listener = JsonLog() if as_json else stack.enter_context(CycleConsole(console, verbose=verbose))
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
            app = make_app(controller, metrics, branch=engine.config.branch, secret=secret, token=token)
            server = stack.enter_context(WebServer(app, *address))
            observer.tell("", "serve", f"webhooks, metrics and health at {address[0]}:{server.port}")
        observer.tell("", "serve", f"serving {engine.config.branch} as instance {engine.config.instance}")
        controller.serve()
        observer.tell("", "serve", "stopped; services stay up")
    return 0
