"""The statements of the order by key. Each is built once: to build them costs more than to execute them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import DateTime, and_, bindparam, delete, exists, func, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import aliased

from waooaw_celery.ledger.database.column_types import UtcDateTime
from waooaw_celery.ledger.database.models import KeyedMessageRow, MessageRow, OpenMessageRow

#: How long a begun message holds its key without news of its worker.
LEASE = timedelta(seconds=15)
#: How long later messages wait for one that no worker says it has: the broker delivers it again, or has lost it.
EXPECTED = timedelta(minutes=5)
#: The same for the next attempt at one, which is behind all others in the queue.
RETRY_EXPECTED = timedelta(days=1)
#: The states of a message.
WAITS, BEGUN, DROPPED = "waits", "begun", "dropped"

_IDS: Any = bindparam("ids", expanding=True)
_HAS_ID = KeyedMessageRow.message_id.in_(_IDS)
_IS_OPEN = exists().where(OpenMessageRow.message_id == KeyedMessageRow.message_id)
_IS_KEYED = exists().where(KeyedMessageRow.message_id == OpenMessageRow.message_id)

#: Takes SQLite's lock for writers, and changes nothing.
LOCK_SQLITE = delete(KeyedMessageRow).where(KeyedMessageRow.message_id == "")
#: When messages were written, and whether they have begun before.
OPENED = (
    select(OpenMessageRow.message_id, OpenMessageRow.written_at, KeyedMessageRow.state)
    .outerjoin_from(OpenMessageRow, KeyedMessageRow, KeyedMessageRow.message_id == OpenMessageRow.message_id)
    .where(OpenMessageRow.message_id.in_(_IDS))
)
STILL_OPEN = select(OpenMessageRow.message_id).where(OpenMessageRow.message_id.in_(_IDS))
#: Open messages to an agent that were written within a time, and are not in the table.
UNKNOWN = (
    select(OpenMessageRow.message_id, OpenMessageRow.written_at)
    .where(
        OpenMessageRow.to_agent == bindparam("agent"),
        OpenMessageRow.written_at > bindparam("after", type_=UtcDateTime()),
        OpenMessageRow.written_at < bindparam("before", type_=UtcDateTime()),
        ~_IS_KEYED,
    )
    .order_by(OpenMessageRow.written_at)
)
#: Of these, those whose handlers have keys, and which are urgent enough.
_OF_MESSAGE = (
    *("message_id", "from_agent", "to_agent", "handler", "message_type", "priority", "correlation_id"),
    *("conversation_id", "causation_id", "identity", "sent_at", "payload", "event", "options"),
)
MESSAGES = select(*(MessageRow.__table__.columns[name] for name in _OF_MESSAGE)).where(
    MessageRow.message_id.in_(_IDS),
    MessageRow.handler.in_(bindparam("handlers", expanding=True)),
    MessageRow.priority <= bindparam("rank"),
)
#: Forget those messages that have ended.
FORGET = delete(KeyedMessageRow).where(_HAS_ID, ~_IS_OPEN)
DROP = update(KeyedMessageRow).where(_HAS_ID).values(state=DROPPED)
#: The messages of a key that are begun.
BEGUN_OF_KEY = select(KeyedMessageRow.message_id).where(
    KeyedMessageRow.agent == bindparam("agent"),
    KeyedMessageRow.key == bindparam("key"),
    KeyedMessageRow.state == BEGUN,
    KeyedMessageRow.message_id != bindparam("own_id"),
)


@cache
def insert(is_postgresql: bool) -> Any:
    """Insert messages that are not in the table. Those that are there are neither changed nor locked."""
    make: Any = postgresql_insert if is_postgresql else sqlite_insert
    added = make(KeyedMessageRow).values(state=WAITS, expected_until=_now_and(is_postgresql, EXPECTED))
    return added.on_conflict_do_nothing(index_elements=[KeyedMessageRow.message_id])


@cache
def begin(is_postgresql: bool) -> Any:
    """Have a worker hold messages."""
    times = {"leased_until": _now_and(is_postgresql, LEASE), "expected_until": _now_and(is_postgresql, EXPECTED)}
    return update(KeyedMessageRow).where(_HAS_ID).values(state=BEGUN, holder=bindparam("own_holder"), **times)


@cache
def free(is_postgresql: bool) -> Any:
    """Free messages for their next attempts, which may wait behind many others in the queue."""
    is_own = KeyedMessageRow.holder == bindparam("own_holder")
    expected_until = _now_and(is_postgresql, RETRY_EXPECTED)
    ended = update(KeyedMessageRow).where(_HAS_ID, is_own)
    return ended.values(holder=None, leased_until=None, expected_until=expected_until)


@cache
def expect(is_postgresql: bool) -> Any:
    """Say that a worker has messages that wait."""
    return update(KeyedMessageRow).where(_HAS_ID).values(expected_until=_now_and(is_postgresql, EXPECTED))


@cache
def renew(is_postgresql: bool) -> Any:
    """Renew the leases of messages that a worker holds."""
    is_own = KeyedMessageRow.holder == bindparam("own_holder")
    return expect(is_postgresql).where(is_own).values(leased_until=_now_and(is_postgresql, LEASE))


@cache
def turns(is_postgresql: bool, most: int, on_busy: str) -> Any:
    """Select what decides about messages with the same rule, without those that have ended.

    Args:
        is_postgresql: the database; otherwise it is SQLite.
        most: how many messages of a key are handled at once.
        on_busy: what becomes of a message whose key is busy.
    """
    now = _now_and(is_postgresql, timedelta(0))
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
    is_held = and_(own.holder.is_not(None), own.holder != bindparam("own_holder"), own.leased_until > now)
    return select(
        own.message_id,
        own.key,
        own.rank,
        own.place_at,
        own.state,
        is_held.label("is_held"),
        select(func.count()).select_from(ahead).correlate(own).scalar_subquery().label("ahead"),
        (newer if on_busy == "cancel" else ~true()).label("has_newer"),
    ).where(_HAS_ID, _IS_OPEN)


def _now_and(is_postgresql: bool, time: timedelta) -> Any:
    """Return the time after now, by the database's clock, for use in a statement that is built once."""
    if is_postgresql:
        return func.now(type_=DateTime(timezone=True)) + time
    return bindparam(None, callable_=lambda: datetime.now(UTC) + time, type_=UtcDateTime())
