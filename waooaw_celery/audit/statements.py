"""The statements that add rows to the ledger, each for any number of rows at once, in PostgreSQL and in SQLite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, delete, exists, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.audit.entries import Entry, keyed_entry, message_entry
from waooaw_celery.audit.models import EventRow, MessageRow, Moment, OpenRow, RefusalRow
from waooaw_celery.message import Message, RetentionPolicy
from waooaw_celery.receipts import Event, Fact

_MESSAGES: Any = MessageRow.__table__
_EVENTS: Any = EventRow.__table__
_OPEN: Any = OpenRow.__table__
_REFUSALS: Any = RefusalRow.__table__


#: The statement that calls the function which the migration made.
WRITE = "SELECT id, ended FROM waooaw_write(%(messages)s, %(facts)s)"


def lists(messages: Sequence[Entry], facts: Sequence[Entry]) -> dict[str, str | None]:
    """Return the parameters of ``WRITE``."""
    return {"messages": _json_list(messages), "facts": _json_list(facts)}


def outcome(rows: Iterable[Sequence[Any]]) -> tuple[set[str], set[str]]:
    """Return what ``WRITE`` answered: the ids of the new messages, and of the messages that ended."""
    said: tuple[set[str], set[str]] = set(), set()
    for id_, ended in rows:
        said[ended].add(id_)
    return said


def write(
    connection: Connection, messages: Sequence[Entry] = (), facts: Sequence[Entry] = ()
) -> tuple[set[str], set[str]]:
    """Add messages and facts that the ledger does not have.

    Returns:
        The ids of the new messages, and of the messages that ended by these facts.
    """
    if connection.dialect.name == "postgresql":
        return outcome(connection.exec_driver_sql(WRITE, lists(messages, facts)).all())
    return _write_messages(connection, messages), _write_facts(connection, facts)


def write_refusals(connection: Connection, entries: Sequence[Entry]) -> None:
    """Add refusals that the ledger does not have."""
    if entries:
        insert: Any = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
        rows = [_values(_REFUSALS, json.loads(entry.text)) for entry in entries]
        connection.execute(insert(RefusalRow).on_conflict_do_nothing(), rows)


def rehearse(connection: Connection) -> None:
    """Do what writing does, and take it back: only so is it known that a database would take rows again."""
    now = datetime.now(UTC)
    message = Message(from_agent="waooaw-rehearsal", to_agent="waooaw-rehearsal", ttl_seconds=None, sent_at=now)
    fact = Fact(message_id=message.message_id, event=Event.SENT)
    write(
        connection,
        [message_entry(message, "command", RetentionPolicy.DAYS_30)],
        [keyed_entry(fact, RetentionPolicy.DAYS_30.until(now), now)],
    )
    connection.rollback()


def _write_messages(connection: Connection, entries: Sequence[Entry]) -> set[str]:
    new = set()
    for entry in entries:
        row = _values(_MESSAGES, json.loads(entry.text))
        opened = {column.name: row[column.name] for column in _OPEN.columns}
        # A message that is among the open ones already was written down before.
        if (
            connection.execute(sqlite_insert(OpenRow).values(opened).on_conflict_do_nothing()).rowcount
            and connection.execute(sqlite_insert(MessageRow).values(row).on_conflict_do_nothing()).rowcount
        ):
            new.add(entry.message_id)
    return new


def _write_facts(connection: Connection, entries: Sequence[Entry]) -> set[str]:
    ended = set()
    for entry in entries:
        row = _values(_EVENTS, json.loads(entry.text))
        new = connection.execute(sqlite_insert(EventRow).values(row).on_conflict_do_nothing()).rowcount
        if new and row["terminal"]:
            connection.execute(delete(OpenRow).where(OpenRow.message_id == entry.message_id))
            ended.add(entry.message_id)
    return ended


def _json_list(entries: Sequence[Entry]) -> str | None:
    return f"[{','.join(entry.text for entry in entries)}]" if entries else None


def close_ended(connection: Connection) -> None:
    """Take off the open messages those that ended in the same moment in which they were written down."""
    ended = exists().where(
        EventRow.message_id == OpenRow.message_id,
        EventRow.retain_until == OpenRow.retain_until,
        EventRow.terminal,
    )
    connection.execute(delete(OpenRow).where(ended))


def settle_strays(connection: Connection, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
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
            write(connection, [Entry("message", entry.message_id, json.dumps(message))])
            row |= {"retain_until": message["retain_until"], "sent_at": message["sent_at"]}
        else:
            unknown.append(entry)
            continue
        facts.append(Entry("fact", entry.message_id, json.dumps(row)))
    return facts, unknown


def _values(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as SQLAlchemy takes it."""
    values: dict[str, Any] = {}
    for column in table.columns:
        value = row.get(column.name)
        if isinstance(column.type, Moment) and value is not None:
            value = datetime.fromisoformat(value)
        values[column.name] = value
    for name in ("payload", "event"):  # text within the text; the other table's event is a word
        if table is _MESSAGES and values[name] is not None:
            values[name] = json.loads(values[name])
    return values
