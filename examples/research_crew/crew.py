"""The lead of the crew: a workflow that researches topics in parallel, within a budget of tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crew_app import app

from waooaw_celery import Agent
from waooaw_celery.agents import Flow, RequestError, RetryPolicy

#: How many topics are researched at the same time.
AT_ONCE = 2
#: Fewer tokens are not worth a question.
SMALLEST_SHARE = 5

lead = Agent("lead", app)
writer = Agent("writer", app)


@lead.workflow
async def study(flow: Flow, question: str, topics: list[str], budget: int) -> dict[str, Any]:
    """Research topics, two at a time, until all are done or the tokens are spent; then have the report written.

    The budget does not end the work with an error: the report says what was cut and what was left out.
    """
    notes: list[dict[str, Any]] = []
    left = budget
    for start in range(0, len(topics), AT_ONCE):
        some = topics[start : start + AT_ONCE]
        share = left // len(some)
        if share < SMALLEST_SHARE:
            break

        async def ask(topic: str, share: int = share) -> dict[str, Any]:
            found: dict[str, Any] = await flow.step(listen, topic, share, retry=RetryPolicy.fixed(3, 1))
            return found

        notes += await flow.map(ask, some)
        left = budget - sum(note["tokens"] for note in notes)
        flow.progress({"topics": len(notes), "of": len(topics), "tokens left": left})
    done = [note["topic"] for note in notes]
    report = await flow.request("writer", "write", {"question": question, "notes": notes})
    return {
        "report": " ".join(report),
        "tokens": budget - left,
        "cut": [note["topic"] for note in notes if note["cut"]],
        "left_out": [topic for topic in topics if topic not in done],
    }


async def listen(topic: str, tokens: int) -> dict[str, Any]:
    """Listen to a researcher until it has ended, or has used its tokens: leaving the stream stops it."""
    words: list[str] = []
    cut = False
    try:
        async with lead.aio.stream("capability:research", params={"topic": topic}, timeout=30) as parts:
            async for word in parts:
                if len(words) == tokens:
                    cut = True
                    break
                words.append(word)
    except RequestError:
        if not words:
            raise  # nothing was spent: the step is tried again
        cut = True  # what was said before the failure is spent, and is kept
    return {"topic": topic, "text": " ".join(words), "tokens": len(words), "cut": cut}


@writer.method
async def write(question: str, notes: list[dict[str, Any]]) -> AsyncIterator[str]:
    """Write a report paragraph by paragraph, so that a reader can begin before it ends."""
    yield f"{question}"
    for note in notes:
        yield f"On {note['topic']}: {note['text']}{' …' if note['cut'] else ''}"
