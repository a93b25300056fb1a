"""The agent of the benchmark: it does nothing with what it gets."""

from __future__ import annotations

from collections.abc import AsyncIterator

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("agent_worker")
agent = Agent("receiver", app)


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    """Do nothing."""


@agent.method
def echo(value: int) -> int:
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
