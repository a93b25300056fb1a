"""Replays in the ledger's tables: what is to be replayed, and how far each replay has come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, update

from waooaw_celery.errors import UnknownReplay
from waooaw_celery.ledger.database.clock import now_in, now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import ReplayRow
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.validation import JSON

#: Seconds for which a worker's claim of a replay holds without news of it.
CLAIM_SECONDS = 60.0
#: How long an ended replay is listed.
KEPT = timedelta(days=90)


class ReplayState(StrEnum):
    """The state of a replay."""

    WAITING = "waiting"  #: no worker has begun it
    RUNNING = "running"  #: a worker has begun it
    FINISHED = "finished"  #: all its events were sent
    CANCELLED = "cancelled"  #: it was cancelled; the events that were sent before are handled
    FAILED = "failed"  #: it cannot go on; ``error`` says why


_OPEN = (ReplayState.WAITING.value, ReplayState.RUNNING.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A replay that the system's worker carries out, and its progress.

    Attributes:
        replay_id: its id.
        subscriber: name of the subscription, ``<agent>.<name>``.
        state: its state.
        events: number of events that were sent so far.
        last_at: when the newest of them was published; None: none was sent.
        created_at: when it was asked for.
        started_at: when a worker began it, or None.
        ended_at: when it ended, or None.
        error: why it failed, or why its last attempt to go on failed; None: nothing failed.
        selection: which events it selects, as JSON.
        per_second: number of events per second, or None.
        speed: factor by which it is faster than the events were published, or None.
        from_agent: the sender.
        priority: priority of the messages.
    """

    replay_id: str
    subscriber: str
    state: ReplayState
    events: int
    last_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None
    selection: dict[str, JSON]
    per_second: float | None
    speed: float | None
    from_agent: str
    priority: Priority

    @property
    def ended(self) -> bool:
        """Whether it sends no more events."""
        return self.state.value not in _OPEN


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's claim of a replay.

    Attributes:
        replay: the replay.
        token: distinguishes this claim from all others.
        position: the event after which it goes on: the time of its publish and its id; None: it begins.
    """

    replay: Replay
    token: str
    position: tuple[datetime, str] | None


class LedgerReplays:
    """The replays in the ledger. Every method raises AuditUnavailable if the database does not answer.

    Args:
        database: the ledger's database, which others use and close too.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, subscriber: str, selection: dict[str, JSON], **fields: Any) -> Replay:
        """Record a new replay, and forget those that ended long ago.

        Args:
            subscriber: name of the subscription.
            selection: which events it selects.
            fields: ``per_second``, ``speed``, ``from_agent`` and ``priority``.
        """
        with self._database.begin("record a replay") as connection:
            now = now_in(connection)
            connection.execute(delete(ReplayRow).where(ReplayRow.ended_at < now - KEPT))
            id_ = str(uuid4())
            row = {"replay_id": id_, "subscriber": subscriber, "selection": selection, "created_at": now, **fields}
            row["priority"] = fields["priority"].rank
            connection.execute(insert(ReplayRow).values(state=ReplayState.WAITING.value, events=0, **row))
            return _read(connection, id_)

    def all(self, limit: int = 100) -> list[Replay]:
        """Return the newest replays, the newest first."""
        query = select(ReplayRow.__table__).order_by(ReplayRow.created_at.desc(), ReplayRow.replay_id)
        with self._database.begin("read the replays") as connection:
            return [_replay(row) for row in connection.execute(query.limit(limit))]

    def get(self, replay_id: str) -> Replay:
        """Return a replay.

        Raises:
            UnknownReplay: there is no such replay.
        """
        with self._database.begin("read a replay") as connection:
            return _read(connection, replay_id)

    def cancel(self, replay_id: str) -> Replay:
        """Cancel a replay, unless it has ended, and return it as it is afterwards.

        Raises:
            UnknownReplay: there is no such replay.
        """
        with self._database.begin("cancel a replay") as connection:
            values = {"state": ReplayState.CANCELLED.value, "ended_at": now_in(connection), "claim": None}
            connection.execute(
                update(ReplayRow).where(ReplayRow.replay_id == replay_id, _is_open()).values(values)
            )
            return _read(connection, replay_id)

    def claim(self) -> Claim | None:
        """Claim the oldest replay that is due and that no other worker works on; None if there is none."""
        now = now_within(self._database)
        is_free = [
            _is_open(),
            or_(ReplayRow.claimed_until.is_(None), ReplayRow.claimed_until < now),
            or_(ReplayRow.due_at.is_(None), ReplayRow.due_at <= now),
        ]
        token = uuid4().hex
        with self._database.begin("claim a replay") as connection:
            query = select(ReplayRow.replay_id, ReplayRow.started_at).where(*is_free)
            # A replay whose turn is over waits for the turns of the others.
            query = query.order_by(func.coalesce(ReplayRow.due_at, ReplayRow.created_at))
            for candidate in connection.execute(query).all():
                values = {
                    "state": ReplayState.RUNNING.value,
                    "claim": token,
                    "claimed_until": now + timedelta(seconds=CLAIM_SECONDS),
                    "started_at": candidate.started_at or now,
                }
                is_it = ReplayRow.replay_id == candidate.replay_id
                if connection.execute(update(ReplayRow).where(is_it, *is_free).values(values)).rowcount:
                    row = connection.execute(select(ReplayRow.__table__).where(is_it)).one()
                    position = None if row.position_at is None else (row.position_at, row.position_id)
                    return Claim(_replay(row), token, position)
        return None

    def due_in(self) -> float | None:
        """Return the seconds until a replay may be claimed; None: there is none."""
        times = select(ReplayRow.created_at, ReplayRow.due_at, ReplayRow.claimed_until).where(_is_open())
        with self._database.begin("look for replays") as connection:
            now = now_in(connection)
            waits = [
                (max(time for time in row if time is not None) - now).total_seconds()
                for row in connection.execute(times)
            ]
        return max(min(waits), 0.0) if waits else None

    def advance(self, claim: Claim, events: int = 0, position: tuple[datetime, str] | None = None) -> bool:
        """Record events that were sent, and extend the claim.

        Args:
            claim: the claim.
            events: how many were sent since the last call.
            position: the last of them; None: as before.

        Returns:
            False if the replay must not go on: it was cancelled, or another worker claimed it.
        """
        until = now_within(self._database) + timedelta(seconds=CLAIM_SECONDS)
        values = {"events": ReplayRow.events + events, "claimed_until": until, "error": None}
        if position is not None:
            values |= {"position_at": position[0], "position_id": position[1]}
        return self._update(claim, "record the progress of a replay", values)

    def release(self, claim: Claim, seconds: float = 0.0, error: str | None = None) -> None:
        """Give up a claim: the replay goes on later.

        Args:
            claim: the claim.
            seconds: from now until it may go on.
            error: what kept it from going on, if something did.
        """
        due_at = now_within(self._database) + timedelta(seconds=seconds)
        values = {"claim": None, "claimed_until": None, "due_at": due_at, "error": error}
        self._update(claim, "release a replay", values)

    def end(self, claim: Claim, state: ReplayState, error: str | None = None) -> None:
        """Record that a replay has ended."""
        values = {"state": state.value, "claim": None, "ended_at": now_within(self._database), "error": error}
        self._update(claim, "record the end of a replay", values)

    def _update(self, claim: Claim, what: str, values: dict[str, Any]) -> bool:
        is_mine = (ReplayRow.replay_id == claim.replay.replay_id, ReplayRow.claim == claim.token, _is_open())
        with self._database.begin(what) as connection:
            return bool(connection.execute(update(ReplayRow).where(*is_mine).values(values)).rowcount)


def _is_open() -> ColumnElement[bool]:
    return ReplayRow.state.in_(_OPEN)


def _read(connection: Connection, replay_id: str) -> Replay:
    row = connection.execute(select(ReplayRow.__table__).where(ReplayRow.replay_id == replay_id)).first()
    if row is None:
        raise UnknownReplay(f"there is no replay {replay_id!r}: `waooaw events replays` lists them")
    return _replay(row)


def _replay(row: Any) -> Replay:
    return Replay(
        replay_id=row.replay_id,
        subscriber=row.subscriber,
        state=ReplayState(row.state),
        events=row.events,
        last_at=row.position_at,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        error=row.error,
        selection=row.selection,
        per_second=row.per_second,
        speed=row.speed,
        from_agent=row.from_agent,
        priority=Priority.of_rank(row.priority),
    )
