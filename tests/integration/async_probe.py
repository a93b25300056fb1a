"""An agent for tests whose handlers are coroutines.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from waooaw_celery import Agent, Message, MessageType, create_app, current_message
from waooaw_celery.agents import Response
from waooaw_celery.agents.requests.stream import Final

app = create_app("async-probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app, identity="mailto:probe@example.org")

_seen: list[Any] = []
_background: set[asyncio.Task[None]] = set()


async def _note_when_done(what: str, seconds: float) -> None:
    try:
        await asyncio.sleep(seconds)
    finally:
        _seen.append(what)


@agent.on(MessageType.COMMAND, bind=True, autoretry_for=(ConnectionError,), retry_backoff=False, max_retries=5)
async def command(self: Any, message: Message) -> None:
    do: Any = message.payload
    await asyncio.sleep(do.get("sleep", 0))
    async with asyncio.timeout(60):
        while "gate" in do and not Path(do["gate"]).exists():
            await asyncio.sleep(0.02)
    if "forward_to" in do:
        await asyncio.to_thread(agent.send, do["forward_to"], {"from": "a thread"})
    if "then_ask" in do:
        await agent.aio.request(do["then_ask"], "seen", timeout=20)
    if do.get("fail_times", 0) > self.request.retries:
        raise ConnectionError("not yet")
    if do.get("retry_times", 0) > self.request.retries:
        raise self.retry(countdown=0)
    if "touch" in do:
        Path(do["touch"], message.message_id).touch()
    _seen.append([message.message_id, self.request.id, self.request.retries])


@agent.method
async def seen() -> list[Any]:
    return _seen


@agent.method
async def wait_and_note(path: str) -> None:
    """Sleep, and note the start and the clean-up in a file, which outlives the process."""
    try:
        Path(path).write_text("began")
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.05)
        Path(path).write_text("began, cleaned up")


@agent.method
async def echo(value: Any) -> Any:
    return value


@agent.method
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@agent.method(deadline="ignore")
async def nap_past_the_deadline(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@agent.method
async def whoami() -> dict[str, Any]:
    """Return the current message here, in a task and in a thread, after other coroutines have run."""
    await asyncio.sleep(0.05)

    async def current_id() -> str:
        message = current_message()
        assert message is not None
        return message.message_id

    return {
        "here": await current_id(),
        "in a task": await asyncio.create_task(current_id()),
        "in a thread": await asyncio.to_thread(lambda: (m := current_message()) and m.message_id),
        "process": os.getpid(),
        "loop": id(asyncio.get_running_loop()),
        "thread": threading.current_thread().name,
    }


@agent.method
async def fail(text: str) -> None:
    await asyncio.sleep(0)
    raise ValueError(text)


@agent.method(soft_time_limit=1, time_limit=20)
async def hang() -> None:
    await _note_when_done("cleaned up", 60)


@agent.method(soft_time_limit=1, time_limit=20)
async def answer_when_told_to_stop() -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    return "stopped in time"


@agent.method(time_limit=2)
async def hang_hard() -> None:
    await asyncio.sleep(60)


@agent.method
async def leave() -> None:
    raise SystemExit(3)


@agent.method
async def cancel_itself() -> None:
    raise asyncio.CancelledError


@agent.method
async def leave_behind(what: str) -> None:
    _background.add(asyncio.create_task(_exit(what)))
    await asyncio.sleep(0)


async def _exit(what: str) -> None:
    raise SystemExit(what)


@agent.method
async def ask(to_agent: str, method: str, params: Any = None, timeout: float = 10) -> Any:
    return await agent.aio.request(to_agent, method, params, timeout=timeout)


@agent.method
async def send_and_block(to_agent: str) -> None:
    agent.send(to_agent, {}, wait=5)


@agent.method
async def ask_and_block(to_agent: str, method: str) -> Any:
    return agent.request(to_agent, method, timeout=10)


@agent.method
async def count(to: int, pause: float = 0, fail_at: int = -1) -> AsyncIterator[Any]:
    try:
        for number in range(to):
            if number == fail_at:
                raise ValueError(f"no {number}")
            yield {"number": number}
            await asyncio.sleep(pause)
        yield Final({"counted": to})
    except BaseException as error:
        _seen.append(f"count ended by {type(error).__name__}")
        raise


@agent.method
async def letters(text: str) -> AsyncIterator[str]:
    for letter in text:
        yield letter


@agent.method
async def yield_a_set() -> AsyncIterator[Any]:
    yield 1
    yield {1, 2}


@agent.method
async def relay(to_agent: str, to: int) -> AsyncIterator[Any]:
    async with agent.aio.stream(to_agent, "count", {"to": to}, timeout=10) as stream:
        async for chunk in stream:
            yield chunk
    yield Final(stream.result)


_replies: list[dict[str, Any]] = []


@agent.reply
async def replied(response: Response) -> None:
    _replies.append({"agent": response.agent, "message_id": response.message_id, "result": response.result})


@agent.method
async def replies() -> list[dict[str, Any]]:
    return _replies


@agent.method
async def ask_for_reply(to_agent: str, method: str, params: Any = None) -> str:
    receipt = await agent.aio.request_later(to_agent, method, params, timeout=20, on_reply="replied")
    return receipt.message_id
