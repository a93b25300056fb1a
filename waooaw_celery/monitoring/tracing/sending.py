"""The span of a send: its context travels in the headers of the messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName, agent_queue
from waooaw_celery.messages.trace_context import TraceContext
from waooaw_celery.monitoring.metrics.measured_send import operation_of
from waooaw_celery.monitoring.tracing.attributes import message_attributes
from waooaw_celery.monitoring.tracing.opentelemetry_api import (
    SYSTEMS,
    Api,
    api,
    current_trace,
    extracted,
    report_failure,
)

Batch = Sequence[tuple[HandlerName, Message]]


def is_traced() -> bool:
    """Return whether what is sent now needs a trace context. It costs two lookups where nothing traces."""
    return "opentelemetry.trace" in sys.modules or "sentry_sdk" in sys.modules


def running_trace() -> TraceContext | None:
    """Return the trace context of what runs now, or None."""
    return (current_trace(api()) or None) if is_traced() else None


@contextmanager
def within_trace(trace: TraceContext | None) -> Iterator[None]:
    """Make a trace context, such as that of a workflow, the current one during the block.

    Args:
        trace: its headers; None: what is current stays.
    """
    found = api() if trace else None
    if found is None:
        yield
        return
    token = found.context.attach(extracted(found, trace))
    try:
        yield
    finally:
        found.context.detach(token)


class SendingSpan:
    """The span of a send, which gives its trace context to the messages.

    A message that has one already, from the ledger or from the message that caused it, gets the new one only where
    there is a span: the span is then its child.

    Args:
        batch: the messages, each with its handler.
        app: the application, an AgentApp.

    Example:
        >>> with SendingSpan(batch, app) as traced:
        ...     publish(traced)
    """

    __slots__ = ("_app", "_batch", "_found", "_span", "_token")

    def __init__(self, batch: Batch, app: Any) -> None:
        self._batch, self._app = batch, app
        self._found: Api | None = None
        self._span: Any = None
        self._token: Any = None

    def __enter__(self) -> Batch:
        """Begin the span, and return the messages with its trace context."""
        try:
            return self._begin()
        except Exception:  # noqa: BLE001 - it is logged, and the messages are sent
            report_failure()
            return self._batch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        """End the span. The text of an error may quote a payload: only its class is noted."""
        try:
            self._end(kind)
        except Exception:  # noqa: BLE001 - it is logged, and the messages were sent
            report_failure()

    def _begin(self) -> Batch:
        batch, found = self._batch, api()
        self._found = found
        if found is None or found.beside or not batch:
            return _with_trace(batch, current_trace(found))
        context = found.context.get_current()
        if not found.trace.get_current_span(context).get_span_context().is_valid and batch[0][1].trace:
            # What is sent outside of a span: an outbox after its commit, a workflow, a follow-up.
            context = extracted(found, batch[0][1].trace)
        self._span = span = _start(found, context, batch, self._app.driver)
        self._token = found.context.attach(found.trace.set_span_in_context(span, context))
        return _with_trace(batch, current_trace(found))

    def _end(self, kind: type[BaseException] | None) -> None:
        found, span = self._found, self._span
        if found is None or span is None:
            return
        if self._token is not None:
            found.context.detach(self._token)
        if kind is not None and span.is_recording():
            span.set_attribute("error.type", kind.__qualname__)
            span.set_status(found.trace.StatusCode.ERROR)
        span.end()


def _start(found: Api, context: Any, batch: Batch, driver: str) -> Any:
    agents = {target.agent for target, _ in batch}
    target, first = batch[0]
    attributes: dict[str, Any] = {
        "messaging.system": SYSTEMS.get(driver, driver),
        "messaging.operation.name": operation_of(batch),
        "messaging.operation.type": "send",
    }
    # The conventions name a span after its destination, as long as there are few of those.
    name = f"send {len(batch)} messages"
    if len(agents) == 1:
        name = f"send {target.agent}"
        attributes["messaging.destination.name"] = agent_queue(target.agent).name
    if first.event is not None:
        name = f"publish {first.event.topic}"
    span = found.tracer.start_span(
        name, context=context, kind=found.trace.SpanKind.PRODUCER, attributes=attributes
    )
    if span.is_recording():  # the rest costs nothing where it is not sampled
        if len(batch) == 1:
            span.set_attributes(message_attributes(first, target.handler))
        else:
            span.set_attribute("messaging.batch.message_count", len(batch))
            span.set_attribute("waooaw.from_agent", first.from_agent)
    return span


def _with_trace(batch: Batch, trace: dict[str, str]) -> Batch:
    if not trace:
        return batch
    return [(target, message.filled_in(trace=trace)) for target, message in batch]
