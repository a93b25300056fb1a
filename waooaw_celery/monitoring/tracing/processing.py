"""The span of the handling of a message, or of a batch of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.messages.trace_context import TraceContext, trace_of
from waooaw_celery.monitoring.tracing.attributes import request_attributes
from waooaw_celery.monitoring.tracing.opentelemetry_api import SYSTEMS, Api, api, extracted, span_context

#: The header of a retry with the span of the attempt before it.
PREVIOUS_ATTEMPT = "waooaw_previous_attempt"
#: The most messages of a batch whose spans are linked: OpenTelemetry's SDK keeps 128 links of a span.
MAX_LINKS = 128


@contextmanager
def processing_span(task: Any, request: Any, traces: Sequence[TraceContext | None]) -> Iterator[None]:
    """Make the span of a handler's call. While it runs, it is current, and the message's baggage applies.

    The span of the send is its parent, and is linked too, as the conventions ask for. Those of a batch are linked
    only. A retry is linked to the attempt before it.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
        traces: the trace contexts of the messages of a batch; empty: it is a single message.
    """
    found = api()
    if found is None:
        yield
        return
    headers: Mapping[str, Any] = request.headers or {}
    if found.beside:
        _describe(found, task, request, headers)
        yield
        return
    trace = None if traces else trace_of(headers)
    parent = extracted(found, trace)
    attributes: dict[str, Any] = {
        "messaging.system": SYSTEMS.get(task.app.driver, task.app.driver),
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": agent_queue(task.agent).name,
    }
    if traces:
        attributes |= {"messaging.batch.message_count": len(traces), "waooaw.to_agent": task.agent}
        attributes["waooaw.handler"] = task.handler
    else:
        attributes |= request_attributes(task, request, _envelope(headers))
    token = found.context.attach(parent)
    try:
        with found.tracer.start_as_current_span(
            f"process {task.agent}",
            context=parent,
            kind=found.trace.SpanKind.CONSUMER,
            attributes=attributes,
            links=_links(found, traces or [trace, _previous(headers)]),
            record_exception=False,  # the text of an error may quote a payload
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                _end(found, span, error)
                raise
    finally:
        found.context.detach(token)


def previous_attempt() -> dict[str, str]:
    """Return the header with which the next attempt is linked to the span of this one; empty: there is none."""
    found = api()
    if found is None or found.beside:
        return {}
    headers: dict[str, str] = {}
    found.propagate.inject(headers)
    return {PREVIOUS_ATTEMPT: headers["traceparent"]} if "traceparent" in headers else {}


def _previous(headers: Mapping[str, Any]) -> TraceContext | None:
    previous = headers.get(PREVIOUS_ATTEMPT)
    return {"traceparent": previous} if isinstance(previous, str) else None


def _links(found: Api, traces: Sequence[TraceContext | None]) -> list[Any]:
    contexts = [span_context(found, trace) for trace in traces[:MAX_LINKS] if trace]
    return [found.trace.Link(context) for context in contexts if context is not None]


def _end(found: Api, span: Any, error: BaseException) -> None:
    """Note how the attempt ended, without the text of its error."""
    if not span.is_recording():
        return
    if isinstance(error, Retry):
        span.set_attribute("waooaw.outcome", "retried")
        error = error.exc if isinstance(error.exc, BaseException) else error
    elif isinstance(error, Ignore | Reject):
        span.set_attribute("waooaw.outcome", type(error).__name__.lower())
        return
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(found.trace.StatusCode.ERROR)


def _describe(found: Api, task: Any, request: Any, headers: Mapping[str, Any]) -> None:
    """Give the span that ``opentelemetry-instrumentation-celery`` has made for this message our attributes."""
    span = found.trace.get_current_span()
    if span.is_recording():
        span.set_attributes(request_attributes(task, request, _envelope(headers)))


def _envelope(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    envelope = headers.get(ENVELOPE_HEADER)
    return envelope if isinstance(envelope, Mapping) else {}
