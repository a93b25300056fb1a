"""A test agent, which does what its messages request and records them.

Its environment: PROBE_NAME, its name; PROBE_SETTINGS, its settings as JSON.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery.exceptions import Ignore, Reject

from waooaw_celery import Agent, Message, MessageType, create_app, current_message
from waooaw_celery.agents import Response

app = create_app("probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app, identity="mailto:probe@example.org")

_seen: list[dict[str, Any]] = []


def _facts(message: Message) -> dict[str, Any]:
    return {
        "from": message.from_agent,
        "to": message.to_agent,
        "type": message.message_type.value,
        "payload": message.payload,
        "priority": message.priority.name,
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "conversation_id": message.conversation_id,
        "causation_id": message.causation_id,
        "sent_at": message.sent_at.isoformat(),
        "expires_at": message.expires_at and message.expires_at.isoformat(),
    }


@agent.on(MessageType.COMMAND, bind=True)
def command(self: Any, message: Message) -> None:
    _seen.append(_facts(message))
    do = message.payload if isinstance(message.payload, dict) else {}
    redelivered = self.request.delivery_info["redelivered"]
    if "mark" in do:
        with Path(do["mark"]).open("a") as marks:
            marks.write(f"{message.message_id} {time.time()}\n")
    time.sleep(do.get("sleep", 0))
    ends_at = time.monotonic() + 60
    while "gate" in do and not Path(do["gate"]).exists() and time.monotonic() < ends_at:
        time.sleep(0.02)
    if "first_sleep" in do and not redelivered:
        time.sleep(do["first_sleep"])
    if "forward_to" in do:
        agent.send(do["forward_to"], do.get("forward", {}))
    if "then_ask" in do:
        agent.request(do["then_ask"], "seen", timeout=20)
    if "delay_to" in do:
        app.signature(f"{do['delay_to']}.command", args=({"by": "delay"},)).delay()
    if do.get("fail_times", 0) > self.request.retries:
        raise self.retry(
            exc=TimeoutError("not yet"),
            countdown=do.get("countdown", 0),
            max_retries=do.get("max_retries", do["fail_times"]),
        )
    if do.get("kill") or do.get("kill_times", 0) > self.request.retries:
        os.kill(os.getpid(), do.get("signal", 9))
    if "reject" in do:
        raise Reject(do["reject"], requeue=False)
    if "requeue" in do and not redelivered and not self.request.retries:
        raise Reject(do["requeue"], requeue=True)
    if "ignore" in do:
        raise Ignore(do["ignore"])
    if "exhaust" in do:
        raise MemoryError(do["exhaust"])
    if "exit" in do:
        raise SystemExit(do["exit"])
    if "needs" in do and not Path(do["needs"]).exists():
        raise FileNotFoundError(f"there is no {Path(do['needs']).name}")
    if "fail" in do:
        raise ValueError(do["fail"])
    if "touch" in do:
        Path(do["touch"], message.message_id).touch()


@agent.on(MessageType.ACK)
def ack(message: Message) -> None:
    _seen.append(_facts(message))


@agent.method
def seen() -> list[dict[str, Any]]:
    return _seen


@agent.method
def whoami() -> dict[str, Any]:
    message = current_message()
    assert message is not None
    return _facts(message)


@agent.method
def echo(value: Any) -> Any:
    return value


@agent.method
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@agent.method
def grow(size: int) -> str:
    return "x" * size


@agent.method
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@agent.method(bind=True, max_retries=1)
def sleep_and_retry(self: Any, seconds: float) -> None:
    time.sleep(seconds)
    if self.request.retries == 0:
        raise self.retry(countdown=0)


@agent.method
def fail(text: str) -> None:
    raise ValueError(text)


@agent.method(time_limit=1)
def hang() -> None:
    time.sleep(60)


@agent.method(max_retries=0)
def kill() -> None:
    os.kill(os.getpid(), 9)


@agent.method
def process() -> int:
    return os.getpid()


@agent.method
def parent() -> int:
    return os.getppid()


@agent.method(bind=True)
def ignore(self: Any, text: str, state: str | None = None) -> None:
    if state is not None:
        self.update_state(state=state)
    raise Ignore(text)


@agent.method
def leave() -> None:
    raise SystemExit(3)


class Odd(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


@agent.method
def fail_oddly() -> None:
    raise Odd(code=7)


@app.task(name="probe.tasks.add", shared=False)
def add(a: int, b: int) -> int:
    """A plain Celery task of the agent's application."""
    return a + b


@agent.method
def ask(to_agent: str, method: str, params: Any = None, timeout: float = 10) -> Any:
    return agent.request(to_agent, method, params, timeout=timeout)


@agent.method(bind=True, max_retries=1)
def ask_in_a_second_attempt(self: Any, to_agent: str, method: str) -> Any:
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return agent.request(to_agent, method, timeout=10)


@agent.method(bind=True)
def let_another_answer(self: Any, to_agent: str, method: str, params: Any) -> Any:
    raise self.replace(app.signature(f"{to_agent}.{method}", kwargs=params))


@agent.method
def answer_with_too_much() -> str:
    return "x" * 17_000_000


@agent.method
def answer_with_a_set() -> Any:
    return {1, 2}


@agent.method
def count(to: int, pause: float = 0, fail_at: int = -1) -> Iterator[Any]:
    try:
        for number in range(to):
            if number == fail_at:
                raise ValueError(f"no {number}")
            yield {"number": number}
            time.sleep(pause)
    except GeneratorExit:
        _seen.append({"count": "closed"})
        raise
    return {"counted": to}


@agent.method
def letters(text: str) -> Iterator[str]:
    yield from text


@agent.method
def yield_a_set() -> Iterator[Any]:
    yield 1
    yield {1, 2}


@agent.method(bind=True)
def count_and_die(self: Any) -> Iterator[int]:
    yield 0
    yield 1
    if not self.request.retries:
        os.kill(os.getpid(), 9)
    yield 2


@agent.method
def relay(to_agent: str, to: int) -> Iterator[Any]:
    with agent.stream(to_agent, "count", {"to": to}, timeout=10) as stream:
        yield from stream
    return stream.result


_replies: list[dict[str, Any]] = []


@agent.reply
def replied(response: Response) -> None:
    error = response.error
    _replies.append(
        {
            "agent": response.agent,
            "message_id": response.message_id,
            "result": response.result,
            "error": error and type(error).__name__,
            "text": error and str(error),
        }
    )


@agent.reply
def reply_badly(response: Response) -> None:
    raise ValueError("no such reply")


@agent.method
def ask_badly(to_agent: str, method: str, params: Any = None) -> str:
    return agent.request_later(to_agent, method, params, on_reply=reply_badly).message_id


@agent.method
def replies() -> list[dict[str, Any]]:
    return _replies


@agent.method
def ask_for_reply(to_agent: str, method: str, params: Any = None, timeout: float = 20) -> str:
    return agent.request_later(to_agent, method, params, timeout=timeout, on_reply=replied).message_id
