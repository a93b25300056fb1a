"""The ends of open messages that no worker reports: those that expire, and those that are lost."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, exists, func, select, true

from waooaw_celery.ledger.database.clock import now_in, now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import KeyedMessageRow, MessageEventRow, OpenMessageRow
from waooaw_celery.ledger.database.rows import keyed_event_row
from waooaw_celery.ledger.read.scan import same_message
from waooaw_celery.ledger.write.statements import close_ended, write
from waooaw_celery.messages.receipt import NO_PROGRESS, SWEEP_GRACE, MessageEvent, MessageFact


def expire_overdue(database: Database) -> list[str]:
    """Mark as EXPIRED the open messages that are past their expiry and that no worker handles.

    Returns:
        Their ids, sorted.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    is_overdue = OpenMessageRow.expires_at < now_within(database) - timedelta(seconds=SWEEP_GRACE)
    return _end_messages(database, "sweep expired messages", is_overdue & ~_is_running(), MessageEvent.EXPIRED)


def fail_lost(database: Database, lost_after: timedelta, *, recovered: bool) -> list[str]:
    """Mark as FAILED the open messages that a worker began long ago, with no event since.

    Args:
        database: the ledger's database.
        lost_after: how long ago the newest delivery must be.
        recovered: whether a recovery runs: then only messages that it cannot publish again are marked.

    Returns:
        Their ids, sorted.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    now = now_within(database)
    delivered_at = select(func.max(MessageEventRow.at)).where(
        same_message(MessageEventRow, OpenMessageRow), MessageEventRow.event == MessageEvent.DELIVERED.value
    )
    has_expired = OpenMessageRow.expires_at.is_not(None) & (OpenMessageRow.expires_at < now)
    is_ours = OpenMessageRow.unrepeatable | has_expired if recovered else true()
    is_lost = _is_running() & is_ours & (delivered_at.scalar_subquery() < now - lost_after)
    return _end_messages(database, "look for lost messages", is_lost, MessageEvent.FAILED, lost_error(lost_after))


def count_open(database: Database, agent: str, sender: str) -> int:
    """Return how many open messages of a sender to an agent there are: those that wait, run or are delayed.

    Args:
        database: the ledger's database.
        agent: the recipient.
        sender: the sender.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    is_theirs = (OpenMessageRow.to_agent == agent) & (OpenMessageRow.from_agent == sender)
    with database.begin(f"count the messages of {sender!r} to {agent!r}") as connection:
        return connection.scalar(select(func.count()).select_from(OpenMessageRow).where(is_theirs)) or 0


def count_by_sender(database: Database, agents: Collection[str]) -> dict[str, dict[str, int]]:
    """Return how many open messages to agents each sender has, by recipient; the largest number first.

    Args:
        database: the ledger's database.
        agents: the recipients.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    columns = OpenMessageRow.to_agent, OpenMessageRow.from_agent
    query = select(*columns, func.count()).where(OpenMessageRow.to_agent.in_(agents)).group_by(*columns)
    found: dict[str, dict[str, int]] = {}
    with database.begin("count open messages by sender") as connection:
        for agent, sender, count in connection.execute(query.order_by(func.count().desc())):
            found.setdefault(agent, {})[sender] = count
    return found


def count_blocked(database: Database, agents: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return, by agent, how many keys have messages that wait for an earlier one, and how many these are.

    Args:
        database: the ledger's database.
        agents: the recipients.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    is_open = exists().where(OpenMessageRow.message_id == KeyedMessageRow.message_id)
    is_waiting = (KeyedMessageRow.state == "waits") & (KeyedMessageRow.key != "") & is_open
    counts = func.count(KeyedMessageRow.key.distinct()), func.count()
    query = select(KeyedMessageRow.agent, *counts).where(KeyedMessageRow.agent.in_(agents), is_waiting)
    with database.begin("count the messages that wait for others of their keys") as connection:
        rows = connection.execute(query.group_by(KeyedMessageRow.agent))
        return {agent: (keys, messages) for agent, keys, messages in rows}


def lost_error(lost_after: timedelta) -> str:
    """Return why a message that ``fail_lost`` marks has failed."""
    return f"lost: begun more than {lost_after.total_seconds():g} s ago, and no worker reported its end"


def _end_messages(
    database: Database, operation: str, condition: Any, event: MessageEvent, error: str | None = None
) -> list[str]:
    """Record a final event of the open messages that meet a condition, and return the ids of those it ended."""
    with database.begin(operation) as connection:
        close_ended(connection)
        # A worker that was killed cannot forget the keys of its messages.
        is_open = exists().where(OpenMessageRow.message_id == KeyedMessageRow.message_id)
        connection.execute(delete(KeyedMessageRow).where(~is_open))
        messages = connection.execute(select(OpenMessageRow.__table__).where(condition)).all()
        now = now_in(connection)
        rows = [
            keyed_event_row(
                MessageFact(message_id=message.message_id, event=event, at=now, error=error),
                message.retain_until,
                message.sent_at,
            )
            for message in messages
        ]
        return sorted(write(connection, facts=rows).ended) if rows else []


def _is_running() -> Any:
    """Whether the newest event of an open message is a delivery: its handler may still run."""
    events = select(MessageEventRow.event).where(
        same_message(MessageEventRow, OpenMessageRow), MessageEventRow.event.not_in(NO_PROGRESS)
    )
    newest = events.order_by(MessageEventRow.at.desc()).limit(1).scalar_subquery()
    return newest.is_not_distinct_from(MessageEvent.DELIVERED.value)
