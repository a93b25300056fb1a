"""A test agent whose COMMANDs are handled in batches. Each call of that handler is a line of PROBE_CALLS."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from waooaw_celery import Agent, Message, MessageType, RetryPolicy, create_app, current_message
from waooaw_celery.agents import MessageBatch

settings = json.loads(os.environ.get("PROBE_SETTINGS", "{}"))
size, within = settings.pop("size", 10), settings.pop("within", 0.5)
limit = settings.pop("time_limit", None)
app = create_app("batch-probe", **settings)
agent = Agent(os.environ["PROBE_NAME"], app)
RETRIES = RetryPolicy(attempts=2, first_delay=0.2, jitter=False)


@agent.on(MessageType.COMMAND, batch=size, within=within, retries=RETRIES, time_limit=limit)
def command(batch: MessageBatch) -> None:
    calls = Path(os.environ["PROBE_CALLS"])
    facts = {
        "pid": os.getpid(),
        "ids": [message.message_id for message in batch],
        "payloads": [message.payload for message in batch],
        "current": current_message() and "a message",
    }
    with calls.open("a") as lines:
        lines.write(f"{json.dumps(facts)}\n")
    for message in batch:
        do: Any = message.payload
        if "fail" in do:
            batch.fail(message, ValueError(do["fail"]))
        if "retry" in do:
            batch.retry(message, OSError(do["retry"]))
        if "retry_now" in do and not Path(do["retry_now"]).exists():
            Path(do["retry_now"]).touch()
            batch.retry(message, countdown=0)
        if "retry_once" in do and not Path(do["retry_once"]).exists():
            Path(do["retry_once"]).touch()
            batch.retry(message, countdown=0.1)
    for message in batch:
        _do(message)


def _do(message: Message) -> None:
    do: Any = message.payload
    if "raise" in do:
        raise KeyError(do["raise"])
    if "kill_once" in do and not Path(do["kill_once"]).exists():
        Path(do["kill_once"]).touch()
        os.kill(os.getpid(), 9)
    ends_at = time.monotonic() + 60
    while "gate" in do and not Path(do["gate"]).exists() and time.monotonic() < ends_at:
        time.sleep(0.02)


@agent.on(MessageType.ACK, batch=5, within=0.2)
async def ack(batch: MessageBatch) -> None:
    await asyncio.sleep(0)
    for message in batch:
        if message.payload == "bad":
            batch.fail(message, ValueError("bad"))


@agent.on(MessageType.QUERY)
def query(message: Message) -> None:
    """Handle one message at a time."""


@agent.method
def echo(value: Any) -> Any:
    return value
