"""Which messages an export has, and how they are read: a page at a time, however many there are."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import select

from waooaw_celery.errors import DecodingFailed, InvalidMessage, PayloadAltered, PayloadMissing
from waooaw_celery.ledger.database.models import MessageRow
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.reader import group_by_month, in_partition, message_columns, read_records
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MAX_PAGE_SIZE, MessageAuditTrail
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import check_agent_name, check_id

logger = get_logger(__name__)

#: How many payloads are in memory at once: a payload may have megabytes.
PAYLOAD_BATCH = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which messages an export has: those that match every filter. At least one filter is given.

    Attributes:
        conversation: the id of a message, its correlation id or its conversation id: the messages of its
            conversation.
        agent: the messages that this agent sent or received.
        since: the messages that were sent at this time or later.
        until: the messages that were sent before this time.

    Raises:
        InvalidMessage: there is no filter, a name or an id is invalid, or a time has no time zone.
    """

    conversation: str | None = None
    agent: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if not any(self.to_dict().values()):
            raise InvalidMessage("an export needs a filter: a conversation, an agent, or a period")
        if self.conversation is not None:
            check_id(self.conversation, "conversation")
        if self.agent is not None:
            check_agent_name(self.agent)
        for time in (self.since, self.until):
            if time is not None and time.tzinfo is None:
                raise InvalidMessage("since and until must be aware datetimes, such as datetime.now(UTC)")

    def to_dict(self) -> dict[str, str | None]:
        """Return the filters as JSON values."""
        return {
            "conversation": self.conversation,
            "agent": self.agent,
            "since": None if self.since is None else self.since.isoformat(),
            "until": None if self.until is None else self.until.isoformat(),
        }


def selected_records(ledger: Ledger, selection: Selection, *, payloads: bool) -> Iterator[AuditRecord]:
    """Yield the messages of a selection, one conversation in causal order, otherwise the newest first.

    Args:
        ledger: the ledger.
        selection: which messages.
        payloads: whether to read the payloads.

    Raises:
        AuditUnavailable: the database does not answer.
        UnknownMessage: the ledger has no such conversation.
    """
    found = _without_payloads(MessageAuditTrail(ledger), selection)
    if not payloads:
        yield from found
        return
    while batch := list(islice(found, PAYLOAD_BATCH)):
        yield from _with_payloads(ledger, batch)


def _without_payloads(trail: MessageAuditTrail, selection: Selection) -> Iterator[AuditRecord]:
    agent = selection.agent
    if selection.conversation is not None:
        records = trail.conversation(selection.conversation, payloads=False)
        return (record for record in records if _matches(record, selection))
    period = {"since": selection.since, "until": selection.until}
    if agent is None:
        return _pages(trail, **period)
    sent = _pages(trail, from_agent=agent, **period)
    received = _pages(trail, to_agent=agent, **period)
    others = (record for record in received if record.receipt.from_agent != agent)
    return heapq.merge(sent, others, key=_place, reverse=True)


def _pages(trail: MessageAuditTrail, **filters: Any) -> Iterator[AuditRecord]:
    page = trail.query(limit=MAX_PAGE_SIZE, payloads=False, **filters)
    while True:
        yield from page.records
        if page.after is None:
            return
        page = trail.query(limit=MAX_PAGE_SIZE, payloads=False, after=page.after, **filters)


def _matches(record: AuditRecord, selection: Selection) -> bool:
    receipt = record.receipt
    if selection.agent is not None and selection.agent not in (receipt.from_agent, receipt.to_agent):
        return False
    if selection.since is not None and receipt.sent_at < selection.since:
        return False
    return selection.until is None or receipt.sent_at < selection.until


def _with_payloads(ledger: Ledger, batch: list[AuditRecord]) -> Iterator[AuditRecord]:
    """Yield the records of a batch as they are now, with their payloads; one that was purged since is left out."""
    keys = [(record.receipt.message_id, record.retain_until) for record in batch]
    read: dict[str, AuditRecord] = {}
    with ledger.database.begin("read payloads") as connection:
        for month in group_by_month(keys):
            query = select(*message_columns(payloads=True)).where(in_partition(MessageRow, month))
            read |= {record.receipt.message_id: record for record in read_records(connection, query)}
    for message_id, _ in keys:
        if message_id in read:
            yield _whole(ledger, read[message_id])


def _whole(ledger: Ledger, record: AuditRecord) -> AuditRecord:
    """Return a record with its payload, also if that is large; it stays None where the store does not have it."""
    try:
        return record if record.reference is None else replace(record, payload=ledger.payload(record))
    except (PayloadMissing, PayloadAltered, DecodingFailed) as error:
        logger.warning(
            "%s", error, extra={"action": "payload_not_exported", "message_id": record.receipt.message_id}
        )
        return record


def _place(record: AuditRecord) -> tuple[datetime, str]:
    return record.receipt.sent_at, record.receipt.message_id
