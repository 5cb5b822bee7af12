"""A run's spans for OpenTelemetry, besides trace.json: sent by OTLP if OTEL_EXPORTER_OTLP_ENDPOINT is set.

What an actor did in a step is a trace of its own, so that none grows with the run: a span with the actor's name over
the others. The exporter has a thread of its own; one that fails is warned about once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from asyncrl.observe import backends
from asyncrl.observe.trace import Span

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class OpenTelemetry:
    """`exporter`: one of the SDK's SpanExporters."""

    def __init__(self, run: str, exporter: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "asyncrl"), "asyncrl.run": run})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("asyncrl")

    def write(self, actor: str, spans: Sequence[Span]) -> None:
        """What an actor did since the call before."""
        from opentelemetry.trace import set_span_in_context

        if not spans:
            return
        start_s = min(span.start_s for span in spans)
        end_s = max(span.start_s + span.duration_s for span in spans)
        over = self._tracer.start_span(actor, start_time=_ns(start_s))
        inside = set_span_in_context(over)
        for span in spans:
            lane = {"asyncrl.lane": span.lane}
            child = self._tracer.start_span(span.name, inside, start_time=_ns(span.start_s), attributes=lane)
            child.end(_ns(span.start_s + span.duration_s))
        over.end(_ns(end_s))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def from_environment(run: str) -> OpenTelemetry | None:
    """None unless an endpoint is set, and the packages are there."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "http/protobuf")
    try:
        exporter = backends.make("otlp", "exporter", protocol)
    except ImportError as error:
        logger.warning("no spans are sent to OpenTelemetry: %s; pip install 'asyncrl[otel]'", error)
        return None
    return OpenTelemetry(run, exporter)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
