"""An agent for a whole day's work. PROBE_NAME names it, PROBE_SETTINGS are its settings as JSON.

It is the application of every process of the day: the agent's worker, the system's worker, beat and the command
line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.maintenance.tasks import register_periodic_tasks

app = create_app("day_probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)
app.schemas.register("day.ended", {"required": ["n"]}, version="1")
if os.environ.get("PROBE_SYSTEM"):
    register_periodic_tasks(app)


@agent.on(MessageType.COMMAND, bind=True, retries=1)
def command(self: Any, message: Message) -> None:
    do: Any = message.payload
    if do.get("fail") or (do.get("fail_once") and not self.request.retries):
        raise ValueError("no")


@agent.method
def echo(value: Any) -> Any:
    return value


@agent.method
def count(to: int) -> Iterator[int]:
    yield from range(to)


@agent.subscribe("day.*")
def ended(message: Message) -> None:
    """Handle an event."""


@agent.reply
def replied(response: Any) -> None:
    """Handle an answer."""


@agent.method
def ask_later(to_agent: str) -> str:
    return agent.request_later(to_agent, "echo", {"value": 1}, on_reply=replied).message_id


if app.settings.database_url is not None:

    @agent.method(once=True)
    def work() -> int:
        return agent.session.execute(text("SELECT 1")).scalar_one()
