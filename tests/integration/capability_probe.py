"""A test agent with capabilities, whose health its files decide.

Its environment: PROBE_NAME, its name; PROBE_SETTINGS, its settings as JSON; PROBE_DECLARES, JSON: arguments of the
Agent, the version of its capability, whether it has a health check, how long its method takes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
declares: dict[str, Any] = json.loads(os.environ.get("PROBE_DECLARES", "{}"))
agent = Agent(os.environ["PROBE_NAME"], app, **declares.get("agent", {}))


@dataclass
class Text:
    """A text to summarise."""

    body: str
    pages: int = 1


@agent.method(capability="summarise", version=declares.get("version", "2.1"))
def shorten(text: Text, words: int = 10) -> dict[str, Any]:
    """Shorten a text."""
    time.sleep(2.0 if Path(declares.get("slow_file", "/nowhere")).exists() else declares.get("seconds", 0))
    if Path(declares.get("fail_file", "/nowhere")).exists():
        raise ValueError("the model is broken")
    return {"by": agent.name, "words": words}


@agent.method(capability="tell")
def tell(count: int) -> Iterator[int]:
    """Yield numbers."""
    yield from range(count)


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    """Write who handled a message into the file that it names."""
    with Path(message.payload["file"]).open("a") as file:
        file.write(f"{agent.name}\n")
    gate = message.payload.get("gate")
    ends_at = time.monotonic() + 60
    while gate is not None and not Path(gate).exists() and time.monotonic() < ends_at:
        time.sleep(0.02)


if "check_file" in declares:

    @agent.health_check(period=0.2, timeout=1.0, failures=declares.get("failures", 1))
    async def file_is_there() -> bool:
        """Return whether the file is there."""
        return Path(declares["check_file"]).exists()


if "blocked_check" in declares:

    @agent.health_check(period=0.2, timeout=0.3, failures=1)
    def blocks() -> None:
        """Take too long."""
        time.sleep(60)
