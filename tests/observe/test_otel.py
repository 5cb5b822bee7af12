"""Spans as OpenTelemetry's own SDK hands them to an exporter, and as a collector gets them by OTLP over HTTP."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from asyncrl.observe import otel
from asyncrl.observe.trace import Span, TraceFile

memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
SPANS = [Span("steps", "fetch", 10.0, 1.5), Span("push", "stage", 11.0, 4.0)]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def test_a_step_of_an_actor_is_a_trace(tmp_path: Path) -> None:
    exporter = memory.InMemorySpanExporter()
    file = TraceFile(tmp_path / "trace.json", otel.OpenTelemetry("a-run", exporter))
    file.write("trainer", SPANS)
    file.write("generator-0", [])
    file.write("trainer", SPANS[:1])
    file.close()
    first, second, over, *rest = exporter.get_finished_spans()
    assert [(s.name, s.start_time, s.end_time) for s in (first, second, over)] == [
        ("fetch", 10_000_000_000, 11_500_000_000),
        ("stage", 11_000_000_000, 15_000_000_000),
        ("trainer", 10_000_000_000, 15_000_000_000),
    ]
    assert first.parent.span_id == second.parent.span_id == over.context.span_id
    assert over.parent is None
    assert second.attributes["asyncrl.lane"] == "push"
    assert over.resource.attributes["service.name"] == "asyncrl"
    assert over.resource.attributes["asyncrl.run"] == "a-run"
    assert [s.name for s in rest] == ["fetch", "trainer"]
    assert rest[1].context.trace_id != over.context.trace_id


def test_without_an_endpoint_nothing_is_sent() -> None:
    assert otel.from_environment("a-run") is None


def test_a_collector_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        sent = otel.from_environment("a-run")
        assert sent is not None
        sent.write("trainer", SPANS)
        sent.close()
        server.shutdown()
    [(path, body)] = got
    assert path == "/v1/traces"
    assert all(word in body for word in (b"trainer", b"fetch", b"stage", b"a-run"))


def test_a_collector_that_is_not_there_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    sent = otel.from_environment("a-run")
    assert sent is not None
    for _ in range(2):
        sent.write("trainer", SPANS)
        sent._provider.force_flush()
    sent.close()
    assert caplog.text.count("spans are lost on the way to OpenTelemetry's collector") == 1
    assert len(caplog.records) == 1
