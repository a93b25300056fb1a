"""The part of a conversation around one message: what led to it, and what it led to."""

from __future__ import annotations

from collections.abc import Sequence

from waooaw_celery.errors import UnknownMessage
from waooaw_celery.ledger.read.records import AuditRecord


def thread_of(records: Sequence[AuditRecord], message_id: str) -> list[AuditRecord]:
    """Return the messages that led to a message, the message, and all that followed from it, in the given order.

    Args:
        records: the messages of a conversation in causal order: each one after its cause.
        message_id: the message.

    Raises:
        UnknownMessage: it is not among them.

    Example:
        >>> thread_of(trail.conversation(message_id, payloads=False), message_id)
    """
    by_id = {record.receipt.message_id: record for record in records}
    if message_id not in by_id:
        raise UnknownMessage(f"this conversation has no message {message_id!r:.80}")
    wanted = {message_id}
    cause = by_id[message_id].causation_id
    while cause in by_id and cause not in wanted:
        wanted.add(cause)
        cause = by_id[cause].causation_id
    followed = {message_id}
    for record in records:
        if record.causation_id in followed:
            followed.add(record.receipt.message_id)
    wanted |= followed
    return [record for record in records if record.receipt.message_id in wanted]
