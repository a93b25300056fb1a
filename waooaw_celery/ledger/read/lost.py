"""Finds lost messages in the ledger: candidates to look for in the broker, and the verdict on those it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, exists, or_, select

from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import KeyedMessageRow, MessageRow, OpenMessageRow, WorkerRow
from waooaw_celery.ledger.database.rows import LedgerRow, keyed_event_row
from waooaw_celery.ledger.read.reader import (
    group_by_month,
    in_partition,
    message_columns,
    read_payloads,
    read_records,
)
from waooaw_celery.ledger.read.records import AuditEvent, AuditRecord
from waooaw_celery.ledger.write.statements import write
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions, due_at
from waooaw_celery.messages.receipt import NO_PROGRESS, MessageEvent, MessageFact
from waooaw_celery.messages.trace_context import trace_of
from waooaw_celery.messages.validation import JSON

#: How often a message is recovered before it fails.
MAX_RECOVERIES = 5
#: Messages that expire within this time are left to expire.
EXPIRY_MARGIN = timedelta(seconds=1)

#: When each living worker was started, by agent and worker; None if unknown.
LivingWorkers: TypeAlias = Mapping[tuple[str, str], datetime | None]


class LostMessageCandidate(NamedTuple):
    """An open message to look for in the broker."""

    message_id: str
    agent: str
    sent_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LostMessageRules:
    """When a message that the broker does not have counts as lost.

    Attributes:
        min_silence: how long nothing must have been recorded of it.
        max_handling: how long a living worker may handle it without recording anything.
        exact: whether the broker knows of every single message, also of those that workers hold. Otherwise a
            living worker may hold a message that the broker seems not to have.
    """

    min_silence: timedelta
    max_handling: timedelta
    exact: bool


class Verdict(Enum):
    """What happens to a message that the broker does not have."""

    REPUBLISH = "republish"
    GIVE_UP = "give up"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostMessage:
    """A lost message, and what is needed to publish it again.

    Attributes:
        message: the message, as it was sent.
        handler: the name of its handler.
        publish_options: the options that it was published with.
        retries: how many retries its handler had requested.
        recoveries: how often it was recovered, including this time.
        reason: why it counts as lost.
        given_up: whether it was lost too often, and fails instead of being published again.
    """

    message: Message
    handler: str
    publish_options: PublishOptions
    retries: int
    recoveries: int
    reason: str
    given_up: bool


def find_candidates(
    connection: Connection,
    rules: LostMessageRules,
    *,
    after: str,
    up_to: str | None,
    agent: str | None,
    limit: int,
) -> list[LostMessageCandidate]:
    """Return open messages that can be published again if the broker does not have them, ordered by id.

    Args:
        connection: a connection in a transaction.
        rules: when a message is lost.
        after: only ids greater than this one.
        up_to: only ids up to this one; None: all.
        agent: only messages to this agent; None: to all agents.
        limit: how many at most.
    """
    now = now_in(connection)  # the clock that ``written_at`` is from
    is_in_time = or_(OpenMessageRow.expires_at.is_(None), OpenMessageRow.expires_at > now + EXPIRY_MARGIN)
    conditions: list[ColumnElement[bool]] = [
        OpenMessageRow.message_id > after,
        OpenMessageRow.written_at < now - rules.min_silence,
        ~OpenMessageRow.unrepeatable,
        is_in_time,
        # A worker may hold it until it is the turn of its key.
        ~exists().where(
            KeyedMessageRow.message_id == OpenMessageRow.message_id,
            KeyedMessageRow.state == "waits",
            KeyedMessageRow.expected_until > now,
        ),
    ]
    if up_to is not None:
        conditions.append(OpenMessageRow.message_id <= up_to)
    if agent is not None:
        conditions.append(OpenMessageRow.to_agent == agent)
    columns = (OpenMessageRow.message_id, OpenMessageRow.to_agent, OpenMessageRow.sent_at)
    query = select(*columns).where(*conditions).order_by(OpenMessageRow.message_id).limit(limit)
    return [LostMessageCandidate(row.message_id, row.to_agent, row.sent_at) for row in connection.execute(query)]


def claim_transaction(database: Database) -> AbstractContextManager[Connection]:
    """Open the transaction for ``find_lost`` and ``record_recoveries``; it sees the claims of other runs."""
    return database.begin("claim lost messages")


def find_lost(
    connection: Connection, ids: Sequence[str], rules: LostMessageRules, looked_at: datetime
) -> list[LostMessage]:
    """Return those messages that are lost, of messages that the broker does not have; the oldest first.

    Args:
        connection: a connection in a transaction.
        ids: the ids of messages that the broker does not have.
        rules: when a message is lost.
        looked_at: when the broker was first asked. A message with a newer event is left alone: the event is newer
            than the broker's answer.
    """
    if connection.dialect.name == "sqlite":
        # Of two concurrent runs, the second sees the claims of the first. On PostgreSQL only one runs at a time.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    found = _read_with_options(connection, ids)
    now = now_in(connection)
    living = _living_workers(connection, now, {record.receipt.to_agent for record, _ in found})
    judged = (
        (record, options, *_verdict(record, options, living, rules, looked_at, now)) for record, options in found
    )
    lost = sorted(
        (each for each in judged if each[2] is not Verdict.LEAVE), key=lambda each: each[0].receipt.sent_at
    )
    payloads = read_payloads(connection, [record for record, *_ in lost])
    return [
        _lost_message(
            record, payloads[record.receipt.message_id], options, reason, given_up=verdict is Verdict.GIVE_UP
        )
        for record, options, verdict, reason in lost
    ]


def record_recoveries(connection: Connection, lost: Iterable[LostMessage]) -> None:
    """Record that messages are recovered or given up: before the publish, so that recoveries are bounded."""
    now = now_in(connection)
    write(connection, facts=[_recovery_row(each, now) for each in lost])


def _read_with_options(connection: Connection, ids: Sequence[str]) -> list[tuple[AuditRecord, PublishOptions]]:
    keys = connection.execute(
        select(OpenMessageRow.message_id, OpenMessageRow.retain_until).where(OpenMessageRow.message_id.in_(ids))
    ).all()
    found: list[tuple[AuditRecord, PublishOptions]] = []
    for month in group_by_month((key.message_id, key.retain_until) for key in keys):
        is_wanted = in_partition(MessageRow, month)
        query = select(MessageRow.message_id, MessageRow.options).where(is_wanted)
        options: dict[str, Any] = {row.message_id: row.options for row in connection.execute(query)}
        for record in read_records(connection, select(*message_columns(payloads=False)).where(is_wanted)):
            found.append((record, PublishOptions.from_json(options.get(record.receipt.message_id))))
    return found


def _recovery_row(lost: LostMessage, now: datetime) -> LedgerRow:
    event = MessageEvent.FAILED if lost.given_up else MessageEvent.RECOVERED
    fact = MessageFact(message_id=lost.message.message_id, event=event, at=now, error=lost.reason)
    retention: Any = lost.message.retention
    return keyed_event_row(fact, retention.until(lost.message.sent_at), lost.message.sent_at)


def _living_workers(connection: Connection, now: datetime, agents: set[str]) -> LivingWorkers:
    columns = (WorkerRow.agent, WorkerRow.worker, WorkerRow.started_at)
    rows = select(*columns).where(WorkerRow.agent.in_(agents), WorkerRow.alive_until > now)
    return {(row.agent, row.worker): row.started_at for row in connection.execute(rows)}


def _verdict(
    record: AuditRecord,
    options: PublishOptions,
    living: LivingWorkers,
    rules: LostMessageRules,
    looked_at: datetime,
    now: datetime,
) -> tuple[Verdict, str]:
    """Return the verdict on a message that the broker does not have, and the reason."""
    leave, reason = (Verdict.LEAVE, ""), "not in the broker"
    if record.receipt.status.final or record.erased_at is not None or _retention(record) is None:
        return leave
    if any(event.at >= looked_at for event in record.events):
        return leave
    recoveries = [event for event in record.events if event.event == MessageEvent.RECOVERED]
    if recoveries and now - recoveries[-1].at < _pause(len(recoveries), rules):
        return leave
    due = due_at(options)
    if due is not None and not rules.exact and now < due + rules.min_silence:
        return leave  # a worker holds it until it is due
    newest = _newest_progress(record)
    if newest is not None and newest.event in (MessageEvent.DELIVERED, MessageEvent.RETRIED):
        silence = now - newest.at
        is_alive = _is_same_worker_alive(newest, record.receipt.to_agent, living)
        # After a retry the worker is unknown; on an inexact broker it may hold the message until it is due.
        is_held = is_alive if newest.event == MessageEvent.DELIVERED else is_alive and not rules.exact
        if silence < (rules.max_handling if is_held else rules.min_silence):
            return leave
        if newest.event == MessageEvent.DELIVERED:
            reason += (
                f", and its worker, {newest.worker}, has reported nothing for {silence.total_seconds():.0f} s"
                if is_alive
                else f", and its worker, {newest.worker}, is gone"
            )
    if len(recoveries) >= MAX_RECOVERIES:
        return Verdict.GIVE_UP, f"lost: it was recovered {len(recoveries)} times, and is {reason}"
    return Verdict.REPUBLISH, reason


def _pause(recoveries: int, rules: LostMessageRules) -> timedelta:
    """Return how long to wait after a recovery: longer each time if the verdict may be wrong."""
    return rules.min_silence if rules.exact else rules.min_silence * 2**recoveries


def _newest_progress(record: AuditRecord) -> AuditEvent | None:
    events = [event for event in record.events if event.event not in NO_PROGRESS]
    return max(events, key=lambda event: event.at, default=None)


def _is_same_worker_alive(event: AuditEvent, agent: str, living: LivingWorkers) -> bool:
    """Whether the worker that recorded an event is alive, and was not restarted since."""
    if event.worker is None or (agent, event.worker) not in living:
        return False
    started_at = living[agent, event.worker]
    return started_at is None or started_at <= event.at


def _lost_message(
    record: AuditRecord, payload: JSON, options: PublishOptions, reason: str, *, given_up: bool
) -> LostMessage:
    receipt = record.receipt
    attempts = [event for event in record.events if event.event in (MessageEvent.DELIVERED, MessageEvent.RETRIED)]
    last = max(attempts, key=lambda event: event.at, default=None)
    # A RETRIED event has the number of the attempt that requested the retry.
    retries = 0 if last is None else last.attempt - (last.event == MessageEvent.DELIVERED)
    message = Message(
        from_agent=receipt.from_agent,
        to_agent=receipt.to_agent,
        message_type=receipt.message_type,
        payload=payload,
        priority=receipt.priority,
        ttl_seconds=None if record.expires_at is None else (record.expires_at - receipt.sent_at).total_seconds(),
        message_id=receipt.message_id,
        correlation_id=receipt.correlation_id,
        conversation_id=record.conversation_id,
        causation_id=record.causation_id,
        retention=_retention(record),
        sent_at=receipt.sent_at,
        serializer=options.serializer,
        compression=options.compression,
        resent=options.resent,
        capability=options.capability,
        trace=trace_of(options.trace or {}),
        reference=options.reference,
        event=record.event,
        identity=record.identity,
    )
    return LostMessage(
        message=message,
        handler=receipt.handler,
        publish_options=options,
        retries=max(retries, 0),
        recoveries=sum(event.event == MessageEvent.RECOVERED for event in record.events) + (not given_up),
        reason=reason,
        given_up=given_up,
    )


def _retention(record: AuditRecord) -> RetentionPolicy | None:
    """Return the retention policy that gives a message's ``retain_until``, or None."""
    matches = (each for each in RetentionPolicy if each.until(record.receipt.sent_at) == record.retain_until)
    return next(matches, None)
