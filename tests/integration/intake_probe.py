"""A test agent whose handlers write the ids of their messages to a file.

PROBE_NAME is its name, PROBE_RUNS the file. Command handlers wait until the file PROBE_GATE exists.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.worker.current_task import current_message

app = create_app("intake")
agent = Agent(os.environ["PROBE_NAME"], app)


def _record_run() -> None:
    message = current_message()
    assert message is not None
    with Path(os.environ["PROBE_RUNS"]).open("a") as file:
        file.write(message.message_id + "\n")


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    gate = Path(os.environ.get("PROBE_GATE", "/"))
    if not gate.exists():
        Path(f"{gate}-{message.message_id}").touch()
    deadline = time.monotonic() + 60
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    _record_run()


@agent.on(MessageType.ACK)
async def ack(message: Message) -> None:
    await asyncio.sleep(0.1)
    _record_run()


@agent.method
def parts() -> Iterator[int]:
    time.sleep(0.1)
    yield 1
    _record_run()


@agent.method
async def parts_later() -> AsyncIterator[int]:
    await asyncio.sleep(0.1)
    yield 1
    _record_run()


@agent.method
def fail() -> None:
    time.sleep(0.1)
    _record_run()
    raise ValueError("no")
