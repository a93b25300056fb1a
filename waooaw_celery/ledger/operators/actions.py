"""Records what people change by hand, before they change it, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import uuid4

from sqlalchemy import Connection, insert, select, tuple_, update

from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import OperatorActionRow
from waooaw_celery.ledger.database.rows import storable
from waooaw_celery.messages.json_form import JsonForm

#: Longest texts that are kept, in characters.
MAX_TARGET, MAX_REASON, MAX_DETAILS = 1000, 1000, 4000


class ActionOutcome(StrEnum):
    """What came of an action.

    BEGUN: it was begun, and no end was recorded: its process may have been killed. INTERRUPTED: a server failed
    meanwhile, so that it may have been done, or a part of it. FAILED: it was not done.
    """

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAction(JsonForm):
    """A change that a person made.

    Attributes:
        action_id: its id.
        at: when it was begun, aware UTC, by the database's clock.
        person: who made it.
        address: the network address that it came from.
        action: what was done, such as ``retry-dead-letters``.
        target: what it was done to, such as an agent's name.
        reason: why, in the person's words.
        outcome: what came of it.
        details: the outcome in words, or None.
        ended_at: when it ended, or None.
    """

    action_id: str
    at: datetime
    person: str
    address: str
    action: str
    target: str
    reason: str
    outcome: ActionOutcome
    details: str | None
    ended_at: datetime | None


def begin_action(database: Database, *, person: str, address: str, action: str, target: str, reason: str) -> str:
    """Record that a person begins a change, and return the id of the record.

    Raises:
        InvalidMessage: the reason is empty.
        AuditUnavailable: the database does not answer; then the change must not be made.
    """
    if not reason.strip():
        raise InvalidMessage("a change needs a reason: those who read the ledger later must know why it was made")
    action_id = str(uuid4())
    with database.begin("record what a person changes") as connection:
        row = {
            "action_id": action_id,
            "at": now_in(connection),
            "person": storable(person),
            "address": address,
            "action": action,
            "target": storable(target[:MAX_TARGET]),
            "reason": storable(reason[:MAX_REASON]),
            "outcome": ActionOutcome.BEGUN.value,
        }
        connection.execute(insert(OperatorActionRow).values(row))
    return action_id


def end_action(database: Database, action_id: str, outcome: ActionOutcome, details: str) -> None:
    """Record what came of a change.

    Raises:
        AuditUnavailable: the database does not answer; the record stays BEGUN.
    """
    with database.begin("record what came of a change") as connection:
        values = {
            "outcome": outcome.value,
            "details": storable(details[:MAX_DETAILS]),
            "ended_at": now_in(connection),
        }
        connection.execute(
            update(OperatorActionRow).where(OperatorActionRow.action_id == action_id).values(values)
        )


def read_action(database: Database, action_id: str) -> OperatorAction:
    """Return the record of a change.

    Raises:
        UnknownMessage: there is none with this id.
    """
    with database.begin("read what a person changed") as connection:
        found = _read(
            connection,
            select(OperatorActionRow.__table__).where(OperatorActionRow.action_id == storable(action_id)),
        )
    if not found:
        raise UnknownMessage(f"the ledger has no change {action_id!r:.80}")
    return found[0]


def list_actions(
    database: Database, *, limit: int = 100, after: tuple[datetime, str] | None = None
) -> Sequence[OperatorAction]:
    """Return the changes that people made, the newest first.

    Args:
        database: the ledger's database.
        limit: how many at most.
        after: continue after this one: its ``at`` and id.
    """
    keys = (OperatorActionRow.at, OperatorActionRow.action_id)
    query = select(OperatorActionRow.__table__).order_by(*(key.desc() for key in keys)).limit(limit)
    if after is not None:
        query = query.where(tuple_(*keys) < (after[0], storable(after[1])))
    with database.begin("list what people changed") as connection:
        return _read(connection, query)


def _read(connection: Connection, query: object) -> list[OperatorAction]:
    return [
        OperatorAction(**{**row._mapping, "outcome": ActionOutcome(row.outcome)})
        for row in connection.execute(query)  # type: ignore[call-overload]
    ]
