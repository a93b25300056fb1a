"""An agent for tests whose handlers requeue their messages.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from celery.exceptions import Reject

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)
_times: dict[str, list[float]] = {}


def _requeue(task: Any, times: int) -> None:
    _times.setdefault(task.request.id, []).append(time.monotonic())
    if task.request.retries < times:
        raise Reject("not mine", requeue=True)


@agent.on(MessageType.COMMAND, bind=True)
def command(self: Any, message: Message) -> None:
    _requeue(self, int(str(message.payload)))


@agent.on(MessageType.QUERY, bind=True, retries=1)
async def query(self: Any, message: Message) -> None:
    """Requeues do not count as its one retry."""
    _requeue(self, int(str(message.payload)))


if app.settings.database_url is not None:

    @agent.on(MessageType.ACK, bind=True, once=True)
    def ack(self: Any, message: Message) -> None:
        _requeue(self, int(str(message.payload)))


@agent.method(bind=True)
def plain(self: Any, times: int) -> str:
    _requeue(self, times)
    return "answer"


@agent.method(bind=True)
def parts(self: Any, times: int) -> Iterator[int]:
    _requeue(self, times)
    yield 1


@agent.method(bind=True)
async def async_parts(self: Any, times: int) -> AsyncIterator[int]:
    _requeue(self, times)
    yield 1


@agent.method
def times(message_id: str) -> list[float]:
    return _times.get(message_id, [])
