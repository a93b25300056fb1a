"""Measures documents: words, readability, key terms, and which ones it has seen before in almost the same words.

Run as many as there is work for: each with a name of its own (``ANALYST_NAME``), or several workers on one name.
"""

from __future__ import annotations

import os
from dataclasses import asdict

from waooaw_celery import Agent, Message, MessageType, create_app
from workers.text import NEAR_DUPLICATE, measure, similarity

app = create_app("analyst")
agent = Agent(os.environ.get("ANALYST_NAME", "analyst-1"), app, capabilities=["measure"])

_seen: dict[str, tuple[int, ...]] = {}


@agent.on(MessageType.COMMAND)
def analyse(message: Message) -> None:
    """Measure a document, report to the archivist, tell the sender that it is done, and everyone what happened."""
    path = message.payload["path"]
    facts = asdict(measure(message.payload["text"]))
    fingerprint = facts.pop("fingerprint")
    facts |= {"path": path, "analyst": agent.name, "near_duplicates": _near_duplicates(path, fingerprint)}
    _seen[path] = fingerprint
    agent.send("archivist", facts, ttl_seconds=None)
    agent.send(message.from_agent, {"path": path}, message_type=MessageType.ACK, ttl_seconds=None)
    agent.publish("document.measured", {"path": path, "words": facts["words"]})


@agent.method
def get_status() -> dict[str, object]:
    """Tell what this agent is doing."""
    return {"measured": len(_seen)}


def _near_duplicates(path: str, fingerprint: tuple[int, ...]) -> list[str]:
    return sorted(
        other
        for other, known in _seen.items()
        if other != path and similarity(known, fingerprint) >= NEAR_DUPLICATE
    )
