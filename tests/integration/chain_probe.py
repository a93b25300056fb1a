"""An agent for tests of request chains: each of its methods requests the same method of the next agent.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.errors import RequestError
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

app = create_app("chain-probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)

THRICE = RetryPolicy(attempts=3, first_delay=0.05, factor=1, jitter=False)


class TwoPartError(Exception):
    """An error that cannot be pickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def _note(marks: str) -> None:
    """Count an attempt in a file, which outlives the process."""
    with Path(marks).open("a") as file:
        file.write(f"{agent.name}\n")


def _fail(how: str) -> None:
    """End as the last agent of a chain."""
    if how == "unpicklable":
        raise TwoPartError("two", "parts")
    if how == "exit":
        os._exit(3)
    if how == "nap":
        time.sleep(1)
    raise ConnectionError("lost")


def _raise(error: Exception, how: str, then: list[str]) -> None:
    """Raise an error of another agent as it is, or an error of this one."""
    if how == "from error":
        raise ValueError("own") from error
    if how == "in except":
        raise ValueError("own")
    if how == "from none" and len(then) == 1:  # only the one before the last
        raise ValueError("own") from None
    if how == "group":
        raise ExceptionGroup("several", [ValueError("own"), error])
    raise error


def _request(then: list[str], marks: str, how: str) -> dict[str, Any]:
    return {"then": then[1:], "marks": marks, "how": how}


@agent.method(retries=THRICE)
def plain(then: list[str], marks: str, how: str = "") -> Any:
    _note(marks)
    if not then:
        _fail(how)
    try:
        return agent.request(then[0], "plain", _request(then, marks, how), timeout=0.5 if how == "nap" else 20)
    except RequestError as error:
        _raise(error, how, then)


@agent.method(retries=THRICE)
async def coroutine(then: list[str], marks: str, how: str = "") -> Any:
    _note(marks)
    if not then:
        _fail(how)
    try:
        return await agent.aio.request(then[0], "coroutine", _request(then, marks, how), timeout=20)
    except RequestError as error:
        _raise(error, how, then)


@agent.method(retries=THRICE)
def generator(then: list[str], marks: str, how: str = "") -> Iterator[Any]:
    _note(marks)
    if not then:
        _fail(how)
    with agent.stream(then[0], "generator", _request(then, marks, how), timeout=20) as stream:
        yield from stream


@agent.method(retries=THRICE)
async def async_generator(then: list[str], marks: str, how: str = "") -> AsyncIterator[Any]:
    _note(marks)
    if not then:
        _fail(how)
    async with agent.aio.stream(then[0], "async_generator", _request(then, marks, how), timeout=20) as stream:
        async for part in stream:
            yield part


@agent.method(autoretry_for=(Exception,), retry_backoff=False, default_retry_delay=0, max_retries=2)
def by_celery(then: list[str], marks: str, how: str = "") -> Any:
    """Retried by Celery's own option."""
    _note(marks)
    if not then:
        _fail(how)
    return agent.request(then[0], "by_celery", _request(then, marks, how), timeout=20)


@agent.method(retries=0)
def fail_once(then: list[str], marks: str, how: str = "") -> None:
    """Never retried."""
    _note(marks)
    _fail(how)


@agent.method(retries=THRICE)
def ask_fail_once(then: list[str], marks: str, how: str = "") -> Any:
    _note(marks)
    method = "ask_fail_once" if len(then) > 1 else "fail_once"
    return agent.request(then[0], method, _request(then, marks, how), timeout=20)


@agent.on(MessageType.COMMAND, retries=THRICE)
def command(message: Message) -> None:
    """Begin a chain without a caller."""
    do: Any = message.payload
    _note(do["marks"])
    agent.request(do["then"][0], "plain", _request(do["then"], do["marks"], ""), timeout=20)


@agent.method(retries=RetryPolicy(attempts=2, first_delay=0.0))
async def flop(marks: str) -> None:
    _note(marks)
    raise ConnectionError("lost")


# --- deadlines


class _Log:
    """A file of what a handler did, which outlives the process: its agent, what happened, and when."""

    def __init__(self, marks: str) -> None:
        self._path = Path(marks)

    def add(self, what: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{agent.name} {what} {time.time()}\n")


@contextmanager
def _watched(marks: str) -> Iterator[None]:
    """Note that a handler begins, and what ends it."""
    log = _Log(marks)
    log.add("began")
    try:
        yield
    except BaseException as error:
        log.add(type(error).__name__)
        raise
    log.add("returned")


@agent.method
def hold(then: list[str], marks: str, seconds: float = 20) -> str:
    """Request the next agent, or sleep at the end of the chain."""
    with _watched(marks):
        if then:
            return str(agent.request(then[0], "hold", {"then": then[1:], "marks": marks}, timeout=60))
        time.sleep(seconds)
    return "done"


@agent.method
async def hold_coroutine(then: list[str], marks: str, seconds: float = 20) -> str:
    with _watched(marks):
        if then:
            params = {"then": then[1:], "marks": marks}
            return str(await agent.aio.request(then[0], "hold_coroutine", params, timeout=60))
        await asyncio.sleep(seconds)
    return "done"


@agent.method
def hold_generator(then: list[str], marks: str, seconds: float = 20) -> Iterator[Any]:
    with _watched(marks):
        if then:
            params = {"then": then[1:], "marks": marks}
            with agent.stream(then[0], "hold_generator", params, timeout=60) as stream:
                yield from stream
        for number in range(int(seconds * 10)):
            yield number
            time.sleep(0.1)


@agent.method
async def hold_async_generator(then: list[str], marks: str, seconds: float = 20) -> AsyncIterator[Any]:
    with _watched(marks):
        if then:
            params = {"then": then[1:], "marks": marks}
            async with agent.aio.stream(then[0], "hold_async_generator", params, timeout=60) as stream:
                async for part in stream:
                    yield part
        for number in range(int(seconds * 10)):
            yield number
            await asyncio.sleep(0.1)


@agent.method(deadline="ignore")
def finish(then: list[str], marks: str, seconds: float = 2) -> str:
    """Work on after the caller has gone, and request another agent then."""
    with _watched(marks):
        time.sleep(seconds)
        if then:
            agent.request(then[0], "hold", {"then": [], "marks": marks, "seconds": 0}, timeout=20)
    return "done"


@agent.method(deadline="ignore")
async def finish_coroutine(then: list[str], marks: str, seconds: float = 2) -> str:
    with _watched(marks):
        await asyncio.sleep(seconds)
        if then:
            params = {"then": [], "marks": marks, "seconds": 0}
            await agent.aio.request(then[0], "hold", params, timeout=20)
    return "done"


@agent.method(soft_time_limit=1)
async def limited(marks: str) -> None:
    with _watched(marks):
        await asyncio.sleep(20)


@agent.method(time_limit=1)
def limited_hard(marks: str) -> None:
    with _watched(marks):
        time.sleep(20)


@agent.method
def answer_in_part(marks: str) -> str:
    """Return what there is when the deadline comes."""
    with _watched(marks), suppress(SoftTimeLimitExceeded):
        time.sleep(20)
    return "a part"


class _SlowAnswer(dict[str, Any]):
    """An answer whose copy, which is what is encoded, takes from before the deadline until after it."""

    def __iter__(self) -> Iterator[str]:  # with it, dict() reads the keys by the next method
        return iter(self.keys())

    def keys(self) -> Any:
        time.sleep(2.5)
        return super().keys()


@agent.method
def end_before_deadline(marks: str) -> dict[str, Any]:
    with _watched(marks):
        return _SlowAnswer(done=True)
