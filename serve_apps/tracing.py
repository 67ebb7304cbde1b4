"""A span per request, sent over OTLP; off unless the settings name an endpoint.

A span is made after its answer, with the times that were taken anyway: no context travels through the request, so what
traces cost where they are off is one comparison. Attributes are those of OpenTelemetry's HTTP semantic conventions; no
query, no body and no header goes in, since those hold ids, values and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from featurelib.errors import MissingDriver
from featurelib.settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_NS = 1_000_000_000
_SERVER_ERROR = 500
_CARRIED = (b"traceparent", b"tracestate")


class Answered(NamedTuple):
    """A request that was answered. ``ended_ns`` is of the wall clock; ``route`` is the pattern, never the raw path."""

    method: str
    route: str
    status: int
    correlation_id: str
    ended_ns: int
    seconds: float


class Traces:
    """Makes spans and hands them to a background thread that sends them; a collector that is away costs spans only."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("thyme")
        self._propagator = TraceContextTextMapPropagator()

    def answered(self, request: Answered, headers: Mapping[bytes, bytes]) -> None:
        """Record one request; below the caller's span where its headers name one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {name.decode(): headers[name].decode("latin-1") for name in _CARRIED if name in headers}
        span = self._tracer.start_span(
            f"{request.method} {request.route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=request.ended_ns - int(request.seconds * _NS),
            attributes={
                "http.request.method": request.method,
                "http.route": request.route,
                "http.response.status_code": request.status,
                "thyme.correlation_id": request.correlation_id,
            },
        )
        if request.status >= _SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR))
        span.end(request.ended_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def open_traces(settings: TracingSettings) -> Traces | None:
    """Traces as the settings say; ``None`` where they name no endpoint.

    Raises:
        MissingDriver: an endpoint is named, but the extra ``tracing`` is not installed.
    """
    if not settings.otlp_endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise MissingDriver("opentelemetry", "tracing") from None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        resource=Resource.create({"service.name": "thyme"}),
    )
    endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Traces(provider)
