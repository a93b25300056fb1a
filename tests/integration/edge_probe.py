"""A test agent that others reach by an edge. PROBE_NAME is its name, PROBE_EFFECTS a file for its effects."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from waooaw_celery import Agent, Message, create_app
from waooaw_celery.agents import Flow

app = create_app("edges", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app, tags=["probe"])


def effect(line: str) -> None:
    """Append a line to the file of effects."""
    with Path(os.environ["PROBE_EFFECTS"]).open("a") as file:
        file.write(line + "\n")


@agent.method
def forecast(city: str) -> dict[str, Any]:
    """Tell the weather of a city."""
    effect(f"forecast {city}")
    return {"city": city, "degrees": 21}


@agent.method
def echo(text: str) -> str:
    """Return a text unchanged."""
    return text


@agent.method
def fail(text: str) -> str:
    """Fail with a text."""
    raise ValueError(text)


@agent.method
async def slow(seconds: float) -> str:
    """Return after some seconds."""
    effect("slow begins")
    await asyncio.sleep(seconds)
    effect("slow ends")
    return "done"


@agent.method
def blocking(seconds: float) -> str:
    """Block a process for some seconds."""
    time.sleep(seconds)
    return "done"


@agent.method
async def write(topic: str, words: int, pause: float = 0.0) -> AsyncIterator[str]:
    """Write about a topic, word by word."""
    for number in range(words):
        yield f"{topic}-{number} "
        await asyncio.sleep(pause)


@agent.method
async def moments(count: int) -> AsyncIterator[Any]:
    """Tell some moments, which JSON has no type for."""
    for second in range(count):
        yield {"at": datetime(2026, 11, 30, 12, 0, second, tzinfo=UTC)}


@agent.workflow
async def review(flow: Flow, document: str) -> dict[str, Any]:
    """Have a person approve a document."""
    flow.progress({"stage": "waiting for approval"})
    decision = await flow.wait_for("approval", timeout=60)
    return {"document": document, "decision": decision}


@agent.subscribe("orders.*")
def on_order(message: Message) -> None:
    """Note an order."""
    effect(f"order {json.dumps(message.payload)}")
