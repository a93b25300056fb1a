"""Asks every agent what it is doing, all at once, while they work; and hears of each document."""

from __future__ import annotations

from waooaw_celery import Agent, Message, Priority, create_app
from waooaw_celery.agents import aio

app = create_app("dashboard")
agent = Agent("dashboard", app)
requests = aio.RequestResponseHandler(app)

#: Seconds that the survey waits for all answers together.
PATIENCE = 10.0
#: From so many words on a document is a long one.
LONG = 1000

_surveys = 0
_measured = 0
_long: list[str] = []


@agent.method
async def survey() -> dict[str, dict[str, object]]:
    """Return what each agent that can tell its status answers, and how long that took."""
    global _surveys
    _surveys += 1
    asked = [
        record.name
        for record in app.registry.all()
        if record.name != agent.name and "get_status" in (record.handlers or ())
    ]
    answers = await requests.broadcast_request(
        asked, "get_status", from_agent=agent.name, timeout=PATIENCE, priority=Priority.HIGH
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
    """Count what happens to documents, whoever tells."""
    global _measured
    _measured += 1


@agent.subscribe("document.measured", where={"words": {"gte": LONG}})
def note_long(message: Message) -> None:
    """Note the long documents; of the others it is sent nothing."""
    _long.append(message.payload["path"])


@agent.method
def get_status() -> dict[str, object]:
    """Tell what this agent is doing."""
    return {"surveys": _surveys, "measured": _measured, "long": len(_long)}
