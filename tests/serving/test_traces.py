"""A request's spans: one for itself, one a stage, under the caller's own."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pipelines.serving.request import FULL, Answer, Ask, Release
from pipelines.serving.traces import Traces
from pipelines.window import utc

ABOUT = {"method": "GET", "route": "/v1/trending", "code": 200, "request_id": "r"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_stages_lie_within_their_request_which_lies_under_the_caller() -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    now = utc("2025-03-01T12:00:00")
    stages = {"store": 1.0, "rank": 3.0, "full": 4.5, "all": 5.0}
    answer = Answer(Ask("trending", "r", now), (), FULL, Release(7, "abc"), ("store: slow",), stage_ms=stages)
    Traces(provider, now=lambda: now).told({"traceparent": PARENT}, ABOUT, 0.010, answer)
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert set(spans) == {"store", "rank", "GET /v1/trending"}
    whole, end = spans["GET /v1/trending"], int(now.timestamp() * 1e9)
    assert (whole.start_time, whole.end_time) == (end - 10_000_000, end)
    assert f"{whole.context.trace_id:032x}" == PARENT.split("-")[1]
    assert (whole.attributes or {})["version"] == 7
    assert [event.name for event in whole.events] == ["degraded"]
    assert (spans["store"].start_time, spans["rank"].start_time, spans["rank"].end_time) == (end - 4_000_000, end - 3_000_000, end)
    assert {span.parent.span_id for name, span in spans.items() if span.parent and name != whole.name} == {whole.context.span_id}
