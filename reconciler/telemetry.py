"""Traces, where `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) says that somebody wants them: a span a look, a span a
project's work with one below it for each stage. The other `OTEL_*` variables mean what OpenTelemetry says.

Without an endpoint nothing of OpenTelemetry is imported. With one, spans leave in the background: a collector that is away, slow or
rude costs spans, and never work. No attribute has a secret in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from reconciler.redaction import mask

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Span(Protocol):
    """What is being done; `trace_id` is 32 hexadecimal digits, empty where nothing is traced."""

    @property
    def trace_id(self) -> str:
        """For logs, to find the trace by."""

    def set(self, name: str, value: str | int) -> None:
        """Add an attribute."""

    def fail(self, why: str) -> None:
        """It failed."""


class Telemetry:
    """No traces."""

    @contextmanager
    def span(self, _name: str, _attributes: Mapping[str, str | int] | None = None) -> Iterator[Span]:
        """A span while the body of a `with` runs; below the one that is open in this thread."""
        yield _NOTHING

    def close(self) -> None:
        """Send what is left."""


class _Nothing:
    trace_id = ""

    def set(self, name: str, value: str | int) -> None:
        pass

    def fail(self, why: str) -> None:
        pass


_NOTHING = _Nothing()


def open_telemetry(environ: Mapping[str, str], instance: str) -> Telemetry:
    """What the environment asks for: traces to an OTLP endpoint over HTTP, or none."""
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return Telemetry() if off or not any(environ.get(name) for name in _ENDPOINTS) else _Otlp(instance)


class _Otlp(Telemetry):
    def __init__(self, instance: str) -> None:
        # Half a second and a dozen megabytes: only for those who asked for it.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # The exporter logs each span that it could not send, with its traceback; that it is away is no trouble of ours.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        resource = Resource.create({SERVICE_NAME: "flops-gitops", SERVICE_INSTANCE_ID: instance})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("reconciler")

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, str | int] | None = None) -> Iterator[Span]:
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            made = _Traced(span)
            for key, value in (attributes or {}).items():
                made.set(key, value)
            try:
                yield made
            except BaseException as error:
                made.fail(type(error).__name__)
                raise

    def close(self) -> None:
        self._provider.shutdown()


class _Traced:
    def __init__(self, span: Any) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def set(self, name: str, value: str | int) -> None:
        self._span.set_attribute(name, mask(value) if isinstance(value, str) else value)

    def fail(self, why: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, mask(why)))
