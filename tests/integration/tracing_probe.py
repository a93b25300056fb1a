"""A test agent whose processes trace."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import tracing_setup
from celery.signals import worker_process_init

from waooaw_celery import Agent, Message, MessageType, RetryPolicy, create_app
from waooaw_celery.agents import Flow, MessageBatch

settings = json.loads(os.environ.get("PROBE_SETTINGS", "{}"))
app = create_app("tracing-probe", **settings)
agent = Agent(os.environ["PROBE_NAME"], app)
if os.environ.get("TRACING") != "none":
    if os.environ.get("TRACING_PREFORK"):  # after the fork, as OpenTelemetry asks for
        worker_process_init.connect(lambda **_: tracing_setup.set_up(), weak=False)
    else:
        tracing_setup.set_up()
NAME = agent.name


def note(what: str, message: Message | None = None) -> None:
    """Write down what a handler saw."""
    from opentelemetry import baggage, trace

    context = trace.get_current_span().get_span_context()
    tracing_setup.write(
        {
            "note": what,
            "trace": f"{context.trace_id:032x}",
            "id": f"{context.span_id:016x}",
            "tenant": baggage.get_baggage("tenant"),
            "pid": os.getpid(),
        }
    )


@agent.on(MessageType.COMMAND, retries=RetryPolicy(attempts=2, first_delay=0.1, jitter=False), bind=True)
def command(self: Any, message: Message) -> None:
    """Do what the payload says."""
    do: Any = message.payload
    note(f"command {do.get('do')}", message)
    if do.get("do") == "send on":
        agent.send(NAME, {"do": "last"})
    if do.get("do") == "fail once" and self.request.retries == 0:
        raise OSError(f"it quotes {do['secret']}")
    if do.get("do") == "fail":
        raise ValueError(f"it quotes {do['secret']}")


@agent.on(MessageType.QUERY)
async def query(message: Message) -> None:
    """Send from a coroutine."""
    note("query", message)
    do: Any = message.payload
    if "secret" in do:
        raise ValueError(f"it quotes {do['secret']}")
    await agent.aio.send(NAME, {"do": "last"})


def acks(batch: MessageBatch) -> None:
    """Handle several messages at once."""
    note(f"batch {len(batch)}")


if "gevent" not in sys.argv:  # it collects no batches
    agent.on(MessageType.ACK, batch=10, within=0.5)(acks)


@agent.method
def double(n: int) -> int:
    """Return the double of a number."""
    note("double")
    return 2 * n


@agent.method
def fail(secret: str) -> None:
    """Fail."""
    raise ValueError(f"it quotes {secret}")


@agent.method
def numbers(n: int) -> Any:
    """Stream numbers."""
    note("numbers")
    yield from range(n)


@agent.subscribe("traced.*")
def heard(event: Message) -> None:
    """Hear an event."""
    note("heard", event)


@agent.workflow
async def job(flow: Flow) -> int:
    """Ask for a number, and send a message."""
    found = await flow.request(NAME, "double", {"n": 4})
    await flow.send(NAME, {"do": "last"})
    return int(found)
