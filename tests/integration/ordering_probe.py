"""A test agent whose COMMANDs have keys. Each begin and end of a handler is a line of PROBE_CALLS."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from waooaw_celery import Agent, Message, MessageType, RetryPolicy, create_app

settings = json.loads(os.environ.get("PROBE_SETTINGS", "{}"))
options = settings.pop("options", {})


class Panic(BaseException):
    """What a Rust extension raises."""


def find_key(message: Message) -> Any:
    """Return the key, or raise what the payload says."""
    do: Any = message.payload
    if "raises" in do:
        raise {"panic": Panic, "exit": SystemExit, "error": ValueError}[do["raises"]]("no key")
    return do.get("key")


if options.get("key") == "find_key":
    options["key"] = find_key
app = create_app("ordering-probe", **settings)
agent = Agent(os.environ["PROBE_NAME"], app)
RETRIES = RetryPolicy(attempts=3, first_delay=0.3, jitter=False)
CALLS = Path(os.environ["PROBE_CALLS"])


def note(event: str, message: Message, attempt: int = 0) -> None:
    payload: Any = message.payload
    facts = {
        "event": event,
        "pid": os.getpid(),
        "at": time.time(),
        "id": message.message_id,
        "from": message.from_agent,
        "attempt": attempt,
        **(payload if isinstance(payload, dict) else {}),
    }
    with CALLS.open("a") as lines:
        lines.write(f"{json.dumps(facts)}\n")


@agent.on(MessageType.COMMAND, bind=True, retries=RETRIES, **options)
async def command(task: Any, message: Message) -> None:
    attempt = task.request.retries
    note("begin", message, attempt)
    do: Any = message.payload
    await asyncio.sleep(do.get("seconds", 0))
    if attempt < do.get("fails", 0):
        note("fails", message, attempt)
        raise OSError("try again")
    note("end", message, attempt)


@agent.on(MessageType.QUERY)
def plain(message: Message) -> None:
    """It has no key."""
    note("begin", message)
    note("end", message)
