"""Sends to the tracing probe in each way, within a span named after the way: ``tracing_sender.py NAME WAY...``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import tracing_setup
from sqlalchemy.orm import Session

from waooaw_celery import EventBus, Message, MessageBus, MessageType, create_app
from waooaw_celery.agents import RequestResponseHandler, Workflows

name, *ways = sys.argv[1:]
app = create_app("tracing-sender", waooaw_sender="tests", **json.loads(os.environ["PROBE_SETTINGS"]))
tracing_setup.set_up()
bus = MessageBus(app)


def message(message_type: MessageType = MessageType.COMMAND, **payload: Any) -> Message:
    """Return a message to the probe."""
    return Message(from_agent="tests", to_agent=name, message_type=message_type, payload=payload)


def outbox() -> None:
    """Send in a transaction."""
    with Session(app.database.engine) as session:
        bus.send(message(do="outbox"), session=session)
        session.commit()


def stream() -> None:
    """Read a stream."""
    with RequestResponseHandler(app).stream(name, "numbers", {"n": 2}) as parts:
        list(parts)


def workflow() -> None:
    """Start a workflow, and wait for its result."""
    started = Workflows(app).start(f"{name}.job", {})
    Workflows(app).result(started.workflow_id, 30)


SECRET = os.environ.get("TRACING_SECRET", "nothing")
WAYS: dict[str, Callable[[], Any]] = {
    "send": lambda: bus.send(message(do="send")),
    "send_on": lambda: bus.send(message(do="send on")),
    "send_many": lambda: bus.send_many([message(do="many") for _ in range(3)]),
    "batch": lambda: bus.send_many([message(MessageType.ACK) for _ in range(4)]),
    "query": lambda: bus.send(message(MessageType.QUERY)),
    "publish": lambda: EventBus(app).publish("traced.one", {"n": 1}),
    "request": lambda: RequestResponseHandler(app).request(name, "double", {"n": 2}),
    "stream": stream,
    "delay": lambda: app.send_task(f"{name}.double", kwargs={"n": 2}).get(timeout=30),
    "outbox": outbox,
    "workflow": workflow,
    "fail_once": lambda: bus.send(message(do="fail once", secret=SECRET)),
    "fail_async": lambda: bus.send(message(MessageType.QUERY, secret=SECRET)),
    "fail_method": lambda: app.send_task(f"{name}.fail", kwargs={"secret": SECRET}),
    "fail": lambda: bus.send(message(do="fail", secret=SECRET)),
}

for way in ways:
    with ExitStack() as stack:
        if "otel" in tracing_setup.KINDS:
            from opentelemetry import baggage, context, trace

            token = context.attach(baggage.set_baggage("tenant", "t1"))
            stack.callback(context.detach, token)
            if not os.environ.get("TRACING_BREAKS"):
                stack.enter_context(trace.get_tracer("tests").start_as_current_span(way))
        if "sentry" in tracing_setup.KINDS:
            import sentry_sdk

            stack.enter_context(sentry_sdk.start_transaction(name=way, op="test"))
        WAYS[way]()
app.close()
