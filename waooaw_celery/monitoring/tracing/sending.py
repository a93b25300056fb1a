"""The span of a send: its context travels in the headers of the messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName, agent_queue
from waooaw_celery.messages.trace_context import TraceContext
from waooaw_celery.monitoring.metrics.measured_send import operation_of
from waooaw_celery.monitoring.tracing.attributes import message_attributes
from waooaw_celery.monitoring.tracing.opentelemetry_api import SYSTEMS, Api, api, current_trace, extracted

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


@contextmanager
def sending_span(batch: Batch, app: Any) -> Iterator[Batch]:
    """Make the span of a send, and give its trace context to the messages.

    A message that has one already, from the ledger or from the message that caused it, gets the new one only where
    there is a span: the span is then its child.

    Args:
        batch: the messages, each with its handler.
        app: the application, an AgentApp.

    Returns:
        The messages with their trace context.
    """
    found = api()
    if found is None or found.beside or not batch:
        yield _with_trace(batch, current_trace(found))
        return
    earlier = None
    if not found.trace.get_current_span().get_span_context().is_valid:
        # What is sent outside of a span: an outbox after its commit, a workflow, a follow-up.
        earlier = batch[0][1].trace
    with within_trace(earlier), _span(found, batch, app.driver) as span:
        try:
            yield _with_trace(batch, current_trace(found))
        except BaseException as error:
            if span.is_recording():
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(found.trace.StatusCode.ERROR)
            raise


def _span(found: Api, batch: Batch, driver: str) -> Any:
    agents = {target.agent for target, _ in batch}
    handler, first = batch[0][0].handler, batch[0][1]
    # The conventions name a span after its destination, as long as there are few of those.
    name = f"send {next(iter(agents))}" if len(agents) == 1 else f"send {len(batch)} messages"
    if first.event is not None:
        name = f"publish {first.event.topic}"
    attributes: dict[str, Any] = {
        "messaging.system": SYSTEMS.get(driver, driver),
        "messaging.operation.name": operation_of(batch),
        "messaging.operation.type": "send",
    }
    if len(agents) == 1:
        attributes["messaging.destination.name"] = agent_queue(next(iter(agents))).name
    if len(batch) == 1:
        attributes |= message_attributes(first, handler)
    else:
        attributes |= {"messaging.batch.message_count": len(batch), "waooaw.from_agent": first.from_agent}
    return found.tracer.start_as_current_span(
        name,
        kind=found.trace.SpanKind.PRODUCER,
        attributes=attributes,
        record_exception=False,  # the text of an error may quote a payload
        set_status_on_exception=False,
    )


def _with_trace(batch: Batch, trace: dict[str, str]) -> Batch:
    if not trace:
        return batch
    return [(target, message.filled_in(trace=trace)) for target, message in batch]
