"""Traces in OpenTelemetry's terms: one per request, joined by router, home and prefill worker.

Off unless the configuration, or OpenTelemetry's own environment variables, name a collector; a span
then costs what the API's no-op costs. Contexts travel as W3C `traceparent`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from triptych.config import TracingConfig
from triptych.errors import ConfigError

Value = str | bool | int | float
Attributes = Mapping[str, Value]

_PROPAGATOR = TraceContextTextMapPropagator()
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def setup_tracing(config: TracingConfig, process: str) -> Callable[[], None]:
    """Spans of this process go to the collector from now on; what is returned sends what is left.

    Raises ConfigError when OpenTelemetry's SDK is not installed.
    """
    if config.endpoint is None and not any(map(os.environ.get, _VARIABLES)):
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        raise ConfigError(
            f"tracing.endpoint: needs OpenTelemetry's SDK ({error}); "
            'install it with `pip install "triptych-runtime[tracing]"`'
        ) from error
    resource = Resource.create({"service.name": "triptych", "service.instance.id": process})
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(config.sample), resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.endpoint)))
    trace.set_tracer_provider(provider)
    return provider.shutdown


@contextlib.contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    parent: str | None = None,
    serves: bool = False,
) -> Iterator[Span]:
    """The block is a span; tasks that are started in it belong to it. An error ends it as failed.

    `parent`: a `traceparent` from elsewhere; None: whatever span this is inside of. `serves`: it
    answers a call.
    """
    with _tracer().start_as_current_span(
        name,
        context=None if parent is None else _PROPAGATOR.extract({"traceparent": parent}),
        kind=SpanKind.SERVER if serves else SpanKind.INTERNAL,
        attributes=attributes,
    ) as found:
        yield found


@contextlib.contextmanager
def detached_span(name: str, attributes: Attributes, *, parent: str) -> Iterator[Span]:
    """For asynchronous generators, whose blocks may be left from another task: nothing is current
    in it.
    """
    found = _tracer().start_span(
        name,
        context=_PROPAGATOR.extract({"traceparent": parent}),
        kind=SpanKind.SERVER,
        attributes=attributes,
    )
    try:
        yield found
    except Exception as error:
        found.record_exception(error)
        found.set_status(StatusCode.ERROR, str(error))
        raise
    finally:
        found.end()


def add_span(name: str, began_s: float, ended_s: float, attributes: Attributes) -> None:
    """Inside of the current one, of something that is over. Unix seconds."""
    if not trace.get_current_span().is_recording():
        return
    found = _tracer().start_span(name, attributes=attributes, start_time=int(began_s * 1e9))
    found.end(int(max(began_s, ended_s) * 1e9))


def traceparent() -> str:
    """Of the current span; "" where nothing is traced."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context.get_current())
    return carrier.get("traceparent", "")


def _tracer() -> trace.Tracer:
    return trace.get_tracer("triptych")
