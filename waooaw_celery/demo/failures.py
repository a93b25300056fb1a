"""What goes wrong in the demo, on purpose: too many requests, a torn document, a broker that forgets."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.agents.requests.handler import RequestResponseHandler
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.demo.processes import Stack
from waooaw_celery.errors import RateLimitExceeded
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.store.connection import connect, store_url

#: Who asks more than it may.
VISITOR = "visitor"
#: Who sends documents to be measured, and which of the analysts gets them here.
SENDER, ANALYST = "orchestrator", "analyst-1"
#: Documents that wait for it when the broker forgets everything.
WAITING = 60
#: Seconds for which nothing was heard of a message that is looked for, and between two looks: shorter than by
#: default, since nobody wants to watch for a minute.
AFTER, PAUSE = 1.0, 0.5
#: Seconds that any of it may take.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """How a visitor met its rate limit, which was set while everything ran.

    Attributes:
        agent: who asked.
        quota: what it may send.
        answered: how many of its requests were answered.
        refused: how many were refused, as the ledger has it.
        retry_after: seconds after which the next one passes.
    """

    agent: str
    quota: str
    answered: int
    refused: int
    retry_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidDocument:
    """What was kept of a message that its handler gave up.

    Attributes:
        agent: whose handler.
        message_id: of the message.
        letter: id of the dead letter.
        reason: why the handler gave it up.
    """

    agent: str
    message_id: str
    letter: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAndRecovered:
    """How the broker lost all that it had, and the ledger did not.

    Attributes:
        agent: whose queue.
        sent: how many messages were sent to it just before.
        published_again: how many of them the broker had no longer, so that they were published again.
        handled: how many were handled in the end.
        twice: how many were handled more than once.
        seconds: from the loss until all were handled.
    """

    agent: str
    sent: int
    published_again: int
    handled: int
    twice: int
    seconds: float


def exceed_the_rate_limit(stack: Stack) -> Limited:
    """Set a visitor a quota, as `waooaw limits set` does, and have it ask more than that."""
    requests, trail = RequestResponseHandler(stack.app), MessageAuditTrail(stack.app.ledger)
    quota = stack.app.limiter.set_quota(VISITOR, "5/minute burst 3")
    answered, retry_after = 0, 0.0
    for _ in range(8):
        try:
            requests.request("dashboard", "get_status", from_agent=VISITOR)
            answered += 1
        except RateLimitExceeded as error:
            retry_after = error.retry_after
    refused = sum(refusal.count for refusal in trail.refusals(VISITOR))
    return Limited(agent=VISITOR, quota=str(quota), answered=answered, refused=refused, retry_after=retry_after)


def send_an_invalid_document(stack: Stack) -> InvalidDocument:
    """Send an analyst a document without its text, and return what is kept of it."""
    torn = Message(from_agent=SENDER, to_agent=ANALYST, payload={"path": "torn.txt"}, ttl_seconds=None)
    MessageBus(stack.app).send(torn)
    letters: list[DeadLetter] = []

    def kept() -> bool:
        found = stack.app.dead_letters.list(agent=ANALYST)
        letters[:] = [letter for letter in found if letter.message_id == torn.message_id]
        return bool(letters)

    stack.wait_until(kept, "keeping the dead letter", PATIENCE)
    letter = letters[0]
    return InvalidDocument(agent=ANALYST, message_id=torn.message_id, letter=letter.id, reason=letter.reason)


def lose_messages_in_the_broker(stack: Stack) -> LostAndRecovered:
    """Send documents, empty the broker while they wait, and have the ledger say what is to be published again."""
    messages = [
        Message(
            from_agent=SENDER,
            to_agent=ANALYST,
            payload={"path": f"lost-{number:02}.txt", "text": f"Number {number}. " * 500},
            ttl_seconds=None,
        )
        for number in range(WAITING)
    ]
    MessageBus(stack.app).send_many(messages)
    with closing(connect(store_url(stack.url))) as server:
        server.flushall()
    began = time.monotonic()
    ids, trail = {message.message_id for message in messages}, MessageAuditTrail(stack.app.ledger)
    recovery = Recovery(stack.app, after=AFTER, pause=PAUSE)
    again: set[str] = set()

    def all_handled() -> bool:
        again.update(recovery.run(agent=ANALYST).recovered)
        return all(stack.app.receipts.get(id_).status.final for id_ in ids)

    stack.wait_until(all_handled, "recovering", PATIENCE)
    seconds = time.monotonic() - began
    events = [[event.event for event in trail.receipt(id_).events] for id_ in ids]
    return LostAndRecovered(
        agent=ANALYST,
        sent=len(ids),
        published_again=len(again & ids),
        handled=sum(MessageEvent.HANDLED in told for told in events),
        twice=sum(told.count(MessageEvent.DELIVERED) > 1 for told in events),
        seconds=seconds,
    )
