"""Legal holds: what they name is neither purged nor erased until the hold is released."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, exists, insert, or_, select

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import HoldRow, MessageRow
from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.ledger.database.rows import storable
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.validation import check_agent_name, check_id


class HoldKind(StrEnum):
    """What a legal hold names."""

    MESSAGE = "message"
    CONVERSATION = "conversation"
    AGENT = "agent"


#: The message that a RESPONSE answers.
_ANSWERED = case((MessageRow.message_type == MessageType.RESPONSE.value, MessageRow.causation_id))
#: The columns of a message that a hold of each kind is compared with. A hold on a request keeps its answer too.
_COLUMNS: dict[HoldKind, tuple[Any, ...]] = {
    HoldKind.MESSAGE: (MessageRow.message_id, _ANSWERED),
    HoldKind.CONVERSATION: (MessageRow.conversation_id,),
    HoldKind.AGENT: (MessageRow.from_agent, MessageRow.to_agent),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A legal hold.

    Attributes:
        kind: whether it names a message, a conversation or an agent.
        value: the id, or the agent's name.
        reason: why it was placed.
        placed_at: when it was placed, aware UTC.
    """

    kind: HoldKind
    value: str
    reason: str
    placed_at: datetime


def place_hold(database: Database, kind: HoldKind, value: str, reason: str) -> None:
    """Place a hold, or replace the one on the same value.

    Raises:
        InvalidMessage: the value is not a valid id or agent name, or the reason is empty or cannot be stored.
        AuditUnavailable: the database does not answer.
    """
    check = check_agent_name if kind is HoldKind.AGENT else check_id
    check(value, kind.value)
    if not reason.strip():
        raise InvalidMessage("a hold needs a reason: those who find it later must know why it was placed")
    if storable(reason) != reason:
        raise InvalidMessage("the reason of a hold must not contain NUL characters or unpaired surrogates")
    with database.begin("place a legal hold") as connection:
        connection.execute(delete(HoldRow).where(HoldRow.kind == kind.value, HoldRow.value == value))
        row = {"kind": kind.value, "value": value, "reason": reason, "placed_at": now_in(connection)}
        connection.execute(insert(HoldRow).values(row))


def release_hold(database: Database, kind: HoldKind, value: str) -> bool:
    """Release a hold, and return whether it existed."""
    with database.begin("release a legal hold") as connection:
        statement = delete(HoldRow).where(HoldRow.kind == kind.value, HoldRow.value == value)
        return connection.execute(statement).rowcount > 0


def list_holds(database: Database) -> list[Hold]:
    """Return all holds, the oldest first."""
    with database.begin("list the legal holds") as connection:
        rows = connection.execute(select(HoldRow.__table__).order_by(HoldRow.placed_at)).all()
    return [
        Hold(kind=HoldKind(row.kind), value=row.value, reason=row.reason, placed_at=row.placed_at) for row in rows
    ]


def is_held() -> ColumnElement[bool]:
    """Return the condition that a hold names a message."""
    return exists().where(
        or_(
            *(
                and_(HoldRow.kind == kind.value, HoldRow.value == column)
                for kind, columns in _COLUMNS.items()
                for column in columns
            )
        )
    )


def has_held_message(connection: Connection, month: Month) -> bool:
    """Whether a hold names a message whose retention ends in a month."""
    for hold in connection.execute(select(HoldRow.kind, HoldRow.value)).all():
        is_named = or_(*(column == hold.value for column in _COLUMNS[HoldKind(hold.kind)]))
        in_month = and_(MessageRow.retain_until >= month.begin, MessageRow.retain_until < month.end)
        if connection.scalar(select(exists().where(in_month, is_named))):
            return True
    return False
