"""Makes the diagram of a conversation out of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.read.records import AuditEvent, AuditRecord
from waooaw_celery.maintenance.diagrams.folding import fold
from waooaw_celery.maintenance.diagrams.model import (
    WORST_FIRST,
    Arrow,
    ArrowKind,
    Attempt,
    ConversationDiagram,
    Participant,
    ParticipantKind,
)
from waooaw_celery.messages.enums import MessageStatus, MessageType
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.workflows.start import ANSWER_HANDLER, INPUT_HANDLER

#: Most arrows that a picture has, unless it is asked for more.
MAX_ARROWS = 500
#: The events that end an attempt.
_ENDS = frozenset(
    {
        MessageEvent.RETRIED.value,
        MessageEvent.HANDLED.value,
        MessageEvent.FAILED.value,
        MessageEvent.DEAD.value,
        MessageEvent.CANCELLED.value,
        MessageEvent.EXPIRED.value,
    }
)
_KINDS = {
    MessageType.COMMAND: ArrowKind.COMMAND,
    MessageType.QUERY: ArrowKind.REQUEST,
    MessageType.ACK: ArrowKind.ACK,
    MessageType.EVENT: ArrowKind.DELIVERY,
    MessageType.RESPONSE: ArrowKind.ANSWER,
}


def diagram_of(
    records: Sequence[AuditRecord], *, max_arrows: int = MAX_ARROWS, workflows: Collection[str] = ()
) -> ConversationDiagram:
    """Return the diagram of a conversation.

    Args:
        records: the messages of the conversation in causal order: what ``MessageAuditTrail.conversation`` returns.
            Their payloads are not read.
        max_arrows: most arrows. With more messages, those of one sender, recipient and handler that were sent in
            the same slice of time are folded into one arrow, which has their number and the worst status.
        workflows: the ids of the workflows in this conversation (``workflow_ids``): the id of a workflow is that
            of the message that starts it.

    Raises:
        InvalidMessage: there is no record, or ``max_arrows`` is less than 1.

    Example:
        >>> records = MessageAuditTrail(app.ledger).conversation(message_id, payloads=False)
        >>> diagram_of(records).participants
    """
    if not records:
        raise InvalidMessage("a diagram needs at least one record")
    if max_arrows < 1:
        raise InvalidMessage(f"max_arrows must be 1 or more, not {max_arrows}")
    by_id = {record.receipt.message_id: record for record in records}
    answers = _answers(records, by_id)
    times, depths = _order(records)
    ordered = sorted(records, key=lambda record: times[record.receipt.message_id])
    participants = _Participants()
    arrows = []
    for record in ordered:
        source, target = participants.ends_of(record, by_id)
        id_ = record.receipt.message_id
        arrows.append(_arrow(record, source, target, answers.get(id_), depths[id_], workflows))
    statuses = Counter(record.receipt.status for record in records)
    diagram = ConversationDiagram(
        conversation_id=records[0].conversation_id,
        participants=tuple(participants.found),
        arrows=tuple(arrows),
        messages=len(records),
        by_status=tuple((status, statuses[status]) for status in WORST_FIRST if statuses[status]),
        agents=sum(each.kind is ParticipantKind.AGENT for each in participants.found),
        retries=sum(arrow.retries for arrow in arrows),
        began_at=min(arrow.sent_at for arrow in arrows),
        ended_at=max(arrow.ends_at for arrow in arrows),
    )
    return fold(diagram, max_arrows)


class _Participants:
    """The participants that were found so far."""

    def __init__(self) -> None:
        self.found: list[Participant] = []
        self._numbers: dict[Participant, int] = {}

    def ends_of(self, record: AuditRecord, by_id: dict[str, AuditRecord]) -> tuple[int, int]:
        """Return where the arrow of a message begins and ends. An event goes to its topic, and on from there."""
        receipt = record.receipt
        cause = by_id.get(record.causation_id or "")
        if is_event_record(record):
            return self._number(receipt.from_agent), self._number(receipt.handler, ParticipantKind.TOPIC)
        if receipt.message_type is MessageType.EVENT and cause is not None and is_event_record(cause):
            return self._number(cause.receipt.handler, ParticipantKind.TOPIC), self._number(receipt.to_agent)
        return self._number(receipt.from_agent), self._number(receipt.to_agent)

    def _number(self, name: str, kind: ParticipantKind = ParticipantKind.AGENT) -> int:
        participant = Participant(name=name, kind=kind)
        if participant not in self._numbers:
            self._numbers[participant] = len(self.found)
            self.found.append(participant)
        return self._numbers[participant]


def is_event_record(record: AuditRecord) -> bool:
    """Whether a record is that of a published event, which no handler gets."""
    return record.receipt.message_type is MessageType.EVENT and not record.receipt.to_agent


def _answers(records: Iterable[AuditRecord], by_id: dict[str, AuditRecord]) -> dict[str, str]:
    """Return the ids of the answers, by the id of the request. A handler's later reply to it counts too."""
    answers: dict[str, str] = {}
    for record in records:
        if record.receipt.message_type is MessageType.RESPONSE and record.causation_id in by_id:
            answers.setdefault(record.causation_id or "", record.receipt.message_id)
    return answers


def _order(records: Sequence[AuditRecord]) -> tuple[dict[str, datetime], dict[str, int]]:
    """Return the time at which each message is drawn, and its depth in the tree of causes.

    The clocks of computers may disagree: a message is drawn no earlier than its cause.
    """
    times: dict[str, datetime] = {}
    depths: dict[str, int] = {}
    for record in records:  # in causal order
        id_, cause = record.receipt.message_id, record.causation_id or ""
        times[id_] = max(record.receipt.sent_at, times.get(cause, record.receipt.sent_at))
        depths[id_] = depths[cause] + 1 if cause in depths else 0
    return times, depths


def _arrow(
    record: AuditRecord, source: int, target: int, answer_id: str | None, depth: int, workflows: Collection[str]
) -> Arrow:
    receipt = record.receipt
    attempts = attempts_of(record.events)
    handling = attempts[-1].seconds if attempts and attempts[-1].outcome else None
    if handling is None and attempts and attempts[-1].ended_at is not None:
        handling = _seconds_between(attempts[-1].began_at, attempts[-1].ended_at)
    kind = _kind(record, workflows)
    return Arrow(
        message_id=receipt.message_id,
        source=source,
        target=target,
        from_agent=receipt.from_agent,
        to_agent=receipt.to_agent,
        label="answer" if receipt.status is MessageStatus.ANSWERED else receipt.handler,
        kind=kind,
        status=receipt.status,
        sent_at=receipt.sent_at,
        delivered_at=receipt.delivered_at,
        finished_at=receipt.finished_at,
        expires_at=record.expires_at,
        waiting_seconds=_waiting(record),
        handling_seconds=handling,
        attempts=attempts,
        retries=max(len(attempts) - 1, 0),
        cancel_requested_at=receipt.cancel_requested_at,
        error=receipt.error,
        cause_id=record.causation_id,
        answer_id=answer_id,
        depth=depth,
    )


def _kind(record: AuditRecord, workflows: Collection[str]) -> ArrowKind:
    receipt = record.receipt
    if is_event_record(record):
        return ArrowKind.EVENT
    if receipt.message_type is MessageType.QUERY and (
        receipt.message_id in workflows or receipt.handler in (INPUT_HANDLER, ANSWER_HANDLER)
    ):
        return ArrowKind.WORKFLOW
    return _KINDS[receipt.message_type]


def _waiting(record: AuditRecord) -> float | None:
    delivered = next((event for event in record.events if event.event == MessageEvent.DELIVERED), None)
    if delivered is None:
        return None
    if delivered.seconds is not None:
        return delivered.seconds
    return _seconds_between(record.receipt.sent_at, delivered.at)


def attempts_of(events: Iterable[AuditEvent]) -> tuple[Attempt, ...]:
    """Return the attempts of a message.

    Args:
        events: its events, in order.
    """
    attempts: list[Attempt] = []
    running: AuditEvent | None = None
    for event in events:
        if event.event == MessageEvent.DELIVERED:
            if running is not None:
                attempts.append(_attempt(running, event.at, "lost", None, None))
            running = event
        elif running is not None and event.event in _ENDS:
            attempts.append(_attempt(running, event.at, event.event, event.seconds, event.error))
            running = None
    if running is not None:
        attempts.append(_attempt(running, None, None, None, None))
    return tuple(attempts)


def _attempt(
    began: AuditEvent, ended_at: datetime | None, outcome: str | None, seconds: float | None, error: str | None
) -> Attempt:
    return Attempt(
        number=began.attempt,
        began_at=began.at,
        ended_at=None if ended_at is None else max(ended_at, began.at),
        outcome=outcome,
        seconds=seconds,
        worker=began.worker,
        error=error,
    )


def _seconds_between(first: datetime, last: datetime) -> float:
    return max((last - first).total_seconds(), 0.0)
