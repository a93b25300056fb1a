"""An agent for tests whose handlers, all with retries, are called with right and wrong arguments.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.agents import Response

app = create_app("probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)

_calls: list[str] = []
_replies: list[str] = []


@dataclass
class Point:
    x: int
    tags: Any


@agent.on(MessageType.COMMAND, retries=3)
def command(message: Message) -> None:
    _calls.append("command")


@agent.on(MessageType.QUERY, retries=3)
async def query(message: Message) -> None:
    _calls.append("query")


@agent.method(retries=3)
def plain(name: str, greeting: str = "a secret") -> str:
    _calls.append("plain")
    return f"{greeting}, {name}"


@agent.method(retries=3)
async def awaited(name: str, greeting: str = "a secret") -> str:
    _calls.append("awaited")
    return f"{greeting}, {name}"


@agent.method(retries=3)
def generated(name: str, greeting: str = "a secret") -> Iterator[str]:
    _calls.append("generated")
    yield f"{greeting}, {name}"


@agent.method(retries=3)
async def generated_async(name: str, greeting: str = "a secret") -> AsyncIterator[str]:
    _calls.append("generated_async")
    yield f"{greeting}, {name}"


@agent.method(retries=3, bind=True)
def bound(self: Any, name: str, greeting: str = "a secret") -> str:
    _calls.append("bound")
    return f"{greeting}, {name}"


@agent.method(autoretry_for=(Exception,), retry_backoff=False, default_retry_delay=0)
def automatic(name: str, greeting: str = "a secret") -> str:
    _calls.append("automatic")
    return f"{greeting}, {name}"


@agent.method
def calls() -> list[str]:
    return _calls


@agent.method
def odd(self: int, args: list[int], task: int, kwargs: int = 0) -> list[Any]:
    return [self, args, task, kwargs]


@agent.method
async def odd_async(self: int, args: list[int], task: int, kwargs: int = 0) -> list[Any]:
    return [self, args, task, kwargs]


@agent.method
def odd_generated(self: int, args: list[int], task: int, kwargs: int = 0) -> Iterator[Any]:
    yield from [self, args, task, kwargs]


@agent.method(bind=True)
def odd_bound(task_: Any, self: int, args: list[int], task: int, kwargs: int = 0) -> list[Any]:
    return [self, args, task, kwargs]


@agent.method
def grouped() -> None:
    raise ExceptionGroup("two failed", [ValueError("first"), ExceptionGroup("inner", [KeyError("second")])])


@agent.method
async def grouped_async() -> None:
    raise ExceptionGroup("two failed", [ValueError("first"), ExceptionGroup("inner", [KeyError("second")])])


@agent.method(retries=3)
def points(tags: str) -> list[Point]:
    _calls.append("points")
    return [Point(1, {"set": {1, 2}, "bytes": b"\xff\x00", "list": ("a",)}[tags])]


@agent.method
async def points_async(tags: str) -> list[Point]:
    return points(tags)  # type: ignore[no-any-return]  # a task returns what its function returns


@agent.method
def ask_wrongly(to_agent: str) -> Any:
    return agent.request(to_agent, "plain", {"nmae": "Ada"}, timeout=20)


@agent.reply
def replied(response: Response) -> None:
    _replies.append(f"{type(response.error).__name__}: {response.error}")


@agent.method
def replies() -> list[str]:
    return _replies


@agent.method
def ask_for_reply(to_agent: str) -> str:
    return agent.request_later(to_agent, "plain", {"nmae": "Ada"}, on_reply=replied).message_id
