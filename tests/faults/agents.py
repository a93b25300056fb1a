"""The agent of the fault tests. FAULTS_NAME is its name, FAULTS_SETTINGS are its settings."""

from __future__ import annotations

import json
import os
from typing import Any
from uuid import uuid4

from sqlalchemy import text

from faults.effects import act
from waooaw_celery import Agent, Message, MessageType, RetryPolicy, create_app
from waooaw_celery.agents import Flow
from waooaw_celery.maintenance.tasks import register_periodic_tasks

os.environ["FAULTS_WORKER"] = str(os.getpid())  # this module is imported by the worker before it forks
app = create_app("faults", **json.loads(os.environ["FAULTS_SETTINGS"]))
if os.environ.get("FAULTS_SYSTEM"):
    register_periodic_tasks(app)  # the system's worker and beat, and no agent
else:
    agent = Agent(os.environ["FAULTS_NAME"], app)
    #: With FAULTS_KEY, the commands have a key, and are tried again.
    KEYED: dict[str, Any] = {}
    if os.environ.get("FAULTS_KEY"):
        KEYED = {"key": os.environ["FAULTS_KEY"], "retries": RetryPolicy.fixed(3, 0.2)}

    @agent.on(MessageType.COMMAND, bind=True, **KEYED)
    def command(self: Any, message: Message) -> None:
        """Do what the payload asks for."""
        act(message.payload, self.request)

    @agent.on(MessageType.QUERY, bind=True, once=True)
    def query(self: Any, message: Message) -> None:
        """Do what the payload asks for, and insert a row into the ledger's database exactly once."""
        agent.session.execute(text("INSERT INTO faults_effects VALUES (:id)"), {"id": message.message_id})
        act(message.payload, self.request)

    @agent.method
    def double(n: int) -> int:
        """Return the double of a number."""
        return 2 * n

    @agent.workflow
    async def job(flow: Flow, fails: bool) -> list[Any]:
        """Make ten steps of all kinds; fail at the end if that is wanted."""
        name = os.environ["FAULTS_NAME"]
        made: list[Any] = [await flow.step(token)]
        flow.compensate(token)
        made.append(await flow.request(name, "double", {"n": 1}))
        flow.compensate(name, "double", {"n": -1})
        made += await flow.gather(
            flow.request(name, "double", {"n": 2}), flow.step(token), flow.request(name, "double", {"n": 3})
        )
        await flow.sleep(0.1)
        made.append(await flow.step(token))
        flow.compensate(token)
        made.append(await flow.wait_for("go"))
        made.append(await flow.request(name, "double", {"n": 4}))
        if fails:
            raise ValueError("as the input asks")
        return made


def token() -> str:
    """Return something else each time: a step that was recorded and called again would be seen."""
    return uuid4().hex
