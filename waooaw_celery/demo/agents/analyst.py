"""The analyst measures documents: words, readability, key terms, and which documents are nearly the same.

Run as many analysts as you need. Give each a name of its own with ``ANALYST_NAME``, or start several workers with
one name, which then share one queue.
"""

from __future__ import annotations

import os
from dataclasses import asdict

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.demo.agents.text import NEAR_DUPLICATE, measure, similarity

app = create_app("analyst")
agent = Agent(os.environ.get("ANALYST_NAME", "analyst-1"), app, capabilities=["measure"])

_fingerprints: dict[str, tuple[int, ...]] = {}


@agent.on(MessageType.COMMAND)
def analyse(message: Message) -> None:
    """Measure a document, send the report to the archivist and an ACK to the sender, and publish an event."""
    path = message.payload["path"]
    report = asdict(measure(message.payload["text"]))
    fingerprint = report.pop("fingerprint")
    report |= {"path": path, "analyst": agent.name, "near_duplicates": _near_duplicates(path, fingerprint)}
    _fingerprints[path] = fingerprint
    agent.send("archivist", report, ttl_seconds=None)
    agent.send(message.from_agent, {"path": path}, message_type=MessageType.ACK, ttl_seconds=None)
    agent.publish("document.measured", {"path": path, "words": report["words"]})


@agent.method
def words(text: str) -> int:
    """Return how many words a document has, and store nothing."""
    return measure(text).words


@agent.method
def get_status() -> dict[str, object]:
    """Return how many documents this analyst has measured."""
    return {"measured": len(_fingerprints)}


def _near_duplicates(path: str, fingerprint: tuple[int, ...]) -> list[str]:
    return sorted(
        other
        for other, known in _fingerprints.items()
        if other != path and similarity(known, fingerprint) >= NEAR_DUPLICATE
    )
