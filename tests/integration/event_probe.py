"""A test agent with subscriptions, which records the events that it handles.

Its environment: PROBE_NAME, its name; PROBE_SETTINGS, its settings as JSON; PROBE_TOPICS, the first word of its
    topics;
PROBE_LEAVE_OUT, a handler that its code no longer has; PROBE_SINCE, the period of ``since`` of its subscription
``late``, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import timedelta
from typing import Any

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.messages.topics.schemas import SchemaCheck

app = create_app("event_probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app, capabilities=["probing", os.environ.get("PROBE_TAG", "untagged")])
topics = os.environ["PROBE_TOPICS"]

_seen: list[dict[str, Any]] = []

app.schemas.register(f"{topics}.checked", {"required": ["n"]}, version="1")
app.schemas.register(
    f"{topics}.checked", {"required": ["n"], "properties": {"n": {"type": "integer"}}}, version="2"
)
app.schemas.register(f"{topics}.late_checked", {"required": ["n"]}, check=SchemaCheck.RECEIPT)


def _note(handler: str, message: Message) -> None:
    assert message.event is not None
    _seen.append(
        {
            "handler": handler,
            "topic": message.topic,
            "payload": message.payload,
            "message_id": message.message_id,
            "event_id": message.event.id,
            "source": message.event.source,
            "schema_version": message.event.schema_version,
            "replay": message.event.replay,
            "from": message.from_agent,
            "conversation_id": message.conversation_id,
            "causation_id": message.causation_id,
            "priority": message.priority.name,
        }
    )


if os.environ.get("PROBE_LEAVE_OUT") != "one":

    @agent.subscribe(f"{topics}.*")
    def one(message: Message) -> None:
        _note("one", message)


@agent.subscribe(f"{topics}.large", where={"size": {"gte": 100}})
def large(message: Message) -> None:
    _note("large", message)


@agent.subscribe(f"{topics}.large", where=lambda message: message.payload["size"] < 100)
async def small(message: Message) -> None:
    await asyncio.sleep(0)
    _note("small", message)


@agent.subscribe(f"{topics}.retry.#", autoretry_for=(TimeoutError,), retry_backoff=False, default_retry_delay=0)
def retried(message: Message) -> None:
    _note("retried", message)
    if sum(each["message_id"] == message.message_id for each in _seen) < 2:
        raise TimeoutError("not yet")


@agent.subscribe(f"{topics}.retry.#", max_retries=0)
def failing(message: Message) -> None:
    raise ValueError("never")


@agent.subscribe(f"{topics}.chain")
def chained(message: Message) -> None:
    agent.publish(f"{topics}.chain.next", {"after": message.payload})


if "PROBE_SINCE" in os.environ:

    @agent.subscribe(f"{topics}.old.#", since=timedelta(seconds=float(os.environ["PROBE_SINCE"])))
    def late(message: Message) -> None:
        _note("late", message)


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    _seen.append({"handler": "command", "payload": message.payload})


@agent.method
def seen() -> list[dict[str, Any]]:
    return _seen
