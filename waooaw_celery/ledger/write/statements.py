"""The statements that add rows to the ledger, each for any number of rows at once, in PostgreSQL and in SQLite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, delete, exists, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.models import (
    MessageEventRow,
    MessageRow,
    OpenMessageRow,
    RefusalRow,
    UtcDateTime,
)
from waooaw_celery.ledger.database.rows import LedgerRow, keyed_event_row, message_row
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact

_MESSAGES: Any = MessageRow.__table__
_EVENTS: Any = MessageEventRow.__table__
_OPEN: Any = OpenMessageRow.__table__
_REFUSALS: Any = RefusalRow.__table__


#: The statement that calls the function which the migration made.
WRITE = "SELECT id, became FROM waooaw_write(%(messages)s, %(facts)s, %(asks)s)"


class StatementOutcome(NamedTuple):
    """What became of what was written, as ids of messages.

    Attributes:
        new: those that were not there.
        ended: those that ended by these facts.
        twice: those that were to begin, and had ended before: DUPLICATE was written, and not DELIVERED.
    """

    new: set[str]
    ended: set[str]
    twice: set[str]


def parameters(messages: Sequence[LedgerRow], facts: Sequence[LedgerRow], asks: bool) -> dict[str, Any]:
    """Return the parameters of ``WRITE``."""
    return {"messages": _json_list(messages), "facts": _json_list(facts), "asks": asks}


def outcome(rows: Iterable[Sequence[Any]]) -> StatementOutcome:
    """Return what ``WRITE`` answered."""
    said = StatementOutcome(set(), set(), set())
    for id_, became in rows:
        getattr(said, became).add(id_)
    return said


def write(
    connection: Connection,
    messages: Sequence[LedgerRow] = (),
    facts: Sequence[LedgerRow] = (),
    *,
    asks: bool = False,
) -> StatementOutcome:
    """Add messages and facts that the ledger does not have.

    Args:
        connection: in a transaction.
        messages: what was said.
        facts: what became of messages.
        asks: whether a fact that asks whether its message has ended is news: it is written as DUPLICATE then. What
            is told late is written as it was told.
    """
    if connection.dialect.name == "postgresql":
        return outcome(connection.exec_driver_sql(WRITE, parameters(messages, facts, asks)).all())
    return StatementOutcome(_write_messages(connection, messages), *_write_facts(connection, facts, asks))


def write_refusals(connection: Connection, entries: Sequence[LedgerRow]) -> None:
    """Add refusals that the ledger does not have."""
    if entries:
        insert: Any = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
        rows = [_values(_REFUSALS, json.loads(entry.text)) for entry in entries]
        connection.execute(insert(RefusalRow).on_conflict_do_nothing(), rows)


def rehearse(connection: Connection) -> None:
    """Do what writing does, and take it back: only so is it known that a database would take rows again."""
    now = datetime.now(UTC)
    message = Message(from_agent="waooaw-rehearsal", to_agent="waooaw-rehearsal", ttl_seconds=None, sent_at=now)
    fact = MessageFact(message_id=message.message_id, event=MessageEvent.SENT)
    write(
        connection,
        [message_row(message, "command", RetentionPolicy.DAYS_30)],
        [keyed_event_row(fact, RetentionPolicy.DAYS_30.until(now), now)],
    )
    connection.rollback()


def _write_messages(connection: Connection, entries: Sequence[LedgerRow]) -> set[str]:
    new = set()
    for entry in entries:
        said = json.loads(entry.text)
        row = _values(_MESSAGES, said)
        opened = {column.name: row[column.name] for column in _OPEN.columns if column.name in row}
        opened |= {"written_at": datetime.now(UTC), "unrepeatable": bool(said.get("unrepeatable"))}
        # A message that is among the open ones already was written down before.
        if (
            not (said.get("asks") and _is_known(connection, entry.message_id))
            and connection.execute(sqlite_insert(OpenMessageRow).values(opened).on_conflict_do_nothing()).rowcount
            and connection.execute(sqlite_insert(MessageRow).values(row).on_conflict_do_nothing()).rowcount
        ):
            new.add(entry.message_id)
    return new


def _write_facts(connection: Connection, entries: Sequence[LedgerRow], asks: bool) -> tuple[set[str], set[str]]:
    ended, twice = set(), set()
    for entry in entries:
        said = json.loads(entry.text)
        row = _values(_EVENTS, said) | _own_keys(connection, entry.message_id)
        if asks and said.get("asks") and _has_ended(connection, entry.message_id):
            row["event"] = MessageEvent.DUPLICATE.value
            twice.add(entry.message_id)
        new = connection.execute(sqlite_insert(MessageEventRow).values(row).on_conflict_do_nothing()).rowcount
        if new and row["terminal"]:
            connection.execute(delete(OpenMessageRow).where(OpenMessageRow.message_id == entry.message_id))
            ended.add(entry.message_id)
    return ended, twice


def _is_known(connection: Connection, message_id: str) -> bool:
    return bool(connection.scalar(select(exists().where(MessageRow.message_id == message_id))))


def _own_keys(connection: Connection, message_id: str) -> dict[str, Any]:
    """Return the keys of a message, which its facts have too; none when nobody wrote it down."""
    found = connection.execute(
        select(OpenMessageRow.retain_until, OpenMessageRow.sent_at).where(OpenMessageRow.message_id == message_id)
    ).one_or_none()
    if found is None:
        ended = select(MessageEventRow.retain_until, MessageEventRow.sent_at).where(
            MessageEventRow.message_id == message_id, MessageEventRow.terminal
        )
        found = connection.execute(ended.limit(1)).one_or_none()
    return {} if found is None else {"retain_until": found.retain_until, "sent_at": found.sent_at}


def _has_ended(connection: Connection, message_id: str) -> bool:
    terminal = exists().where(MessageEventRow.message_id == message_id, MessageEventRow.terminal)
    return bool(connection.scalar(select(terminal)))


def _json_list(entries: Sequence[LedgerRow]) -> str | None:
    return f"[{','.join(entry.text for entry in entries)}]" if entries else None


def close_ended(connection: Connection) -> None:
    """Take off the open messages those that ended in the same moment in which they were written down."""
    ended = exists().where(
        MessageEventRow.message_id == OpenMessageRow.message_id,
        MessageEventRow.retain_until == OpenMessageRow.retain_until,
        MessageEventRow.terminal,
    )
    connection.execute(delete(OpenMessageRow).where(ended))


def withdraw(connection: Connection, entries: Sequence[LedgerRow]) -> list[LedgerRow]:
    """End the messages that were refused and never published, and that the ledger has all the same.

    One of which something more is known was published by another attempt, and is left alone.

    Returns:
        The entries of those that the ledger does not have.
    """
    ids = {entry.message_id for entry in entries}
    of_message = MessageEventRow.message_id == MessageRow.message_id
    told = exists().where(of_message, MessageEventRow.retain_until == MessageRow.retain_until)
    query = select(MessageRow.message_id, told.label("told")).where(MessageRow.message_id.in_(ids))
    known = {row.message_id: row.told for row in connection.execute(query)}
    facts = [
        LedgerRow("fact", entry.message_id, entry.text) for entry in entries if known.get(entry.message_id) == 0
    ]
    if facts:
        write(connection, facts=facts)
    return [entry for entry in entries if entry.message_id not in known]


def settle_strays(connection: Connection, entries: Sequence[LedgerRow]) -> tuple[list[LedgerRow], list[LedgerRow]]:
    """Find out to which messages stray facts belong.

    Returns:
        The facts, now with their message's keys, and those of which nothing is known yet.
    """
    ids = {entry.message_id for entry in entries}
    keys = select(MessageRow.message_id, MessageRow.retain_until, MessageRow.sent_at)
    known = {row.message_id: row for row in connection.execute(keys.where(MessageRow.message_id.in_(ids)))}
    facts, unknown = [], []
    for entry in entries:
        row = json.loads(entry.text)
        message = row.pop("message")
        if entry.message_id in known:
            found = known[entry.message_id]
            row |= {"retain_until": found.retain_until.isoformat(), "sent_at": found.sent_at.isoformat()}
        elif message is not None:
            write(connection, [LedgerRow("message", entry.message_id, json.dumps(message))])
            row |= {"retain_until": message["retain_until"], "sent_at": message["sent_at"]}
        else:
            unknown.append(entry)
            continue
        facts.append(LedgerRow("fact", entry.message_id, json.dumps(row)))
    return facts, unknown


def _values(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as SQLAlchemy takes it."""
    values: dict[str, Any] = {}
    for column in table.columns:
        value = row.get(column.name)
        if isinstance(column.type, UtcDateTime) and value is not None:
            value = datetime.fromisoformat(value)
        values[column.name] = value
    for name in ("payload", "event", "options"):  # text within the text; the other table's event is a word
        if table is _MESSAGES and values.get(name) is not None:
            values[name] = json.loads(values[name])
    return values
