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
from waooaw_celery.monitoring.tracing.opentelemetry_api import (
    SYSTEMS,
    Api,
    api,
    extracted,
    report_failure,
    span_context,
)

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
    span = ProcessingSpan()
    try:
        span.begin(task, request, traces)
    except Exception:  # noqa: BLE001 - it is logged, and the message is handled
        report_failure()
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            span.end(error)
        except Exception:  # noqa: BLE001 - it is logged, and the message was handled
            report_failure()


class ProcessingSpan:
    """The span that ``processing_span`` begins and ends."""

    def __init__(self) -> None:
        self._found: Api | None = None
        self._span: Any = None
        self._token: Any = None

    def begin(self, task: Any, request: Any, traces: Sequence[TraceContext | None]) -> None:
        """Begin it, and make it current, unless nothing traces here."""
        self._found = found = api()
        if found is None:
            return
        headers: Mapping[str, Any] = request.headers or {}
        if found.beside:
            _describe(found, task, request, headers)
            return
        parent = extracted(found, None if traces else trace_of(headers))
        self._span = span = _start(found, parent, task, request, headers, traces)
        self._token = found.context.attach(found.trace.set_span_in_context(span, parent))

    def end(self, error: BaseException | None) -> None:
        """End it, and note what the handler raised."""
        if self._found is None or self._span is None:
            return
        if self._token is not None:
            self._found.context.detach(self._token)
        if error is not None:
            _note(self._found, self._span, error)
        self._span.end()


def _start(
    found: Api,
    parent: Any,
    task: Any,
    request: Any,
    headers: Mapping[str, Any],
    traces: Sequence[TraceContext | None],
) -> Any:
    """Start the span. What is not sampled costs no more than the decision."""
    attributes: dict[str, Any] = {
        "messaging.system": SYSTEMS.get(task.app.driver, task.app.driver),
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": agent_queue(task.agent).name,
    }
    contexts = [span_context(found, trace) for trace in traces[:MAX_LINKS] if trace]
    if not traces:
        contexts = [found.trace.get_current_span(parent).get_span_context()]
        if (previous := headers.get(PREVIOUS_ATTEMPT)) is not None:
            contexts.append(span_context(found, {"traceparent": str(previous)}))
    span = found.tracer.start_span(
        f"process {task.agent}",
        context=parent,
        kind=found.trace.SpanKind.CONSUMER,
        attributes=attributes,
        links=[found.trace.Link(context) for context in contexts if context is not None and context.is_valid],
    )
    if not span.is_recording():
        return span
    if traces:
        span.set_attribute("messaging.batch.message_count", len(traces))
        span.set_attribute("waooaw.to_agent", task.agent)
        span.set_attribute("waooaw.handler", task.handler)
    else:
        span.set_attributes(request_attributes(task, request, _envelope(headers)))
    return span


def previous_attempt() -> dict[str, str]:
    """Return the header with which the next attempt is linked to the span of this one; empty: there is none."""
    found = api()
    if found is None or found.beside:
        return {}
    headers: dict[str, str] = {}
    found.propagate.inject(headers)
    return {PREVIOUS_ATTEMPT: headers["traceparent"]} if "traceparent" in headers else {}


def _note(found: Api, span: Any, error: BaseException) -> None:
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
