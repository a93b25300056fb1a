"""Finds the messages that copy or answer others: an erasure blanks them too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from waooaw_celery.ledger.database.models import MessageRow
from waooaw_celery.ledger.database.rows import digest
from waooaw_celery.ledger.read.reader import MessageKey
from waooaw_celery.ledger.retention.holds import is_held
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.message import NO_RECIPIENT
from waooaw_celery.messages.validation import JSON

#: Messages whose copies and answers one statement looks for.
_BATCH_SIZE = 200
#: The digests of payloads that say nothing: equal ones are no copies.
_TRIVIAL: tuple[JSON, ...] = (None, {}, [], "", True, False)
_SAYS_NOTHING = frozenset(map(digest, _TRIVIAL))


class Target(NamedTuple):
    """A message that is to be erased.

    Attributes:
        message_id, retain_until: its key.
        conversation_id, correlation_id, causation_id: the ids of its thread.
        payload_digest: the SHA-256 of its payload.
        message_type: its type.
        to_agent: its recipient; empty for a published event.
        erased_at: when it was erased before, or None.
    """

    message_id: str
    retain_until: datetime
    conversation_id: str
    correlation_id: str
    causation_id: str | None
    payload_digest: str
    message_type: str
    to_agent: str
    erased_at: datetime | None

    @property
    def key(self) -> MessageKey:
        """Its primary key."""
        return self.message_id, self.retain_until

    @property
    def was_erased(self) -> bool:
        """Whether it was erased before."""
        return self.erased_at is not None

    @property
    def is_published_event(self) -> bool:
        """Whether it is the record of a published event."""
        return self.message_type == MessageType.EVENT.value and self.to_agent == NO_RECIPIENT


def select_targets(connection: Connection, *conditions: ColumnElement[bool]) -> list[Target]:
    """Return the messages that match all conditions."""
    columns = [getattr(MessageRow, name) for name in Target._fields]
    return [Target(*row) for row in connection.execute(select(*columns).where(*conditions))]


def related_targets(connection: Connection, targets: dict[str, Target]) -> tuple[list[Target], list[Target]]:
    """Find the copies and the answers of messages, and those of them in turn. Messages on hold are left out.

    A copy has the same payload, in the same conversation or with the same correlation id: the deliveries and the
    replays of an event, a retried dead letter, another recipient of a broadcast. An answer is a reply message.

    Args:
        connection: a connection in a transaction.
        targets: the messages by id; what is found is added.

    Returns:
        The copies and the answers.
    """
    copies: list[Target] = []
    answers: list[Target] = []
    added: Sequence[Target] = list(targets.values())
    while added:
        found: list[Target] = []
        for start in range(0, len(added), _BATCH_SIZE):
            batch = added[start : start + _BATCH_SIZE]
            for target in select_targets(connection, _may_be_related(batch), ~is_held()):
                is_answer = _is_answer(target, targets)
                if target.message_id not in targets and (is_answer or _is_copy(target, batch)):
                    targets[target.message_id] = target
                    found.append(target)
                    (answers if is_answer else copies).append(target)
        added = found
    return copies, answers


def _may_be_related(batch: Sequence[Target]) -> ColumnElement[bool]:
    threads = {id_ for target in batch for id_ in _threads(target)}
    digests = {target.payload_digest for target in batch} - _SAYS_NOTHING
    replies_to = [target.message_id for target in batch]
    is_reply = and_(MessageRow.message_type == MessageType.RESPONSE.value, MessageRow.causation_id.in_(replies_to))
    in_thread = or_(MessageRow.conversation_id.in_(threads), MessageRow.correlation_id.in_(threads))
    return and_(in_thread, or_(MessageRow.payload_digest.in_(digests), is_reply))


def _is_copy(target: Target, originals: Iterable[Target]) -> bool:
    if target.payload_digest in _SAYS_NOTHING:
        return False
    return any(
        target.payload_digest == original.payload_digest and _threads(target) & _threads(original)
        for original in originals
    )


def _is_answer(target: Target, targets: Mapping[str, Target]) -> bool:
    return target.message_type == MessageType.RESPONSE.value and target.causation_id in targets


def _threads(target: Target) -> set[str]:
    return {target.conversation_id, target.correlation_id}
