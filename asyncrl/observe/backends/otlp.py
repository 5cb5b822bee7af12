"""OpenTelemetry's exporter, which warns once and not at every batch. Endpoint, headers and timeout: its environment."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)


def exporter(protocol: str) -> SpanExporter:
    """`protocol`: grpc or http/protobuf, as in OTEL_EXPORTER_OTLP_PROTOCOL."""
    kind = "grpc" if protocol == "grpc" else "http"
    module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{kind}.trace_exporter")
    logging.getLogger(module.__name__).setLevel(logging.CRITICAL)
    return Once(module.OTLPSpanExporter())


class Once(SpanExporter):
    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter, self._failed = exporter, False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result, reason = self._exporter.export(spans), "it did not take them"
        except Exception as error:
            result, reason = SpanExportResult.FAILURE, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        if result is not SpanExportResult.SUCCESS and not self._failed:
            self._failed = True
            logger.warning("spans are lost on the way to OpenTelemetry's collector: %s", reason)
        return result

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        self._exporter.shutdown()
