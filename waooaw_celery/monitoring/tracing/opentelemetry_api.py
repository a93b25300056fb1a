"""OpenTelemetry's API, where the process has loaded it and set up its SDK. This package never loads it by itself.

Each span has the names of OpenTelemetry's semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). Names of agents stand under ``waooaw.``.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, NamedTuple

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.trace_context import TraceContext, trace_of

logger = get_logger(__name__)

#: Name and version of the instrumentation scope.
SCOPE = "waooaw_celery"
#: The broker as the conventions name it, by Kombu's name.
SYSTEMS = {"redis": "redis", "amqp": "rabbitmq"}
_INSTRUMENTATION = "opentelemetry.instrumentation.celery"


class Api(NamedTuple):
    """What spans are made with.

    Attributes:
        trace: the module ``opentelemetry.trace``.
        propagate: the module ``opentelemetry.propagate``.
        context: the module ``opentelemetry.context``.
        tracer: the tracer of this package.
        beside: whether ``opentelemetry-instrumentation-celery`` makes the spans, and we only add attributes.
    """

    trace: Any
    propagate: Any
    context: Any
    tracer: Any
    beside: bool


_failed = False
#: The provider of the last call, and what its spans are made with: each send asks for it.
_last: tuple[Any, Api | None] = (None, None)


def api() -> Api | None:
    """Return what spans are made with. None: the process has not set up an SDK of OpenTelemetry."""
    global _last
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not hasattr(trace, "ProxyTracerProvider"):  # it may be half imported by another thread
        return None
    provider = trace.get_tracer_provider()
    known, found = _last
    if known is not provider:
        found = _made_with(trace, provider)
        _last = provider, found
    if found is not None and found.beside != _is_instrumented():
        found = found._replace(beside=not found.beside)
        _last = provider, found
    return found


def _made_with(trace: Any, provider: Any) -> Api | None:
    """Return what spans of a provider are made with; None: it makes none."""
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    from opentelemetry import context, propagate

    return Api(trace, propagate, context, provider.get_tracer(SCOPE), beside=False)


def current_trace(found: Api | None) -> dict[str, str]:
    """Return the trace headers of what runs now: those of OpenTelemetry, of Sentry, or of both.

    Args:
        found: OpenTelemetry's API, or None.
    """
    headers: dict[str, str] = {}
    if found is not None:
        found.propagate.inject(headers)
    sentry = sys.modules.get("sentry_sdk")
    if sentry is not None and hasattr(sentry, "get_baggage") and sentry.is_initialized():
        headers["sentry-trace"] = sentry.get_traceparent() or ""
        headers["baggage"] = ",".join(filter(None, (headers.get("baggage"), sentry.get_baggage())))
    return trace_of(headers) or {}  # what a receiver would refuse is not sent


def extracted(found: Api, trace: TraceContext | None) -> Any:
    """Return the context of OpenTelemetry, with span and baggage, that a message's trace headers carry."""
    return found.propagate.extract(dict(trace or {}), context=found.context.Context())


def span_context(found: Api, trace: TraceContext | None) -> Any:
    """Return the span context in trace headers, or None."""
    context = found.trace.get_current_span(extracted(found, trace)).get_span_context()
    return context if context.is_valid else None


def report_failure() -> None:
    """Log the error of OpenTelemetry, an exporter or a sampler that is being handled; with a traceback once.

    What traces must never fail what is traced: a message that was sent would be sent again.
    """
    global _failed
    logger.log(
        logging.DEBUG if _failed else logging.ERROR,
        "OpenTelemetry has raised an error: messages go on, and their spans may be missing",
        exc_info=True,
        extra={"action": "tracing_failed"},
    )
    _failed = True


def _is_instrumented() -> bool:
    module = sys.modules.get(_INSTRUMENTATION)
    if module is None:
        return False
    instrumentor = getattr(module, "CeleryInstrumentor", None)
    return instrumentor is not None and bool(instrumentor().is_instrumented_by_opentelemetry)
