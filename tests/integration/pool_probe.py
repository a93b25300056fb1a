"""An agent whose handlers raise what ends threads and processes, for tests. Named by PROBE_NAME.

PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from celery.exceptions import WorkerShutdown, WorkerTerminate

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.agents import Response

app = create_app("pool-probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)

_told: list[str] = []


class Panic(BaseException):
    """What a Rust extension raises for a panic (pyo3_runtime.PanicException) derives from BaseException too."""


def throw(kind: str) -> None:
    """Raise an exception that is no Exception."""
    if kind == "GreenletExit":
        from greenlet import GreenletExit  # only where the pool is gevent's

        raise GreenletExit("boom")
    if kind == "Timeout":
        from gevent import Timeout

        raise Timeout(0.5)
    kinds = (Panic, SystemExit, KeyboardInterrupt, GeneratorExit, WorkerShutdown, WorkerTerminate)
    by_name: dict[str, type[BaseException]] = {each.__name__: each for each in kinds}
    raise (by_name | {"CancelledError": asyncio.CancelledError})[kind]("boom")


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    do: Any = message.payload or {}
    time.sleep(do.get("sleep", 0))
    if "touch" in do:
        Path(do["touch"], message.message_id).touch()
    if "throw" in do:
        throw(do["throw"])
    if "fail" in do:
        raise ValueError(do["fail"])


@agent.method
def plain(kind: str) -> None:
    throw(kind)


@agent.method
async def coroutine(kind: str) -> None:
    await asyncio.sleep(0)
    throw(kind)


@agent.method
def generator(kind: str) -> Iterator[int]:
    yield 1
    throw(kind)


@agent.method
async def async_generator(kind: str) -> AsyncIterator[int]:
    yield 1
    throw(kind)


@agent.method
def echo(value: Any) -> Any:
    return value


@agent.method
def process() -> int:
    return os.getpid()


@agent.method
def fail(text: str = "no") -> None:
    raise ValueError(text)


@agent.method(max_retries=0)
def leave(kill: bool = False) -> None:
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


@agent.method(max_retries=0, time_limit=1)
def hang() -> None:
    time.sleep(30)


@agent.method
def nap() -> None:
    time.sleep(20)


@agent.method
def note(what: Any) -> None:
    """An errback or a callback: it notes with what it was called."""
    _told.append(str(what))


@agent.method
def told() -> list[str]:
    return _told


@agent.method
def slow(seconds: float, value: Any, path: str) -> Any:
    """Take as long as this, and tell in files when it begins and ends."""
    Path(path).touch()
    time.sleep(seconds)
    Path(path + ".ended").touch()
    return value


@agent.reply
def replied(response: Response) -> None:
    _told.append(str(response.result))


@agent.method
def ask(value: Any, path: str) -> None:
    """Ask for an answer that comes as a message."""
    params = {"seconds": 2, "value": value, "path": path}
    agent.request_later(agent.name, "slow", params, on_reply=replied, timeout=60)


def panic(*_: Any) -> None:
    """A hook that goes wrong."""
    raise Panic("in a hook")


def refuse(*_: Any) -> None:
    """A hook that goes wrong in another way, which Celery's tracing lets through."""
    raise MemoryError("in a hook")


@agent.method(on_failure=panic)
def fails_then_panic() -> None:
    raise ValueError("no")


@agent.method(on_failure=refuse)
def fails_then_refuse() -> None:
    raise ValueError("no")


@agent.method(on_success=panic)
def succeeds_then_panic() -> int:
    return 1


@agent.method(on_success=refuse)
def succeeds_then_refuse() -> int:
    return 1
