"""A test agent of which each worker has the handlers that VERSION names: ``blue``, or ``green``, which has more.

PROBE_NAME is its name, PROBE_SETTINGS its settings as JSON.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from waooaw_celery import Agent, Message, MessageType, create_app

VERSION = os.environ["VERSION"]

app = create_app("version", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)


@agent.method
def both() -> str:
    """Return the version that handles the request."""
    return VERSION


if VERSION == "green":

    @agent.method
    def added(number: int) -> int:
        """Return the number."""
        return number

    @agent.method
    def wait_for(file: str) -> str:
        """Wait until a file exists."""
        deadline = time.monotonic() + 60
        while not Path(file).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return VERSION

    @agent.on(MessageType.COMMAND)
    def command(message: Message) -> None:
        """Append the payload to the file that it names."""
        assert isinstance(message.payload, dict)
        with Path(message.payload["file"]).open("a") as file:
            file.write(f"{message.payload['number']}\n")

    @agent.subscribe("version.changed")
    def changed(message: Message) -> None:
        """Handle the event."""
