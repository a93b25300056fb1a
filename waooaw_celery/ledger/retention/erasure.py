"""Erasure: blanks payloads, results and error texts, and keeps who, when, what happened, and the digests."""

from __future__ import annotations

from sqlalchemy import ColumnElement, null, or_, select, update

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import InboxRow, MessageEventRow, MessageRow
from waooaw_celery.ledger.read.reader import contains_text, group_by_month, in_partition
from waooaw_celery.ledger.retention.holds import is_held
from waooaw_celery.ledger.retention.removal import BATCH_SIZE, Removal, record_removal, removing
from waooaw_celery.messages.validation import check_agent_name


def erase(database: Database, *, agent: str | None = None, containing: str | None = None) -> Removal:
    """Erase the payloads of an agent's messages, or of messages that contain a text; not of those on hold.

    Args:
        database: the ledger's database.
        agent: erase all messages that this agent sent or received.
        containing: erase all messages whose payload, as JSON text, contains this text, in any case.

    Raises:
        InvalidMessage: neither or both are given, or this is not a valid agent name.
        AuditUnavailable: the database does not answer.
    """
    rule, condition = _rule(agent, containing)
    with database.begin("read the database's time") as connection:
        at = now_in(connection)
    with removing(database, "erase payloads") as connection:
        keys = connection.execute(
            select(MessageRow.message_id, MessageRow.retain_until).where(
                condition, MessageRow.erased_at.is_(None), ~is_held()
            )
        ).all()
        events = 0
        for start in range(0, len(keys), BATCH_SIZE):
            batch = keys[start : start + BATCH_SIZE]
            for month in group_by_month((key.message_id, key.retain_until) for key in batch):
                ids = [message_id for message_id, _ in month]
                messages = update(MessageRow).where(in_partition(MessageRow, month))
                connection.execute(messages.values(payload=null(), erased_at=at))
                connection.execute(update(InboxRow).where(InboxRow.message_id.in_(ids)).values(result=null()))
                errors = update(MessageEventRow).where(
                    in_partition(MessageEventRow, month), MessageEventRow.error.is_not(None)
                )
                events += connection.execute(errors.values(error=None)).rowcount
    removal = Removal(rule=rule, messages=len(keys), events=events)
    record_removal(database, removal, at)
    return removal


def _rule(agent: str | None, containing: str | None) -> tuple[str, ColumnElement[bool]]:
    """Return the rule to record, and the condition on messages."""
    if (agent is None) == (not containing):
        raise InvalidMessage("erase takes an agent, or a text that payloads contain")
    if agent is not None:
        rule = f"erase: agent {check_agent_name(agent)}"
        return rule, or_(MessageRow.from_agent == agent, MessageRow.to_agent == agent)
    # The text itself is not recorded: it is what is to be erased.
    return "erase: payloads that contain a given text", contains_text(MessageRow, str(containing))
