"""The order of messages by key, in the ledger: for brokers that decide by themselves which message is next.

The ledger knows each message before the broker does, and knows when it has ended. So a message waits for the open
messages of its key that were written before it, and no lock of theirs can be lost. What this table adds is the
key, which only the recipient knows, and which messages are begun.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select, text, true, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import aliased

from waooaw_celery.ledger.database.clock import now_in, now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import KeyedMessageRow, MessageRow, OpenMessageRow
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions, due_at
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.store.resilience.keyed_message import Decision, KeyedMessage, Place, Turn

#: How long a begun message holds its key without news of its worker.
LEASE = timedelta(seconds=15)
#: How long later messages wait for one that no worker says it has: the broker delivers it again, or has lost it.
EXPECTED = timedelta(minutes=5)
#: How long after it was written a message may become visible to others.
VISIBLE = timedelta(seconds=5)
#: The most messages whose keys one statement reads or writes.
BATCH = 500

WAITS, BEGUN, DROPPED = "waits", "begun", "dropped"

_LOCK = text(
    "SELECT set_config('synchronous_commit', 'off', true), pg_advisory_xact_lock(one.lock) "
    "FROM unnest(CAST(:locks AS bigint[])) AS one (lock)"
)


class KeyOrder:
    """The messages with keys of one agent, as one worker sees them. One thread at a time uses it.

    Args:
        database: the ledger's database.
        agent: the agent.
        holder: what names this worker, and no other before or after it.
        handlers: the handlers whose messages have keys.
        key_of: returns the digest of the key of a message to one of these handlers; None if it has none.
    """

    def __init__(
        self,
        database: Database,
        agent: str,
        holder: str,
        handlers: Collection[str],
        key_of: Callable[[str, Message], str | None],
    ) -> None:
        self._database, self._agent, self._holder = database, agent, holder
        self._handlers, self._key_of = list(handlers), key_of
        #: By a rank: the keys of all messages up to this rank that were written before are in the table.
        self._known_before: dict[int, datetime] = {}

    def register(self, arrived: Collection[KeyedMessage]) -> dict[str, Place]:
        """Note that this worker has messages, and find the keys of all that were written before them.

        Another worker may have those, and not have noted it yet.

        Args:
            arrived: the messages.

        Returns:
            The places of those that are open, by id. The others have ended, or their sender has not recorded them.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        by_id = {each.message_id: each for each in arrived}
        with self._database.begin("note the keys of messages") as connection:
            query = select(OpenMessageRow.message_id, OpenMessageRow.written_at, KeyedMessageRow.state)
            known = KeyedMessageRow.message_id == OpenMessageRow.message_id
            query = query.outerjoin_from(OpenMessageRow, KeyedMessageRow, known)
            rows = connection.execute(query.where(OpenMessageRow.message_id.in_(list(by_id)))).all()
            if not rows:
                return {}
            expected_until = now_in(connection) + EXPECTED
            self._find_earlier(connection, rows, by_id, expected_until)
            places = {}
            for row in rows:
                due = by_id[row.message_id].due or row.written_at
                places[row.message_id] = Place(max(row.written_at, due), row.state == BEGUN)
            own = [(id_, by_id[id_].key, by_id[id_].rank, place.at) for id_, place in places.items()]
            self._insert(connection, own, expected_until, is_here=True)
            return places

    def decide(self, candidates: Collection[KeyedMessage]) -> dict[str, Decision]:
        """Decide which messages are handled now. Those that are hold their keys from then on.

        Args:
            candidates: messages that were registered.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        decisions: dict[str, Decision] = {}
        with self._database.begin("order messages by key") as connection:
            self._lock(connection, candidates)
            for most, on_busy in {(each.most, each.on_busy) for each in candidates}:
                same = {
                    each.message_id: each for each in candidates if (each.most, each.on_busy) == (most, on_busy)
                }
                for row in connection.execute(self._query(list(same), most, on_busy)):
                    decisions[row.message_id] = self._decision(connection, row, most, on_busy)
                for id_ in same.keys() - decisions.keys():  # it has ended
                    decisions[id_] = Decision(Turn.BEGIN)
            self._write(connection, decisions)
        return decisions

    def renew(self, begun: Collection[str], waiting: Collection[str]) -> None:
        """Say that this worker still has messages.

        Args:
            begun: those that it has begun.
            waiting: those that wait for their turn.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        now = now_within(self._database)
        with self._database.begin("renew the leases of keys") as connection:
            expected = update(KeyedMessageRow).values(expected_until=now + EXPECTED)
            for some in _batches(waiting):
                connection.execute(expected.where(KeyedMessageRow.message_id.in_(some)))
            held = expected.values(leased_until=now + LEASE).where(KeyedMessageRow.holder == self._holder)
            for some in _batches(begun):
                connection.execute(held.where(KeyedMessageRow.message_id.in_(some)))

    def release(self, ids: Collection[str]) -> None:
        """Say that this worker has ended attempts at messages. One that is tried again keeps its place.

        Args:
            ids: the messages.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        with self._database.begin("free the keys of messages") as connection:
            for some in _batches(ids):
                own = KeyedMessageRow.message_id.in_(some)
                connection.execute(delete(KeyedMessageRow).where(own, ~_is_open(KeyedMessageRow)))
                ended = update(KeyedMessageRow).where(own, KeyedMessageRow.holder == self._holder)
                connection.execute(ended.values(holder=None, leased_until=None))

    def _find_earlier(
        self,
        connection: Connection,
        rows: Sequence[Any],
        by_id: Mapping[str, KeyedMessage],
        expected_until: datetime,
    ) -> None:
        """Insert the keys of messages that are not in the table and come before some."""
        up_to, rank = max(row.written_at for row in rows), max(each.rank for each in by_id.values())
        columns = [column for column in MessageRow.__table__.columns if column.key in _COLUMNS]
        same = (MessageRow.message_id == OpenMessageRow.message_id) & (
            MessageRow.retain_until == OpenMessageRow.retain_until
        )
        conditions: list[ColumnElement[bool]] = [
            OpenMessageRow.to_agent == self._agent,
            OpenMessageRow.written_at < up_to,
            MessageRow.handler.in_(self._handlers),
            MessageRow.priority <= rank,
            OpenMessageRow.message_id.not_in(list(by_id)),
            ~exists().where(KeyedMessageRow.message_id == OpenMessageRow.message_id),
        ]
        known = max((at for least, at in self._known_before.items() if least >= rank), default=None)
        if known is not None:
            conditions.append(OpenMessageRow.written_at > known)
        query = select(*columns, OpenMessageRow.written_at).join_from(OpenMessageRow, MessageRow, same)
        order = OpenMessageRow.written_at, OpenMessageRow.message_id
        after: Any = true()
        while True:
            found = connection.execute(query.where(*conditions, after).order_by(*order).limit(BATCH)).all()
            now = now_in(connection) if found else up_to
            entries = [entry for row in found if (entry := self._entry(row, now)) is not None]
            self._insert(connection, entries, expected_until)
            if len(found) < BATCH:
                break
            last = found[-1]
            after = or_(
                OpenMessageRow.written_at > last.written_at,
                (OpenMessageRow.written_at == last.written_at) & (OpenMessageRow.message_id > last.message_id),
            )
        self._known_before[rank] = max(known or up_to - VISIBLE, up_to - VISIBLE)

    def _entry(self, row: Any, now: datetime) -> tuple[str, str, int, datetime] | None:
        """Return the place of a message that another worker may have; None if it is not due."""
        options = PublishOptions.from_json(row.options)
        due = due_at(options)
        if due is not None and due > now:
            return None
        try:
            key = self._key_of(row.handler, _message(row, options))
        except Exception:  # noqa: BLE001 - whoever receives it makes a dead letter of it
            key = None
        return row.message_id, key or "", row.priority, max(row.written_at, due or row.written_at)

    def _insert(
        self,
        connection: Connection,
        entries: Iterable[tuple[str, str, int, datetime]],
        expected_until: datetime,
        *,
        is_here: bool = False,
    ) -> None:
        insert: Any = postgresql_insert if self._database.is_postgresql else sqlite_insert
        for some in _batches(sorted(entries)):
            rows = [
                {
                    "message_id": id_,
                    "agent": self._agent,
                    "key": key,
                    "rank": rank,
                    "place_at": place_at,
                    "state": WAITS,
                    "expected_until": expected_until,
                }
                for id_, key, rank, place_at in some
            ]
            added = insert(KeyedMessageRow).values(rows)
            if is_here:  # it is waited for again
                id_column, values = [KeyedMessageRow.message_id], {"expected_until": expected_until}
                connection.execute(added.on_conflict_do_update(index_elements=id_column, set_=values))
            else:
                connection.execute(added.on_conflict_do_nothing())

    def _lock(self, connection: Connection, candidates: Collection[KeyedMessage]) -> None:
        """Let one transaction at a time decide about a key."""
        if self._database.is_postgresql:
            keys = sorted({_lock_of(self._agent, each.key) for each in candidates})
            connection.execute(_LOCK, {"locks": keys})
        else:  # this makes the transaction the only one that writes
            nothing = KeyedMessageRow.message_id == ""
            connection.execute(delete(KeyedMessageRow).where(nothing))

    def _query(self, ids: list[str], most: int, on_busy: str) -> Any:
        """Select what decides about messages with the same rule, without those that have ended."""
        now = now_within(self._database)
        own, other, opened = KeyedMessageRow, aliased(KeyedMessageRow), aliased(OpenMessageRow)
        is_other = and_(
            other.agent == own.agent,
            other.key == own.key,
            other.message_id != own.message_id,
            other.expected_until > now,
        )
        is_begun = other.state == BEGUN
        is_earlier: Any = or_(
            other.place_at < own.place_at,
            (other.place_at == own.place_at) & (other.message_id < own.message_id),
        )
        is_alive = or_(opened.expires_at.is_(None), opened.expires_at > now)
        waits_before = and_(other.state == WAITS, other.rank <= own.rank, is_earlier, is_alive)
        others = select(other.message_id).join(opened, opened.message_id == other.message_id).where(is_other)
        busy = is_begun if on_busy == "cancel" else or_(is_begun, waits_before)
        ahead = others.where(busy).limit(most).correlate(own).subquery()
        newer = others.where(other.state == WAITS, ~is_earlier).correlate(own).exists()
        return select(
            own.message_id,
            own.key,
            own.state,
            and_(own.holder.is_not(None), own.holder != self._holder, own.leased_until > now).label("is_held"),
            select(func.count()).select_from(ahead).correlate(own).scalar_subquery().label("ahead"),
            (newer if on_busy == "cancel" else ~true()).label("has_newer"),
        ).where(own.message_id.in_(ids), _is_open(own))

    def _decision(self, connection: Connection, row: Any, most: int, on_busy: str) -> Decision:
        if row.state == BEGUN:  # another worker may still handle it
            return Decision(Turn.WAIT if row.is_held else Turn.BEGIN)
        if row.state == DROPPED or row.has_newer or (on_busy == "drop" and row.ahead >= most):
            return Decision(Turn.DROP)
        if row.ahead < most:
            return Decision(Turn.BEGIN)
        return Decision(Turn.WAIT, self._begun(connection, row) if on_busy == "cancel" else ())

    def _begun(self, connection: Connection, row: Any) -> Sequence[str]:
        begun = and_(
            KeyedMessageRow.agent == self._agent,
            KeyedMessageRow.key == row.key,
            KeyedMessageRow.state == BEGUN,
            KeyedMessageRow.message_id != row.message_id,
        )
        return connection.scalars(select(KeyedMessageRow.message_id).where(begun)).all()

    def _write(self, connection: Connection, decisions: Mapping[str, Decision]) -> None:
        now = now_within(self._database)
        begun = [id_ for id_, decision in decisions.items() if decision.turn is Turn.BEGIN]
        if begun:
            values = {"state": BEGUN, "holder": self._holder}
            times = {"leased_until": now + LEASE, "expected_until": now + EXPECTED}
            own = KeyedMessageRow.message_id.in_(begun)
            connection.execute(update(KeyedMessageRow).where(own).values(**values, **times))
        dropped = [id_ for id_, decision in decisions.items() if decision.turn is Turn.DROP]
        if dropped:
            own = KeyedMessageRow.message_id.in_(dropped)
            connection.execute(update(KeyedMessageRow).where(own).values(state=DROPPED))


#: The columns of a message from which its key may be found, and its place.
_COLUMNS = (
    *("message_id", "from_agent", "to_agent", "handler", "message_type", "priority", "correlation_id"),
    *("conversation_id", "causation_id", "identity", "sent_at", "payload", "event", "options"),
)


def _message(row: Any, options: PublishOptions) -> Message:
    return Message(
        from_agent=row.from_agent,
        to_agent=row.to_agent,
        message_type=MessageType(row.message_type),
        payload=row.payload,
        priority=Priority.of_rank(row.priority),
        ttl_seconds=None,
        message_id=row.message_id,
        correlation_id=row.correlation_id,
        conversation_id=row.conversation_id,
        causation_id=row.causation_id,
        identity=row.identity,
        sent_at=row.sent_at,
        capability=options.capability,
        event=EventAttributes.from_envelope(row.event),
    )


def _is_open(keyed: Any) -> ColumnElement[bool]:
    return exists().where(OpenMessageRow.message_id == keyed.message_id)


def _lock_of(agent: str, key: str) -> int:
    digest = hashlib.sha1(f"waooaw key {agent} {key}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], signed=True)


def _batches(values: Iterable[Any]) -> Iterable[list[Any]]:
    values = list(values)
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
