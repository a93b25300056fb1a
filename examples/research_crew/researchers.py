"""The researchers: they write what they find in parts, until they have said everything or nobody listens."""

from __future__ import annotations

from collections.abc import AsyncIterator

from crew_app import app

from waooaw_celery import Agent

#: What this world knows. A real researcher would ask a search engine and a language model.
LIBRARY = {
    "history": "Queues are older than computers. Erlang counted telephone calls in 1909.",
    "theory": "Little's law says that the length is the rate multiplied by the wait.",
    "practice": "Keep queues short. Say no early. Measure the age of the oldest message.",
    "future": "Agents will wait in queues too.",
}

researchers = [Agent(f"researcher-{number}", app) for number in (1, 2)]


async def research(topic: str) -> AsyncIterator[str]:
    """Yield what is known about a topic, word by word; each word is one token of the budget."""
    for word in LIBRARY[topic].split():
        yield word


for researcher in researchers:
    researcher.method(research, capability="research")
