"""An agent of the soak. SOAK_NAME is its name, SOAK_SETTINGS its settings, FAULTS_EFFECTS its file of effects."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from faults.effects import act
from sqlalchemy import text

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.maintenance.tasks import register_periodic_tasks

app = create_app("soak", **json.loads(os.environ["SOAK_SETTINGS"]))
if os.environ.get("SOAK_SYSTEM"):
    register_periodic_tasks(app)  # the system's worker and beat, and no agent
else:
    agent = Agent(os.environ["SOAK_NAME"], app)

    @agent.on(MessageType.COMMAND, bind=True)
    def command(self: Any, message: Message) -> None:
        """Do what the payload asks for."""
        act(message.payload, self.request)

    @agent.on(MessageType.QUERY, bind=True, once=True)
    def query(self: Any, message: Message) -> None:
        """Insert a row into the ledger's database exactly once, and do what the payload asks for."""
        agent.session.execute(text("INSERT INTO soak_effects VALUES (:id)"), {"id": message.message_id})
        act(message.payload, self.request)

    @agent.method
    async def echo(value: Any) -> Any:
        """Return the value."""
        return value

    @agent.method
    def count(to: int) -> Iterator[int]:
        """Stream the numbers below ``to``."""
        for number in range(to):
            time.sleep(0.01)
            yield number

    @agent.subscribe("soak.*")
    def happened(message: Message) -> None:
        """Get an event, and do nothing."""
