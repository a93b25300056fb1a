"""An agent for tests whose handlers raise errors that end threads and processes.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import asyncio
import gc
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

_notes: list[str] = []


class Panic(BaseException):
    """An error like pyo3_runtime.PanicException, which a Rust extension raises for a panic."""


def throw(kind: str) -> None:
    """Raise an error that is no ``Exception``."""
    if kind == "GreenletExit":
        from greenlet import GreenletExit  # installed only where the pool is gevent's

        raise GreenletExit("boom")
    if kind == "Timeout":
        from gevent import Timeout

        raise Timeout(0.5)
    kinds = (Panic, SystemExit, KeyboardInterrupt, GeneratorExit, WorkerShutdown, WorkerTerminate)
    by_name: dict[str, type[BaseException]] = {each.__name__: each for each in kinds}
    raise (by_name | {"CancelledError": asyncio.CancelledError})[kind]("boom")


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    payload: Any = message.payload or {}
    time.sleep(payload.get("sleep", 0))
    if "touch" in payload:
        Path(payload["touch"], message.message_id).touch()
    if "throw" in payload:
        throw(payload["throw"])
    if "fail" in payload:
        raise ValueError(payload["fail"])


@agent.method
def searched() -> bool:
    """Return whether Python searches for garbage in what is older than the worker."""
    return any(each is app for each in gc.get_objects())


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
    """An errback or a callback that notes its argument."""
    _notes.append(str(what))


@agent.method
def notes() -> list[str]:
    return _notes


@agent.method
def slow(seconds: float, value: Any, path: str) -> Any:
    """Sleep, and create one file at the start and another at the end."""
    Path(path).touch()
    time.sleep(seconds)
    Path(path + ".ended").touch()
    return value


@agent.reply
def replied(response: Response) -> None:
    _notes.append(str(response.result))


@agent.method
def ask(value: Any, path: str) -> None:
    """Send a request whose answer comes as a message."""
    params = {"seconds": 2, "value": value, "path": path}
    agent.request_later(agent.name, "slow", params, on_reply=replied, timeout=60)


def panic(*_: Any) -> None:
    """A hook that raises an error that is no ``Exception``."""
    raise Panic("in a hook")


def refuse(*_: Any) -> None:
    """A hook that raises an error that Celery's trace does not catch."""
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
