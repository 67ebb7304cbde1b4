"""Traces as a collector gets them: over OTLP, to a real HTTP server."""

import gzip
import sys

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from featurelib.errors import MissingDriver
from featurelib.settings import TracingSettings
from serve_apps.tracing import open_traces
from tests.api.conftest import Platform
from tests.support.http_service import http_service

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET_ID = "rider-whose-id-is-nobodys-business"


def spans(collector):
    for request in collector.asked:
        body = gzip.decompress(request.body) if request.headers.get("Content-Encoding") == "gzip" else request.body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                yield from scope.spans


def attributes(span):
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def asked_of(settings, clock, tracing, *requests):
    """The spans a collector has after a platform answered these requests and stopped."""
    with http_service() as collector:
        collector.answers["POST /v1/traces"] = b""
        traced = settings.model_copy(update={"tracing": TracingSettings(otlp_endpoint=collector.url, **tracing)})
        platform = Platform(traced, clock)
        async with platform.application.running(), platform.client("reader") as client:
            for path, headers in requests:
                await client.get(path, headers=headers)
        platform.log.close()
        platform.registry.close()
        return sorted(spans(collector), key=lambda span: span.start_time_unix_nano)


async def test_a_request_is_a_span_below_its_callers(settings, clock):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Correlation-ID": "order-17"}
    (span,) = await asked_of(settings, clock, {}, (f"/query-runs/{SECRET_ID}", headers))
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.name == "GET /query-runs/{run_id}"
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.route": "/query-runs/{run_id}",
        "http.response.status_code": 404,
        "thyme.correlation_id": "order-17",
    }
    assert span.end_time_unix_nano > span.start_time_unix_nano
    assert SECRET_ID not in str(span)


async def test_what_comes_without_a_trace_is_sampled_and_what_comes_with_one_is_its_callers_choice(settings, clock):
    with_one = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    without = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    asked = (("/features", {}), ("/features", with_one), ("/features", without))
    found = await asked_of(settings, clock, {"sample_ratio": 0.0}, *asked)
    assert [span.parent_span_id.hex() for span in found] == [PARENT]


def test_without_an_endpoint_there_are_no_traces():
    assert open_traces(TracingSettings()) is None


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingDriver, match=r"thyme-on-ray\[tracing\]"):
        open_traces(TracingSettings(otlp_endpoint="http://127.0.0.1:1"))
