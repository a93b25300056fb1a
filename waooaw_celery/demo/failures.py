"""The demo's failure scenarios: a rate limit, an invalid document, a kill, a hanging agent, and lost messages."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.agents.requests.handler import RequestResponseHandler
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.demo.hanging_agent import AgentHung, hang_agent
from waooaw_celery.demo.killed_workflow import WorkflowKilled, kill_workflow
from waooaw_celery.demo.processes import Stack
from waooaw_celery.errors import RateLimitExceeded
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.store.connection import connect, store_url

#: The sender that exceeds its rate limit, its quota, and how many requests it sends.
VISITOR, QUOTA, REQUESTS = "visitor", "5/minute burst 3", 8
#: The sender of documents, and the analyst that gets them here.
SENDER, ANALYST = "orchestrator", "analyst-1"
#: How many documents wait for the analyst when the broker is emptied.
DOCUMENTS = 60
#: Seconds without news after which recovery looks for a message, and seconds between its two looks at the broker.
#: Both are shorter than the defaults, so that the demo takes seconds and not a minute.
RECOVERY_AFTER, RECOVERY_PAUSE = 1.0, 0.5
#: Seconds after which a scenario counts as stuck.
STUCK_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitReached:
    """What happened to the requests of a sender with a rate limit.

    Attributes:
        sender: the agent that sent the requests.
        quota: what it may send.
        answered: how many of its requests were answered.
        refused: how many were refused, counted by the ledger.
        retry_after: seconds after which the next request is allowed.
    """

    sender: str
    quota: str
    answered: int
    refused: int
    retry_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRejected:
    """What happened to a document that its handler could not read.

    Attributes:
        agent: the agent whose handler failed.
        message_id: id of the message.
        dead_letter_id: id of the dead letter that the message became.
        reason: the error of the handler.
    """

    agent: str
    message_id: str
    dead_letter_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesRecovered:
    """What happened to messages that waited in a broker when it was emptied.

    Attributes:
        agent: the agent they were sent to.
        sent: how many messages were sent just before.
        republished: how many of them were missing in the broker and published again.
        handled: how many were handled in the end.
        begun_twice: how many a worker began more than once.
        seconds: seconds from the loss until all were handled.
    """

    agent: str
    sent: int
    republished: int
    handled: int
    begun_twice: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """What happened in each failure scenario."""

    rate_limit: RateLimitReached
    invalid_document: DocumentRejected
    killed_workflow: WorkflowKilled
    hanging_agent: AgentHung
    lost_messages: MessagesRecovered


def run_failures(stack: Stack) -> Failures:
    """Run all failure scenarios, one after the other.

    Raises:
        WaooawError: a process ended, or a scenario took longer than a minute.
    """
    return Failures(
        rate_limit=exceed_rate_limit(stack),
        invalid_document=send_invalid_document(stack),
        killed_workflow=kill_workflow(stack),
        hanging_agent=hang_agent(stack),
        lost_messages=lose_messages(stack),
    )


def exceed_rate_limit(stack: Stack) -> RateLimitReached:
    """Set a quota while everything runs, as `waooaw limits set` does, and send more requests than it allows."""
    requests, trail = RequestResponseHandler(stack.app), MessageAuditTrail(stack.app.ledger)
    quota = stack.app.limiter.set_quota(VISITOR, QUOTA)
    answered, retry_after = 0, 0.0
    for _ in range(REQUESTS):
        try:
            requests.request("dashboard", "get_status", from_agent=VISITOR)
            answered += 1
        except RateLimitExceeded as error:
            retry_after = error.retry_after
    refused = sum(refusal.count for refusal in trail.refusals(VISITOR))
    return RateLimitReached(
        sender=VISITOR, quota=str(quota), answered=answered, refused=refused, retry_after=retry_after
    )


def send_invalid_document(stack: Stack) -> DocumentRejected:
    """Send a document without its text, and wait for its dead letter."""
    message = Message(from_agent=SENDER, to_agent=ANALYST, payload={"path": "invalid.txt"}, ttl_seconds=None)
    MessageBus(stack.app).send(message)
    found: list[DeadLetter] = []

    def is_dead() -> bool:
        dead_letters = stack.app.dead_letters.list(agent=ANALYST)
        found[:] = [each for each in dead_letters if each.message_id == message.message_id]
        return bool(found)

    stack.wait_until(is_dead, "storing the dead letter", STUCK_SECONDS)
    dead_letter = found[0]
    return DocumentRejected(
        agent=ANALYST,
        message_id=message.message_id,
        dead_letter_id=dead_letter.id,
        reason=dead_letter.reason,
    )


def lose_messages(stack: Stack) -> MessagesRecovered:
    """Send documents, empty the broker while they wait, and publish what the ledger still has."""
    messages = [
        Message(
            from_agent=SENDER,
            to_agent=ANALYST,
            payload={"path": f"lost-{number:02}.txt", "text": f"Number {number}. " * 500},
            ttl_seconds=None,
        )
        for number in range(DOCUMENTS)
    ]
    MessageBus(stack.app).send_many(messages)
    with closing(connect(store_url(stack.url))) as server:
        server.flushall()
    lost_at = time.monotonic()
    ids, trail = {message.message_id for message in messages}, MessageAuditTrail(stack.app.ledger)
    recovery = Recovery(stack.app, after=RECOVERY_AFTER, pause=RECOVERY_PAUSE)
    republished: set[str] = set()

    def all_handled() -> bool:
        republished.update(recovery.run(agent=ANALYST).recovered)
        return all(stack.app.receipts.get(id_).status.final for id_ in ids)

    stack.wait_until(all_handled, "recovering the lost messages", STUCK_SECONDS)
    seconds = time.monotonic() - lost_at
    events = [[event.event for event in trail.receipt(id_).events] for id_ in ids]
    return MessagesRecovered(
        agent=ANALYST,
        sent=len(ids),
        republished=len(republished & ids),
        handled=sum(MessageEvent.HANDLED in each for each in events),
        begun_twice=sum(each.count(MessageEvent.DELIVERED) > 1 for each in events),
        seconds=seconds,
    )
