"""The agent of the acceptance tests: it greets, and records the orders that it handled."""

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
    """Return the orders handled since the worker started, oldest first."""
    return _seen


@agent.on(MessageType.COMMAND)
def handle_order(message: Message) -> None:
    """Sleep for ``seconds``, then record the ``order``."""
    time.sleep(message.payload.get("seconds", 0))
    _seen.append(message.payload["order"])
