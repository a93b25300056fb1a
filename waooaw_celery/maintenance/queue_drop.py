"""How an operator drops the messages of one sender that wait in a queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.waiting import waiting_messages
from waooaw_celery.broker.waiting.waiting_message import WaitingMessage, WaitingMessages
from waooaw_celery.errors import LedgerMismatch
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.messages.wording import ledger_name
from waooaw_celery.worker.cancellation import notify_caller

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """What a drop found or did.

    Attributes:
        agent: the agent in whose queue the messages waited.
        from_agent: the agent that sent them.
        messages: how many were dropped or, in a dry run, would be, by priority.
        into: ``dead letters``, or ``nothing`` when they were discarded.
        dry_run: whether nothing was dropped.
    """

    agent: str
    from_agent: str
    messages: dict[Priority, int]
    into: str
    dry_run: bool

    @property
    def total(self) -> int:
        """The number of messages."""
        return sum(self.messages.values())


def drop(
    app: AgentApp,
    agent: str,
    from_agent: str,
    *,
    by: str,
    reason: str | None = None,
    discard: bool = False,
    dry_run: bool = False,
) -> Dropped:
    """Take the waiting messages of one sender out of an agent's queue.

    What a worker holds is not touched. If this process dies half-way, the broker puts back what is not dropped.

    Args:
        app: the application.
        agent: the agent in whose queue the messages wait.
        from_agent: the agent that sent them.
        by: who drops them, for the record.
        reason: why, for the record.
        discard: delete them, and record each as CANCELLED. False: make dead letters of them, and record each as
            DEAD.
        dry_run: only count them.

    Raises:
        BrokerUnavailable: the broker does not answer.
        StoreUnavailable: the ledger's database or, without a ledger, Redis does not answer.
        InvalidMessage: a name is invalid.
        ConfigurationError: messages cannot be dropped from this kind of broker.
        LedgerMismatch: another ledger records one of the messages, and would not record that it was dropped.
    """
    queue = agent_queue(check_agent_name(agent)).name
    check_agent_name(from_agent, "from_agent")
    note = f"dropped from the queue by {by}" + (f": {reason}" if reason else "")
    counts: Counter[Priority] = Counter()
    with waiting_messages(app) as waiting:
        _check_ledgers(app, _of_sender(waiting, queue, from_agent))
        if dry_run:
            counts.update(each.priority for each in _of_sender(waiting, queue, from_agent))
        else:
            for batch in waiting.take(queue, from_agent):
                done = _discard(app, waiting, batch, note) if discard else _bury(app, waiting, queue, batch, note)
                counts.update(message.priority for message in done)
    into = "nothing" if discard else "dead letters"
    messages = {priority: counts[priority] for priority in Priority if counts[priority]}
    result = Dropped(agent=agent, from_agent=from_agent, messages=messages, into=into, dry_run=dry_run)
    if not dry_run:
        logger.warning(
            "dropped messages of %s from %s: %d, by %a",
            from_agent,
            queue,
            result.total,
            by,
            extra={"action": "dropped"},
        )
    return result


def _check_ledgers(app: AgentApp, messages: Iterator[WaitingMessage]) -> None:
    for each in messages:
        if each.ledger not in (None, app.ledger_id):
            raise LedgerMismatch(
                f"{ledger_name(each.ledger)} records message {each.message_id}, and this process writes to "
                f"{ledger_name(app.ledger_id)}: run the command with the waooaw_database_url (or "
                "WAOOAW_DATABASE_URL) of that ledger. Nothing was dropped"
            )


def _of_sender(waiting: WaitingMessages, queue: str, sender: str) -> Iterator[WaitingMessage]:
    return (each for each in waiting.read(queue, 2**31) if each.from_agent == sender)


def _bury(
    app: AgentApp, waiting: WaitingMessages, queue: str, batch: Sequence[WaitingMessage], note: str
) -> Sequence[WaitingMessage]:
    """Make dead letters first: a message is never without both, its place in the queue and its dead letter."""
    buried = waiting.bury(queue, batch, note)
    _record(app, buried, MessageEvent.DEAD, note)
    waiting.forget(buried)
    return buried


def _discard(
    app: AgentApp, waiting: WaitingMessages, batch: Sequence[WaitingMessage], note: str
) -> Sequence[WaitingMessage]:
    """Record first: a message that comes back because this process died is then skipped as a duplicate."""
    _record(app, batch, MessageEvent.CANCELLED, note)
    waiting.forget(batch)
    return batch


def _record(app: AgentApp, messages: Sequence[WaitingMessage], event: MessageEvent, note: str) -> None:
    """Record the end of messages, and tell the callers that wait for the answers of those that are requests."""
    known = [message for message in messages if message.message_id is not None]
    if known:
        app.receipts.note(
            *(MessageFact(message_id=str(each.message_id), event=event, error=note) for each in known)
        )
        app.receipts.flush()
    for message in known:
        if message.is_awaited:
            notify_caller(app, str(message.message_id))
