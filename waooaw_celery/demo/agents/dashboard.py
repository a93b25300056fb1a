"""The dashboard asks all agents for their status at once while they work, and subscribes to their events."""

from __future__ import annotations

from waooaw_celery import Agent, Message, Priority, create_app
from waooaw_celery.agents import aio

app = create_app("dashboard")
agent = Agent("dashboard", app)
requests = aio.RequestResponseHandler(app)

#: Seconds for which the survey waits for all answers together.
SURVEY_SECONDS = 10.0
#: A document with this many words or more is a long one.
LONG = 1000

_surveys = 0
_measured = 0
_long: list[str] = []


@agent.method
async def survey() -> dict[str, dict[str, object]]:
    """Return the status that each agent answers, and how many seconds its answer took."""
    global _surveys
    _surveys += 1
    asked = [
        record.name
        for record in app.registry.all()
        if record.name != agent.name and "get_status" in (record.handlers or ())
    ]
    answers = await requests.broadcast_request(
        asked, "get_status", from_agent=agent.name, timeout=SURVEY_SECONDS, priority=Priority.HIGH
    )
    return {
        name: {
            "status": answer.result,
            "error": str(answer.error) if answer.error else None,
            "seconds": round(answer.seconds, 3),
        }
        for name, answer in answers.items()
    }


@agent.subscribe("document.*")
def count(message: Message) -> None:
    """Count every event about a document, whichever agent published it."""
    global _measured
    _measured += 1


@agent.subscribe("document.measured", where={"words": {"gte": LONG}})
def note_long(message: Message) -> None:
    """Note the long documents. Events that do not match ``where`` are not sent to this subscriber."""
    _long.append(message.payload["path"])


@agent.method
def get_status() -> dict[str, object]:
    """Return how many surveys were made, and how many documents and long documents were seen."""
    return {"surveys": _surveys, "measured": _measured, "long": len(_long)}
