"""Queries for the messages of a conversation and of an agent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, Select, and_, bindparam, select, union, union_all

from waooaw_celery.ledger.database.models import MessageRow
from waooaw_celery.ledger.read.reader import message_columns, read_records
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.read.scan import newest_first


def read_conversation(connection: Connection, id_: str, *, payloads: bool) -> list[AuditRecord]:
    """Return the messages of a conversation in causal order; none if the ledger does not have it.

    Args:
        connection: a connection in a transaction.
        id_: the id of any message in it, its correlation id, or its conversation id.
        payloads: whether to read the payloads.
    """
    # Three queries, each answered by an index; a query with OR is not.
    conversations = [
        select(MessageRow.conversation_id).where(column == id_)
        for column in (MessageRow.message_id, MessageRow.correlation_id, MessageRow.conversation_id)
    ]
    query = select(*message_columns(payloads=payloads)).where(
        MessageRow.conversation_id.in_(union(*conversations))
    )
    return _in_causal_order(read_records(connection, query.order_by(MessageRow.sent_at, MessageRow.message_id)))


def read_consequences(connection: Connection, record: AuditRecord, limit: int) -> list[AuditRecord]:
    """Return the messages that the handler of a message sent, the oldest first, without their payloads.

    Args:
        connection: a connection in a transaction.
        record: the message.
        limit: how many at most.
    """
    query = select(*message_columns(payloads=False)).where(
        MessageRow.conversation_id == record.conversation_id,  # it has an index
        MessageRow.causation_id == record.receipt.message_id,
    )
    return read_records(connection, query.order_by(MessageRow.sent_at, MessageRow.message_id).limit(limit))


def read_history(
    connection: Connection, agent: str, since: datetime, limit: int, *, payloads: bool
) -> list[AuditRecord]:
    """Return what an agent sent and received since a time, newest first.

    Args:
        connection: a connection in a transaction.
        agent: the agent's name.
        since: the earliest time of sending.
        limit: how many messages at most.
        payloads: whether to read the payloads.
    """
    return read_records(connection, _history_query(payloads), {"agent": agent, "since": since, "limit": limit})


@cache
def _history_query(payloads: bool) -> Select[Any]:
    """Return the query for what an agent sent and received. It is cached: building it takes a while."""
    agent: ColumnElement[str] = bindparam("agent")
    since: ColumnElement[datetime] = bindparam("since")
    limit = bindparam("limit", type_=Integer)
    # Two queries, each answered in order by an index; a query with OR is not.
    columns = message_columns(payloads=payloads)
    directions = [
        newest_first(select(*columns).where(condition, MessageRow.sent_at >= since), limit).subquery()
        for condition in (
            MessageRow.from_agent == agent,
            and_(MessageRow.to_agent == agent, MessageRow.from_agent != agent),
        )
    ]
    both = union_all(*map(select, directions)).subquery()
    return newest_first(select(both), limit, both.c)


def _in_causal_order(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """Return the records with each message after its cause, though the computers' clocks may disagree."""
    known = {record.receipt.message_id for record in records}
    children: dict[str | None, list[AuditRecord]] = {}
    for record in records:
        children.setdefault(record.causation_id if record.causation_id in known else None, []).append(record)
    ordered: list[AuditRecord] = []
    stack = list(reversed(children.get(None, [])))
    while stack:
        record = stack.pop()
        ordered.append(record)
        stack.extend(reversed(children.get(record.receipt.message_id, [])))
    return ordered
