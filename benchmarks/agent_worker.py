"""The agent of the benchmark: it does nothing with what it gets."""

from __future__ import annotations

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("agent_worker")
agent = Agent("receiver", app)


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    """Do nothing."""
