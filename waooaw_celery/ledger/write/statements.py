"""The statements that add rows to the ledger, in PostgreSQL and in SQLite. Each adds any number of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, delete, exists, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.column_types import EncodedJson, UtcDateTime
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow, RefusalRow
from waooaw_celery.ledger.database.rows import LedgerRow, keyed_event_row, message_row
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact

_MESSAGES: Any = MessageRow.__table__
_EVENTS: Any = MessageEventRow.__table__
_OPEN: Any = OpenMessageRow.__table__
_REFUSALS: Any = RefusalRow.__table__


#: Calls the function that the migration creates.
WRITE = "SELECT id, outcome FROM waooaw_write(%(messages)s, %(facts)s, %(detect_duplicates)s)"


class StatementOutcome(NamedTuple):
    """What a statement changed, as ids of messages.

    Attributes:
        new: messages that were added.
        ended: messages that these events ended.
        duplicate: messages that were delivered although they had ended. The event is written as DUPLICATE instead
            of DELIVERED.
    """

    new: set[str]
    ended: set[str]
    duplicate: set[str]


def parameters(
    messages: Sequence[LedgerRow], facts: Sequence[LedgerRow], detect_duplicates: bool
) -> dict[str, Any]:
    """Return the parameters of ``WRITE``."""
    return {
        "messages": _json_list(messages),
        "facts": _json_list(facts),
        "detect_duplicates": detect_duplicates,
    }


def parse_outcome(rows: Iterable[Sequence[Any]]) -> StatementOutcome:
    """Return what the rows mean that ``WRITE`` returned."""
    result = StatementOutcome(set(), set(), set())
    for id_, outcome in rows:
        getattr(result, outcome).add(id_)
    return result


def write(
    connection: Connection,
    messages: Sequence[LedgerRow] = (),
    facts: Sequence[LedgerRow] = (),
    *,
    detect_duplicates: bool = False,
) -> StatementOutcome:
    """Add messages and events. Rows that the ledger has already are skipped.

    Args:
        connection: a connection in a transaction.
        messages: rows of kind ``message``.
        facts: rows of kind ``fact``.
        detect_duplicates: whether to write DELIVERED as DUPLICATE if the message has ended. False for rows that
            are written late, such as those from the spool.
    """
    if connection.dialect.name == "postgresql":
        arguments = parameters(messages, facts, detect_duplicates)
        return parse_outcome(connection.exec_driver_sql(WRITE, arguments).all())
    new = _write_messages(connection, messages)
    return StatementOutcome(new, *_write_facts(connection, facts, detect_duplicates))


def write_refusals(connection: Connection, refusals: Sequence[LedgerRow]) -> None:
    """Add refusals. Rows that the ledger has already are skipped."""
    if refusals:
        insert: Any = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
        rows = [_values(_REFUSALS, json.loads(refusal.text)) for refusal in refusals]
        connection.execute(insert(RefusalRow).on_conflict_do_nothing(), rows)


def try_write(connection: Connection) -> None:
    """Write a message and an event and roll back, to find out whether the database accepts rows."""
    now = datetime.now(UTC)
    message = Message(
        from_agent="waooaw-write-check", to_agent="waooaw-write-check", ttl_seconds=None, sent_at=now
    )
    fact = MessageFact(message_id=message.message_id, event=MessageEvent.SENT)
    write(
        connection,
        [message_row(message, "command", RetentionPolicy.DAYS_30)],
        [keyed_event_row(fact, RetentionPolicy.DAYS_30.until(now), now)],
    )
    connection.rollback()


def _write_messages(connection: Connection, rows: Sequence[LedgerRow]) -> set[str]:
    new, written_at = set(), datetime.now(UTC)
    for row in rows:
        columns = json.loads(row.text)
        values = _values(_MESSAGES, columns)
        opened = {column.name: values[column.name] for column in _OPEN.columns if column.name in values}
        position = timedelta(microseconds=columns.get("position", 0))
        opened |= {"written_at": written_at + position, "unrepeatable": bool(columns.get("unrepeatable"))}
        # A message that is open already has a row.
        if (
            not (columns.get("check_known") and _is_known(connection, row.message_id))
            and connection.execute(sqlite_insert(OpenMessageRow).values(opened).on_conflict_do_nothing()).rowcount
            and connection.execute(sqlite_insert(MessageRow).values(values).on_conflict_do_nothing()).rowcount
        ):
            new.add(row.message_id)
    return new


def _write_facts(
    connection: Connection, rows: Sequence[LedgerRow], detect_duplicates: bool
) -> tuple[set[str], set[str]]:
    ended, duplicate = set(), set()
    for row in rows:
        columns = json.loads(row.text)
        values = _values(_EVENTS, columns) | _message_keys(connection, row.message_id)
        if detect_duplicates and columns.get("check_ended") and _has_ended(connection, row.message_id):
            values["event"] = MessageEvent.DUPLICATE.value
            duplicate.add(row.message_id)
        added = connection.execute(sqlite_insert(MessageEventRow).values(values).on_conflict_do_nothing()).rowcount
        if added and values["terminal"]:
            connection.execute(delete(OpenMessageRow).where(OpenMessageRow.message_id == row.message_id))
            ended.add(row.message_id)
    return ended, duplicate


def _is_known(connection: Connection, message_id: str) -> bool:
    return bool(connection.scalar(select(exists().where(MessageRow.message_id == message_id))))


def _message_keys(connection: Connection, message_id: str) -> dict[str, Any]:
    """Return the keys of a message, which its events share. Empty if no sender has written the message."""
    keys = connection.execute(
        select(OpenMessageRow.retain_until, OpenMessageRow.sent_at).where(OpenMessageRow.message_id == message_id)
    ).one_or_none()
    if keys is None:
        ended = select(MessageEventRow.retain_until, MessageEventRow.sent_at).where(
            MessageEventRow.message_id == message_id, MessageEventRow.terminal
        )
        keys = connection.execute(ended.limit(1)).one_or_none()
    return {} if keys is None else {"retain_until": keys.retain_until, "sent_at": keys.sent_at}


def _has_ended(connection: Connection, message_id: str) -> bool:
    terminal = exists().where(MessageEventRow.message_id == message_id, MessageEventRow.terminal)
    return bool(connection.scalar(select(terminal)))


def _json_list(rows: Sequence[LedgerRow]) -> str | None:
    return f"[{','.join(row.text for row in rows)}]" if rows else None


def close_ended(connection: Connection) -> None:
    """Delete from the open messages those that have ended.

    A message can be both when its row and its terminal event were written at the same time.
    """
    ended = exists().where(
        MessageEventRow.message_id == OpenMessageRow.message_id,
        MessageEventRow.retain_until == OpenMessageRow.retain_until,
        MessageEventRow.terminal,
    )
    connection.execute(delete(OpenMessageRow).where(ended))


def withdraw(connection: Connection, withdrawals: Sequence[LedgerRow]) -> list[LedgerRow]:
    """Mark messages as FAILED that were refused and never published, but that the ledger has.

    A message with other events was published by another attempt and is not changed.

    Returns:
        The withdrawals of messages that the ledger does not have.
    """
    ids = {withdrawal.message_id for withdrawal in withdrawals}
    of_message = MessageEventRow.message_id == MessageRow.message_id
    has_events = exists().where(of_message, MessageEventRow.retain_until == MessageRow.retain_until)
    query = select(MessageRow.message_id, has_events.label("has_events")).where(MessageRow.message_id.in_(ids))
    known = {row.message_id: row.has_events for row in connection.execute(query)}
    facts = [
        LedgerRow("fact", withdrawal.message_id, withdrawal.text)
        for withdrawal in withdrawals
        if known.get(withdrawal.message_id) == 0
    ]
    if facts:
        write(connection, facts=facts)
    return [withdrawal for withdrawal in withdrawals if withdrawal.message_id not in known]


def resolve_strays(connection: Connection, strays: Sequence[LedgerRow]) -> tuple[list[LedgerRow], list[LedgerRow]]:
    """Find the messages of stray events. A message that a stray contains is written unless the ledger has it.

    Returns:
        The events with the keys of their messages, and the strays whose messages are not known yet.
    """
    ids = {stray.message_id for stray in strays}
    keys = select(MessageRow.message_id, MessageRow.retain_until, MessageRow.sent_at)
    known = {row.message_id: row for row in connection.execute(keys.where(MessageRow.message_id.in_(ids)))}
    facts, unknown = [], []
    for stray in strays:
        columns = json.loads(stray.text)
        message = columns.pop("message")
        if stray.message_id in known:
            found = known[stray.message_id]
            columns |= {"retain_until": found.retain_until.isoformat(), "sent_at": found.sent_at.isoformat()}
        elif message is not None:
            write(connection, [LedgerRow("message", stray.message_id, json.dumps(message))])
            columns |= {"retain_until": message["retain_until"], "sent_at": message["sent_at"]}
        else:
            unknown.append(stray)
            continue
        facts.append(LedgerRow("fact", stray.message_id, json.dumps(columns)))
    return facts, unknown


def _values(table: Table, columns: dict[str, Any]) -> dict[str, Any]:
    """Convert decoded columns to the values that SQLAlchemy accepts."""
    values: dict[str, Any] = {}
    for column in table.columns:
        value = columns.get(column.name)
        if isinstance(column.type, UtcDateTime) and value is not None:
            value = datetime.fromisoformat(value)
        values[column.name] = value
    # These columns of a message are encoded twice. (In the table of events, `event` is plain text.)
    for name in ("payload", "event", "options"):
        if table is _MESSAGES and values.get(name) is not None:
            values[name] = EncodedJson(values[name])
    return values
