"""The agents of the contract tests: in this process, in the harness, and in the workers of real brokers.

Their environment: PROBE_NAME, the beginning of their names; PROBE_SETTINGS, their settings as JSON. They keep what
they have done in memory, and tell it when they are asked.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.agents import Flow, MessageBatch, RetryPolicy

NAME = os.environ.get("PROBE_NAME", "contract").removesuffix("-second")
#: Short pauses, so that real workers are quick too.
RETRIES = RetryPolicy(attempts=3, first_delay=0.3, jitter=False)

app = create_app("contract_agents", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
first = Agent(NAME, app)
second = Agent(f"{NAME}-second", app)

_done: dict[str, list[Any]] = {}


def _note(test: str, value: Any) -> int:
    _done.setdefault(test, []).append(value)
    return len(_done[test])


@first.method
def done(test: str) -> list:
    """Return what was done in a test, in order."""
    return _done.get(test, [])


@first.on(MessageType.COMMAND, retries=RETRIES)
def command(message: Message) -> None:
    do: Any = message.payload
    attempt = _note(do["test"], do.get("value"))
    time.sleep(do.get("sleep", 0))
    if attempt <= do.get("fail", 0):
        raise ConnectionError("not yet")
    if "reject" in do:
        raise ValueError(do["reject"])
    if "send_on" in do:
        first.send(second.name, {"test": do["test"], "value": do["send_on"]})


@second.on(MessageType.COMMAND)
def take(message: Message) -> None:
    do: Any = message.payload
    second.request(first.name, "note", {"test": do["test"], "value": do["value"]})


@second.on(MessageType.ACK, key="payload.key", retries=RETRIES)
def in_order(message: Message) -> None:
    do: Any = message.payload
    count = second.request(first.name, "note", {"test": do["test"], "value": do["value"]})
    if do.get("fails_first") and count == 1:
        raise ConnectionError("not yet")


@second.on(MessageType.QUERY, batch=10, within=0.3)
def batch(messages: MessageBatch) -> None:
    for message in messages:
        payload: Any = message.payload
        second.request(first.name, "note", {"test": payload["test"], "value": len(messages)})


@first.method
def note(test: str, value: Any) -> int:
    return _note(test, value)


@first.method
def fail(kind: str) -> None:
    raise {"value": ValueError, "key": KeyError}[kind]("as asked")


@first.method(retries=RETRIES)
def tried_again(test: str, times: int) -> int:
    if (attempt := _note(test, "attempt")) < times:
        raise ConnectionError("not yet")
    return attempt


@first.method
def ask_second(method: str, timeout: float = 10.0) -> Any:
    return first.request(second.name, method, timeout=timeout)


@second.method
def ask_first_back() -> Any:
    return second.request(first.name, "done", {"test": "nothing"})


@second.method
def sleep_long() -> None:
    time.sleep(3)


@second.method
async def from_coroutine() -> Any:
    return await second.aio.request(first.name, "add", {"a": 20, "b": 22})


@first.method
def add(a: int, b: int) -> int:
    return a + b


@first.method
def count(to: int) -> Iterator[int]:
    yield from range(to)
    return "counted"


@first.subscribe("contract.*", where={"for": NAME})
def on_event(message: Message) -> None:
    payload: Any = message.payload
    _note(payload["test"], message.topic)


@first.workflow
async def report(flow: Flow, test: str) -> dict:
    number = await flow.request(first.name, "note", {"test": test, "value": "asked"})
    flow.compensate(first.name, "note", {"test": test, "value": "undone"})
    await flow.sleep(0.2)
    answer = await flow.wait_for("approve")
    if not answer["approved"]:
        raise ValueError("refused")
    return {"number": number, "by": answer["by"]}
