"""A test agent whose handlers block, fail, send and retry, as its payload says."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from waooaw_celery import Agent, Message, MessageType, RetryPolicy, create_app

app = create_app("health-probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)


@agent.on(MessageType.COMMAND, retries=RetryPolicy(attempts=2, first_delay=0.1, jitter=False), bind=True)
def command(self: Any, message: Message) -> None:
    """Do what the payload says."""
    do: Any = message.payload
    if "send" in do:
        agent.send(agent.name, {}, message_type=MessageType.ACK)
    if do.get("fails", 0) > self.request.retries:
        raise ValueError("as the payload says")


@agent.on(MessageType.ACK)
def ack(message: Message) -> None:
    """Do nothing."""


@agent.on(MessageType.QUERY)
async def block(message: Message) -> None:
    """Block the event loop of the handlers."""
    do: Any = message.payload
    time.sleep(do["seconds"])
