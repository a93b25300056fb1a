"""The triage agent, and the workflow of a ticket: classify, ask a specialist, ask a person where it is needed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from desk_app import app
from model import configured

from waooaw_celery import Agent
from waooaw_celery.agents import Flow, NoAgentAvailable, RequestError, SignalTimeout

TOPICS = ("billing", "technical")
#: Refunds above this amount need a person, in cents.
APPROVAL_ABOVE = 100_00
#: How long a specialist has for an answer, in seconds.
SPECIALIST_SECONDS = 60

triage = Agent("triage", app)
desk = Agent("desk", app)
model = configured()


@triage.method
def classify(text: str) -> str:
    """Return the topic of a ticket; ``unknown`` if the model says anything else."""
    answer = model.complete(f"Which of {', '.join(TOPICS)} is this ticket about? Answer with one word.\n{text}")
    topic = answer.strip().lower()
    return topic if topic in TOPICS else "unknown"


@desk.workflow
async def ticket(flow: Flow, customer: str, text: str) -> dict[str, Any]:
    """Answer one ticket. A person answers it if no specialist does, and decides about large refunds."""
    topic = await flow.request("triage", "classify", {"text": text})
    answer = await _ask_specialist(flow, topic, {"customer": customer, "text": text})
    if answer is None:
        answer = {**await flow.wait_for("answer"), "by": "a person"}
    elif answer.get("refund", 0) > APPROVAL_ABOVE and not await _is_approved(flow, answer["refund"]):
        answer = {"text": "We cannot refund this.", "by": answer["by"]}
    await flow.publish("ticket.answered", {"customer": customer, **answer})
    return answer


async def _ask_specialist(flow: Flow, topic: str, question: dict[str, str]) -> dict[str, Any] | None:
    """Return the answer of a specialist, or escalate the ticket and return none."""
    if topic == "unknown":
        await flow.publish("ticket.escalated", {**question, "because": "the topic is unknown"})
        return None
    try:
        answer: dict[str, Any] = await flow.request(
            f"capability:solve?tags={topic}", params=question, timeout=SPECIALIST_SECONDS, retry=1
        )
    except (RequestError, NoAgentAvailable) as error:  # it failed twice, or its deadline has passed
        await flow.publish("ticket.escalated", {**question, "because": f"{type(error).__name__}: {error}"})
        return None
    return answer


async def _is_approved(flow: Flow, refund: int) -> bool:
    """Return what a person decides; no answer within two days is a no."""
    await flow.publish("approval.wanted", {"ticket": flow.workflow_id, "refund": refund})
    try:
        decision = await flow.wait_for("approval", timeout=timedelta(days=2))
    except SignalTimeout:
        return False
    return bool(decision["approved"])
