"""What the ledger knows of messages that may be lost: which to look for, and what becomes of those not found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, or_, select

from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import MessageRow, OpenMessageRow, WorkerRow
from waooaw_celery.ledger.database.rows import LedgerRow, keyed_event_row
from waooaw_celery.ledger.read.reader import by_month, in_partition, read_records
from waooaw_celery.ledger.read.records import AuditEvent, AuditRecord
from waooaw_celery.ledger.write.statements import write
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions, due_at
from waooaw_celery.messages.receipt import NO_PROGRESS, MessageEvent, MessageFact

#: How often a message is recovered, before it has failed.
MAX_RECOVERIES = 5
#: Messages that would expire before anybody could begin them are left to expire.
EXPIRY_MARGIN = timedelta(seconds=1)


class LostMessageCandidate(NamedTuple):
    """An open message that may be lost."""

    message_id: str
    agent: str
    sent_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LostMessageRules:
    """When a message that the broker does not have is lost.

    Attributes:
        after: how long nothing must have been heard of it.
        lost: how long its handler may run without a word.
        exact: whether the broker tells of each single message; otherwise a living worker may hold it.
    """

    after: timedelta
    lost: timedelta
    exact: bool


class Verdict(Enum):
    """What is to become of a message that the broker does not have."""

    AGAIN = "again"
    GIVE_UP = "give up"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostMessage:
    """A message that is lost.

    Attributes:
        message: the message, as it was sent.
        handler: name of its handler.
        besides: what its publish had besides.
        retries: how often its handler had asked for another attempt.
        recoveries: how often it was recovered, this time included.
        reason: why it counts as lost.
        given_up: whether it was lost too often: it is not published again.
    """

    message: Message
    handler: str
    besides: PublishOptions
    retries: int
    recoveries: int
    reason: str
    given_up: bool


def candidates(
    connection: Connection,
    rules: LostMessageRules,
    *,
    behind: str,
    upto: str | None,
    agent: str | None,
    count: int,
) -> list[LostMessageCandidate]:
    """Return open messages that may be published again, if the broker does not have them, by id.

    Args:
        connection: in a transaction.
        rules: when a message is lost.
        behind: only ids behind this one.
        upto: only ids up to this one; None: all.
        agent: only those to this agent; None: to all.
        count: how many at most.
    """
    now = now_in(connection)  # as the row was written
    in_time = or_(OpenMessageRow.expires_at.is_(None), OpenMessageRow.expires_at > now + EXPIRY_MARGIN)
    where: list[ColumnElement[bool]] = [
        OpenMessageRow.message_id > behind,
        OpenMessageRow.written_at < now - rules.after,
        ~OpenMessageRow.unrepeatable,
        in_time,
    ]
    if upto is not None:
        where.append(OpenMessageRow.message_id <= upto)
    if agent is not None:
        where.append(OpenMessageRow.to_agent == agent)
    query = select(OpenMessageRow.message_id, OpenMessageRow.to_agent, OpenMessageRow.sent_at).where(*where)
    rows = connection.execute(query.order_by(OpenMessageRow.message_id).limit(count))
    return [LostMessageCandidate(row.message_id, row.to_agent, row.sent_at) for row in rows]


def claiming(database: Database) -> AbstractContextManager[Connection]:
    """Give a transaction in which ``judge`` and ``claim`` see what every other run has claimed."""
    return database.begin("claim lost messages")


def judge(
    connection: Connection, ids: Sequence[str], rules: LostMessageRules, looked_at: datetime
) -> list[LostMessage]:
    """Return those of these messages, which the broker does not have, that are lost; the oldest first.

    Args:
        connection: in a transaction.
        ids: which messages.
        rules: when a message is lost.
        looked_at: when the broker began to be asked: whatever was told since then is newer than its answer.
    """
    if connection.dialect.name == "sqlite":
        # Two runs at once: the second sees what the first has claimed. (On PostgreSQL one runs at a time.)
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    keys = connection.execute(
        select(OpenMessageRow.message_id, OpenMessageRow.retain_until).where(OpenMessageRow.message_id.in_(ids))
    ).all()
    found: list[tuple[AuditRecord, Any]] = []
    for month in by_month((key.message_id, key.retain_until) for key in keys):
        which = in_partition(MessageRow, month)
        query = select(MessageRow.message_id, MessageRow.options).where(which)
        options: dict[str, Any] = {row.message_id: row.options for row in connection.execute(query)}
        records = read_records(connection, select(MessageRow.__table__).where(which))
        found += [(record, options.get(record.receipt.message_id)) for record in records]
    now = now_in(connection)
    living = _living(connection, now, {record.receipt.to_agent for record, _ in found})
    lost = []
    for record, said in sorted(found, key=lambda each: each[0].receipt.sent_at):
        besides = PublishOptions.from_json(said)
        verdict, reason = _verdict(record, besides, living, rules, looked_at, now)
        if verdict is not Verdict.LEAVE:
            lost.append(_lost(record, besides, reason, given_up=verdict is Verdict.GIVE_UP))
    return lost


def claim(connection: Connection, lost: Iterable[LostMessage]) -> None:
    """Write down that messages are recovered, or given up: before they are published, so that this is bounded."""
    now = now_in(connection)
    write(connection, facts=[_entry(each, now) for each in lost])


def _entry(lost: LostMessage, now: datetime) -> LedgerRow:
    event = MessageEvent.FAILED if lost.given_up else MessageEvent.RECOVERED
    fact = MessageFact(message_id=lost.message.message_id, event=event, at=now, error=lost.reason)
    kept: Any = lost.message.retention
    return keyed_event_row(fact, kept.until(lost.message.sent_at), lost.message.sent_at)


#: By agent and worker: when a living worker was started, where that is known.
Living = Mapping[tuple[str, str], datetime | None]


def _living(connection: Connection, now: datetime, agents: set[str]) -> Living:
    columns = (WorkerRow.agent, WorkerRow.worker, WorkerRow.started_at)
    rows = select(*columns).where(WorkerRow.agent.in_(agents), WorkerRow.alive_until > now)
    return {(row.agent, row.worker): row.started_at for row in connection.execute(rows)}


def _verdict(
    record: AuditRecord,
    besides: PublishOptions,
    living: Living,
    rules: LostMessageRules,
    looked_at: datetime,
    now: datetime,
) -> tuple[Verdict, str]:
    """Return what is to become of a message that the broker does not have, and why."""
    leave, reason = (Verdict.LEAVE, ""), "not in the broker"
    if record.receipt.status.final or record.erased_at is not None or _retention(record) is None:
        return leave
    if any(event.at >= looked_at for event in record.events):
        return leave
    recoveries = [event for event in record.events if event.event == MessageEvent.RECOVERED]
    if recoveries and now - recoveries[-1].at < _pause(len(recoveries), rules):
        return leave
    due = due_at(besides)
    if due is not None and not rules.exact and now < due + rules.after:
        return leave  # a worker holds it until then
    newest = _newest(record)
    if newest is not None and newest.event in (MessageEvent.DELIVERED, MessageEvent.RETRIED):
        silent = now - newest.at
        lives = _lives_since(newest, record.receipt.to_agent, living)
        # Which worker a retry came to is not known, and it may hold it until it is due.
        held = lives if newest.event == MessageEvent.DELIVERED else lives and not rules.exact
        if silent < (rules.lost if held else rules.after):
            return leave
        if newest.event == MessageEvent.DELIVERED:
            reason += (
                f", and its worker, {newest.worker}, has told nothing for {silent.total_seconds():.0f} s"
                if lives
                else f", and its worker, {newest.worker}, is gone"
            )
    if len(recoveries) >= MAX_RECOVERIES:
        return Verdict.GIVE_UP, f"lost: it was recovered {len(recoveries)} times, and is {reason}"
    return Verdict.AGAIN, reason


def _pause(recoveries: int, rules: LostMessageRules) -> timedelta:
    """Return how long a recovery is given: ever longer, where it may be a wrong guess."""
    return rules.after if rules.exact else rules.after * 2**recoveries


def _newest(record: AuditRecord) -> AuditEvent | None:
    told = [event for event in record.events if event.event not in NO_PROGRESS]
    return max(told, key=lambda event: event.at) if told else None


def _lives_since(event: AuditEvent, agent: str, living: Living) -> bool:
    """Whether the worker that told an event lives, and is the same that told it."""
    if event.worker is None or (agent, event.worker) not in living:
        return False
    started_at = living[agent, event.worker]
    return started_at is None or started_at <= event.at


def _lost(record: AuditRecord, besides: PublishOptions, reason: str, *, given_up: bool) -> LostMessage:
    receipt = record.receipt
    begun = [event for event in record.events if event.event in (MessageEvent.DELIVERED, MessageEvent.RETRIED)]
    last = max(begun, key=lambda event: event.at, default=None)
    # A retry is the attempt behind the one that asked for it.
    retries = 0 if last is None else last.attempt - (last.event == MessageEvent.DELIVERED)
    message = Message(
        from_agent=receipt.from_agent,
        to_agent=receipt.to_agent,
        message_type=receipt.message_type,
        payload=record.payload,
        priority=receipt.priority,
        ttl_seconds=None if record.expires_at is None else (record.expires_at - receipt.sent_at).total_seconds(),
        message_id=receipt.message_id,
        correlation_id=receipt.correlation_id,
        conversation_id=record.conversation_id,
        causation_id=record.causation_id,
        retention=_retention(record),
        sent_at=receipt.sent_at,
        serializer=besides.serializer,
        compression=besides.compression,
        resent=besides.resent,
        event=record.event,
    )
    return LostMessage(
        message=message,
        handler=receipt.handler,
        besides=besides,
        retries=max(retries, 0),
        recoveries=sum(event.event == MessageEvent.RECOVERED for event in record.events) + (not given_up),
        reason=reason,
        given_up=given_up,
    )


def _retention(record: AuditRecord) -> RetentionPolicy | None:
    """Return for how long a message is kept, which its record tells by the moment at which that ends."""
    fits = (each for each in RetentionPolicy if each.until(record.receipt.sent_at) == record.retain_until)
    return next(fits, None)
