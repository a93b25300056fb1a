"""An agent for tests whose handlers have retry policies.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from celery.exceptions import Reject

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

app = create_app("probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)

_times: dict[str, list[float]] = {}
QUICK = RetryPolicy(
    attempts=3, first_delay=0.2, factor=2, jitter=False, on=(ConnectionError,), never=(BrokenPipeError,)
)


def _fail(message_id: str, error: str, times: int = 100) -> None:
    tried = _times.setdefault(message_id, [])
    tried.append(time.monotonic())
    if len(tried) <= times:
        raise {
            "lost": ConnectionError("lost"),
            "pipe": BrokenPipeError("pipe"),
            "value": ValueError("value"),
            "reject": Reject("reject", requeue=False),
        }[error]


def _do(message: Message) -> None:
    assert isinstance(message.payload, dict)
    _fail(message.message_id, **message.payload)


@agent.on(MessageType.COMMAND, retries=QUICK)
def command(message: Message) -> None:
    _do(message)


@agent.on(MessageType.QUERY, retries=RetryPolicy(attempts=3, first_delay=0.1))
async def query(message: Message) -> None:
    _do(message)


@agent.on(MessageType.ACK)
def ack(message: Message) -> None:
    """Retried by the setting ``waooaw_retries``."""
    _do(message)


@agent.subscribe("retry.*", retries=QUICK)
def noticed(message: Message) -> None:
    _do(message)


@agent.method(retries=RetryPolicy(attempts=2, first_delay=0.1))
def answer(key: str, times: int = 0) -> str:
    _fail(key, "lost", times)
    return "answer"


@agent.method(retries=RetryPolicy(attempts=2, first_delay=0.1))
def count(key: str, times: int = 0) -> Iterator[int]:
    _fail(key, "lost", times)
    yield from range(3)


@agent.method(retries=2)
def plainly(key: str) -> str:
    _fail(key, "value", 2)
    return "answer"


@agent.method
def tried(message_id: str) -> list[float]:
    return _times.get(message_id, [])


@agent.method
def bounds() -> dict[str, Any]:
    return {name: app.tasks[f"{agent.name}.{name}"].max_retries for name in ("command", "ack", "plainly", "tried")}
