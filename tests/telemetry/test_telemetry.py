"""Traces reach a real collector over HTTP; without one nothing is imported; a collector that is away costs no work."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from reconciler.budget import Budget
from reconciler.errors import ServingError
from reconciler.events import Observer
from reconciler.execution import Ending, execute
from reconciler.journal import Event
from reconciler.logs import JsonLog
from reconciler.plan import Action, Change, ProjectPlan, Stage, Verb
from reconciler.redaction import learn
from reconciler.running import StagesExecutor
from reconciler.stages import Outcome
from reconciler.telemetry import Telemetry, open_telemetry
from tests.conftest import Repos
from tests.controller.looping import Looping


class Collector:
    """An OTLP collector that keeps what it got."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self) -> dict[str, Any]:
        """The spans by name."""
        found: dict[str, Any] = {}
        for path, headers, body in self.requests:
            assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            raw = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
            for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                about = {item.key: item.value.string_value for item in resource.resource.attributes}
                assert (about["service.name"], about["service.instance.id"]) == ("flops-gitops", "here")
                found |= {span.name: span for scope in resource.scope_spans for span in scope.spans}
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.endpoint)
    yield made
    made.close()


def attributes(span: Any) -> dict[str, str]:
    return {item.key: item.value.string_value or str(item.value.int_value) for item in span.attributes}


def work_once(repos: Repos, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, *fails: bool) -> tuple[str, list[Event]]:
    """A loop that looks, and the real executor with a stage that fails as often as said: what it logged, and its events."""
    loop = Looping(repos)
    loop.edit(loop.project("a"))
    loop.engine.telemetry = telemetry
    loop.step()
    view = loop.controller.view
    assert view is not None
    said = io.StringIO()
    executor = StagesExecutor(loop.engine, Observer(loop.engine.journal, (JsonLog("here", said),)))
    failing = iter(fails)

    def stage(_work: object) -> Outcome:
        if next(failing):
            raise ServingError("FL7010", "It does not take canary-0123456789.", cure="Wait.", transient=True)
        return Outcome("done", "done")

    monkeypatch.setattr("reconciler.stages.resolve.run", stage)
    plan = ProjectPlan("a", Change.TRAIN, "new", "d" * 64, (Action(Stage.RESOLVE, Verb.RUN, "new"),))
    item = view.projects["a"]
    item.plan = plan
    for _ in fails:
        executor(item, lambda: False)
    return said.getvalue(), loop.engine.journal.events("a")


def test_a_look_a_projects_work_and_its_stages(repos: Repos, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    learn("canary-0123456789")
    telemetry = open_telemetry(os.environ, "here")
    said, _ = work_once(repos, telemetry, monkeypatch, True, False)
    telemetry.close()
    spans = collector.spans()
    assert attributes(spans["look"])["flops.projects"] == "1"
    work, stage = spans["reconcile"], spans["stage resolve"]
    assert attributes(work) == {"flops.project": "a", "flops.digest": "d" * 12, "flops.attempt": "2", "flops.ending": "done"}
    assert stage.parent_span_id == work.span_id
    assert attributes(stage) == {"flops.project": "a", "flops.stage": "resolve", "flops.result": "done"}
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line["instance"] for line in lines} == {"here"}
    assert {line["digest"] for line in lines} == {"d" * 12}
    assert [line["attempt"] for line in lines] == sorted(line["attempt"] for line in lines)
    assert {line["attempt"] for line in lines} == {1, 2}
    assert {line["trace_id"] for line in lines if line["attempt"] == 2} == {work.trace_id.hex()}
    error = next(line for line in lines if line["kind"] == "error")
    assert (error["code"], error["level"]) == ("FL7010", "error")
    assert b"canary-0123456789" not in b"".join(body for _, _, body in collector.requests)
    assert "canary-0123456789" not in said


def test_a_collector_that_is_away_costs_no_work(repos: Repos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    telemetry = open_telemetry(os.environ, "here")
    said, events = work_once(repos, telemetry, monkeypatch, False)
    assert [event.kind for event in events][-1] == "stage"
    assert said
    telemetry.close()


def test_without_an_endpoint_nothing_of_it_is_loaded(repos: Repos, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(open_telemetry({}, "here")) is Telemetry
    assert type(open_telemetry({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, "here")) is Telemetry
    said, _ = work_once(repos, Telemetry(), monkeypatch, False)
    assert "trace_id" not in said
    code = "import sys, reconciler.commands.serve; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip() == "[]"


def test_stages_alone_need_no_telemetry() -> None:
    empty = ProjectPlan("a", Change.NONE, "nothing")
    assert execute(empty, None, None, Budget(1, 1)).ending is Ending.DONE  # type: ignore[arg-type]
