"""The columns that every table of messages has."""

from __future__ import annotations

from waooaw_celery.ledger.read.records import AuditRecord

#: The headings.
FACTS = ("sent", "status", "priority", "from", "to", "id")


def facts(record: AuditRecord) -> tuple[object, ...]:
    """Return the cells of a message for the columns ``FACTS``."""
    receipt = record.receipt
    return (
        receipt.sent_at,
        receipt.status.value,
        receipt.priority.name,
        receipt.from_agent,
        f"{receipt.to_agent}.{receipt.handler}" if receipt.to_agent else f"topic {receipt.handler}",
        receipt.message_id,
    )
