"""A test agent for the console: it fails, answers, subscribes and runs workflows, with hostile text everywhere.

Its environment: PROBE_NAME, its name; PROBE_TOPIC, the topic of its subscription; PROBE_HOSTILE, the text.
"""

from __future__ import annotations

import json
import os
from typing import Any

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("console_probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
HOSTILE = os.environ["PROBE_HOSTILE"]
agent = Agent(os.environ["PROBE_NAME"], app, capabilities=["probing"], tags=["tested"], metadata={"note": HOSTILE})


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    do = message.payload if isinstance(message.payload, dict) else {}
    if "fail" in do:
        raise ValueError(do["fail"])


@agent.method
def echo(value: Any) -> Any:
    return value


@agent.subscribe(os.environ["PROBE_TOPIC"], where={"note": {"ne": HOSTILE + "!"}})
def paid(message: Message) -> None:
    pass


@agent.workflow
async def approve(flow: Any, text: str) -> Any:
    flow.progress({"text": text})
    await flow.request(agent.name, "echo", {"value": text})
    return await flow.wait_for("approval")


@agent.workflow
async def parent(flow: Any, text: str) -> Any:
    return await flow.child(f"{agent.name}.approve", {"text": text})


@agent.workflow
async def break_down(flow: Any, text: str) -> None:
    await flow.request(agent.name, "echo", {"value": text})
    raise ValueError(text)
