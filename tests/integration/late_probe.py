"""A test agent that subscribes while its worker runs.

Its environment: PROBE_NAME, its name; PROBE_SETTINGS, its settings as JSON.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from waooaw_celery import Agent, Message, create_app

app = create_app("late_probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)
idle = Agent(f"{agent.name}-idle", app)

_seen: list[Any] = []


def note(message: Message) -> None:
    _seen.append(message.payload)


@agent.method
def subscribe(pattern: str, name: str, own: bool = True, since: float | None = None, time_limit: int = 60) -> None:
    period = None if since is None else timedelta(seconds=since)
    (agent if own else idle).subscribe(pattern, name=name, since=period, time_limit=time_limit)(note)


@agent.method
def register() -> None:
    def answer(value: str) -> str:
        return value[::-1]

    agent.method(answer)


@agent.method
def seen() -> list[Any]:
    return _seen
