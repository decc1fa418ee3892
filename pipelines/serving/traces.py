"""OpenTelemetry traces of requests, where they are asked for (`reloop serve --traces`, extra `otel`): a span a request, one below it a stage.

Stages are timed by the service anyway, so a request pays for its spans only once it is answered. Their lengths are as measured;
they are laid one after the other, the last one ending with the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from pipelines.errors import StateError
from pipelines.serving.clock import wall
from pipelines.serving.request import Answer

TOTALS: Final = frozenset({"full", "all"})  # of stages that have spans of their own


class Traces:
    """Sends the spans of a process.

    Args:
        provider: an OpenTelemetry tracer provider.
        now: the present, UTC; spans carry the time of day.
    """

    def __init__(self, provider: Any, *, now: Callable[[], datetime] = wall) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._now = provider, now
        self._tracer = provider.get_tracer("reloop.serving")
        self._parent = TraceContextTextMapPropagator()

    @classmethod
    def sending(cls) -> Traces:
        """Return traces that go where the OTEL_EXPORTER_OTLP_* variables say, in batches, in a thread of their own.

        Raises:
            StateError: the extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise StateError("--traces", found="no OpenTelemetry", allowed="the extra `otel`", hint="pip install 'reloop[otel]'") from error
        provider = TracerProvider(resource=Resource.create({"service.name": "reloop"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def told(self, headers: Mapping[str, str], about: Mapping[str, Any], seconds: float, answer: Answer | None) -> None:
        """Send the spans of a request that is over.

        Args:
            headers: of the request; a `traceparent` among them is the parent.
            about: attributes of its span: method, route, code, request_id.
            seconds: that it took.
        """
        end = int(self._now().timestamp() * 1e9)
        begin = end - int(seconds * 1e9)
        context = self._parent.extract(dict(headers))
        span = self._tracer.start_span(f"{about['method']} {about['route']}", context=context, start_time=begin, attributes=dict(about))
        if answer is not None:
            span.set_attributes({"rung": answer.rung, "variant": answer.variant, "version": answer.release.version or 0})
            for line in answer.degraded:
                span.add_event("degraded", {"why": line}, timestamp=end)
            self._stages(span, answer, begin, end)
        span.end(end_time=end)

    def _stages(self, span: Any, answer: Answer, begin: int, end: int) -> None:
        from opentelemetry.trace import set_span_in_context

        stages = {stage: int(ms * 1e6) for stage, ms in answer.stage_ms.items() if stage not in TOTALS}
        at, inside = max(begin, end - sum(stages.values())), set_span_in_context(span)
        for stage, length in stages.items():
            child = self._tracer.start_span(stage, context=inside, start_time=at)
            at += length
            child.end(end_time=at)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
