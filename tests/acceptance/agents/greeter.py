"""The agent of the acceptance tests: it greets, and it remembers the orders that it carried out."""

from __future__ import annotations

import time

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app()
agent = Agent("greeter", app)

_seen: list[str] = []


@agent.method
def greet(name: str) -> str:
    """Return a greeting."""
    return f"Hello, {name}!"


@agent.method
def seen() -> list[str]:
    """Return the orders carried out since the worker started, the oldest first."""
    return _seen


@agent.on(MessageType.COMMAND)
def carry_out(message: Message) -> None:
    """Work for ``seconds``, then remember the ``order``."""
    time.sleep(message.payload.get("seconds", 0))
    _seen.append(message.payload["order"])
