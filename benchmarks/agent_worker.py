"""The agent of the benchmarks: it does nothing with what it gets.

BENCH_AGENT is its name. BENCH_BATCH is how many commands its handler gets at once; left out: one.
BENCH_KEY is the key of its commands; left out: they have none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from benchmarks import tracing
from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.agents import MessageBatch

tracing.set_up()
app = create_app("agent_worker")
agent = Agent(os.environ.get("BENCH_AGENT", "receiver"), app)


def command(message: Message | MessageBatch) -> None:
    """Do nothing."""


BATCH = int(os.environ.get("BENCH_BATCH", "0"))
OPTIONS: dict[str, Any] = {"batch": BATCH, "within": 0.05} if BATCH else {}
if key := os.environ.get("BENCH_KEY"):
    OPTIONS["key"] = key
agent.on(MessageType.COMMAND, **OPTIONS)(command)


@agent.method
def echo(value: Any) -> Any:
    """Answer."""
    return value


@agent.method
async def echo_async(value: int) -> int:
    """Answer, on the event loop."""
    return value


@agent.method
async def count(to: int) -> AsyncIterator[int]:
    """Answer in parts."""
    for number in range(to):
        yield number
