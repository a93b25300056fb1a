"""The order of messages by key, in the ledger: for brokers that decide by themselves which message is next.

The ledger knows each message before the broker does, and knows when it has ended. So a message waits for the open
messages of its key that were written before it, and no lock of theirs can be lost. What this table adds is the
key, which only the recipient knows, and which messages are begun.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from sqlalchemy import Connection, text

from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.resilience import key_statements as statements
from waooaw_celery.ledger.resilience.key_statements import BEGUN, DROPPED
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions, due_at
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.store.resilience.keyed_message import Decision, KeyedMessage, Place, Turn

#: How long after it was written a message may become visible to others.
VISIBLE = timedelta(seconds=5)
#: The most messages of one statement.
BATCH = 500
#: Before any message was written.
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

_LOCK = text(
    "SELECT set_config('synchronous_commit', 'off', true), pg_advisory_xact_lock(one.lock) "
    "FROM unnest(CAST(:locks AS bigint[])) AS one (lock)"
)


#: A message, its key, its rank and its place.
_Entry: TypeAlias = tuple[str, str, int, datetime]


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
        self._is_postgresql = database.is_postgresql
        self._handlers, self._key_of = list(handlers), key_of
        #: By a rank: the keys of all messages up to this rank that were written before are in the table.
        self._known_before: dict[int, datetime] = {}

    def step(
        self,
        arrived: Collection[KeyedMessage],
        ended: Mapping[str, str],
        room: int,
        choose: Callable[[Mapping[str, Place]], Sequence[KeyedMessage]],
    ) -> dict[str, Decision]:
        """Note what has arrived and what has ended, and decide whose turn it is.

        The keys of all messages that were written before those that have arrived are noted too: another worker may
        have them, and not have noted it yet.

        Args:
            arrived: messages that this worker has got.
            ended: the keys of messages whose attempts have ended here, by id. One that is tried again keeps its
                place.
            room: how many messages this worker can begin now, beside those that are not due.
            choose: called with the places of those that have arrived and are open, by id; it returns the messages
                whose turn it may be, in the order in which they are wanted. The others that have arrived have
                ended, or their sender has not recorded them.

        Returns:
            By id, what is to be done with the chosen messages. Those that begin hold their keys from then on.

        Raises:
            AuditUnavailable: the database does not answer. Nothing was changed.
        """
        with self._database.begin("order messages by key") as connection:
            if not self._is_postgresql:
                connection.execute(statements.LOCK_SQLITE)
            places = self._register(connection, {each.message_id: each for each in arrived})
            candidates = choose(places)
            # From here on, a transaction waits for no row of another one: rows are changed under the lock of their
            # key. Those that are inserted above are inserted in one order.
            if self._is_postgresql:
                # After a crash of the server, what its disk lacks is noted again. The messages are on it.
                keys = {each.key for each in (*arrived, *candidates)} | set(ended.values())
                locks = sorted({_lock_of(self._agent, key) for key in keys})
                connection.execute(_LOCK, {"locks": locks or [0]})
            self._release(connection, ended)
            again = [id_ for id_, place in places.items() if place.is_known]
            if again:
                connection.execute(statements.expect(self._is_postgresql), {"ids": again})
            decisions = self._decide(connection, candidates, room)
            self._write(connection, decisions)
        return decisions

    def _register(self, connection: Connection, arrived: Mapping[str, KeyedMessage]) -> dict[str, Place]:
        if not arrived:
            return {}
        rows = connection.execute(statements.OPENED, {"ids": list(arrived)}).all()
        places = {}
        for row in rows:
            due = arrived[row.message_id].due or row.written_at
            place = max(row.written_at, due)
            places[row.message_id] = Place(place, row.state is not None, row.state == BEGUN)
        if places:
            entries = self._find_earlier(connection, max(row.written_at for row in rows), arrived)
            entries += [(id_, arrived[id_].key, arrived[id_].rank, place.at) for id_, place in places.items()]
            self._insert(connection, entries)
        return places

    def _decide(
        self, connection: Connection, candidates: Sequence[KeyedMessage], room: int
    ) -> dict[str, Decision]:
        rows: dict[str, Any] = {}
        by_rule: dict[tuple[int, str], list[str]] = {}
        for each in candidates:
            by_rule.setdefault((each.most, each.on_busy), []).append(each.message_id)
        for (most, on_busy), ids in by_rule.items():
            query = statements.turns(self._is_postgresql, most, on_busy)
            found = connection.execute(query, {"ids": ids, "own_holder": self._holder})
            rows |= {row.message_id: row for row in found}
        decisions: dict[str, Decision] = {}
        begun: list[Any] = []
        for each in candidates:
            row = rows.get(each.message_id)
            if row is None:
                continue
            # Those that begin now, and that it would not have waited for.
            beside = sum(one.key == row.key and not _is_before(one, row) for one in begun)
            decision = self._decision(connection, row, row.ahead + beside, each)
            if decision.turn is Turn.BEGIN:
                if each.needs_room and room < 1:
                    decision = Decision(Turn.WAIT)
                else:
                    room -= each.needs_room
                    begun.append(row)
            decisions[each.message_id] = decision
        left = [each.message_id for each in candidates if each.message_id not in decisions]
        if left:
            lost = set(connection.scalars(statements.STILL_OPEN, {"ids": left}))
            decisions |= {id_: Decision(Turn.REGISTER if id_ in lost else Turn.ENDED) for id_ in left}
        return decisions

    def renew(self, begun: Collection[str], waiting: Collection[str]) -> None:
        """Say that this worker still has messages.

        Args:
            begun: those that it has begun.
            waiting: those that wait for their turn.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        with self._database.begin("renew the leases of keys") as connection:
            for some in _batches(waiting):
                connection.execute(statements.expect(self._is_postgresql), {"ids": some})
            for some in _batches(begun):
                own = {"ids": some, "own_holder": self._holder}
                connection.execute(statements.renew(self._is_postgresql), own)

    def _release(self, connection: Connection, ended: Collection[str]) -> None:
        for some in _batches(ended):
            if connection.execute(statements.FORGET, {"ids": some}).rowcount < len(some):
                connection.execute(statements.free(self._is_postgresql), {"ids": some, "own_holder": self._holder})

    def _find_earlier(
        self, connection: Connection, up_to: datetime, by_id: Mapping[str, KeyedMessage]
    ) -> list[_Entry]:
        """Return the places of messages that are not in the table and were written before a time."""
        rank = max(each.rank for each in by_id.values())
        known = max((at for least, at in self._known_before.items() if least >= rank), default=_BEGINNING)
        times = {"agent": self._agent, "after": known, "before": up_to}
        written = {row.message_id: row.written_at for row in connection.execute(statements.UNKNOWN, times)}
        entries: list[_Entry] = []
        for some in _batches(written.keys() - by_id.keys()):
            rules = {"ids": some, "handlers": self._handlers, "rank": rank}
            rows = connection.execute(statements.MESSAGES, rules).all()
            now = now_in(connection) if any(row.options for row in rows) else up_to
            found = [self._entry(row, written[row.message_id], now) for row in rows]
            entries += [entry for entry in found if entry is not None]
        self._known_before[rank] = max(known, up_to - VISIBLE)
        return entries

    def _entry(self, row: Any, written_at: datetime, now: datetime) -> _Entry | None:
        """Return the place of a message that another worker may have; None if it is not due."""
        options = PublishOptions.from_json(row.options)
        due = due_at(options)
        if due is not None and due > now:
            return None
        try:
            key = self._key_of(row.handler, _message(row, options))
        except Exception:  # noqa: BLE001 - whoever receives it makes a dead letter of it
            key = None
        return row.message_id, key or "", row.priority, max(written_at, due or written_at)

    def _insert(self, connection: Connection, entries: Iterable[_Entry]) -> None:
        """Insert those messages that are not in the table."""
        for some in _batches(sorted(entries)):  # in the same order everywhere, so that there is no deadlock
            rows = [
                {"message_id": id_, "agent": self._agent, "key": key, "rank": rank, "place_at": place_at}
                for id_, key, rank, place_at in some
            ]
            connection.execute(statements.insert(self._is_postgresql), rows)

    def _decision(self, connection: Connection, row: Any, ahead: int, keyed: KeyedMessage) -> Decision:
        if row.state == BEGUN:  # another worker may still handle it
            return Decision(Turn.WAIT if row.is_held else Turn.BEGIN)
        if row.state == DROPPED or row.has_newer or (keyed.on_busy == "drop" and ahead >= keyed.most):
            return Decision(Turn.DROP)
        if ahead < keyed.most:
            return Decision(Turn.BEGIN)
        return Decision(Turn.WAIT, self._begun(connection, row) if keyed.on_busy == "cancel" else ())

    def _begun(self, connection: Connection, row: Any) -> Sequence[str]:
        key = {"agent": self._agent, "key": row.key, "own_id": row.message_id}
        return connection.scalars(statements.BEGUN_OF_KEY, key).all()

    def _write(self, connection: Connection, decisions: Mapping[str, Decision]) -> None:
        begun = [id_ for id_, decision in decisions.items() if decision.turn is Turn.BEGIN]
        if begun:
            own = {"ids": begun, "own_holder": self._holder}
            connection.execute(statements.begin(self._is_postgresql), own)
        dropped = [id_ for id_, decision in decisions.items() if decision.turn is Turn.DROP]
        if dropped:
            connection.execute(statements.DROP, {"ids": dropped})


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


def _is_before(one: Any, other: Any) -> bool:
    """Return whether a message of a key waits for another one that waits."""
    return bool(one.rank <= other.rank and (one.place_at, one.message_id) < (other.place_at, other.message_id))


def _lock_of(agent: str, key: str) -> int:
    digest = hashlib.sha1(f"waooaw key {agent} {key}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], signed=True)


def _batches(values: Iterable[Any]) -> Iterable[list[Any]]:
    values = list(values)
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
