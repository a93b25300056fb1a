"""What a publish that failed leaves behind: the error for the caller, and the end of unpublished messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # its stubs are old

from waooaw_celery.app.publishing.publication import Batch, ids_of
from waooaw_celery.errors import BrokerUnavailable, StoreUnavailable
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.messages.wording import counted
from waooaw_celery.store.redis_refusals import explained, refusal_in
from waooaw_celery.worker.record import MAX_ERROR_CHARACTERS

logger = get_logger(__name__)


def no_connection(limit: BaseException, timeout: float) -> BrokerUnavailable:
    """Return the error of a publish that got no connection from the pool.

    Args:
        limit: Kombu's error, whose text is the size of the pool.
        timeout: seconds that the publish has waited.
    """
    return BrokerUnavailable(
        f"all {limit} connections to the broker were in use for {timeout:g} s: "
        "raise broker_pool_limit to the number of threads that send, and check that the broker answers quickly"
    )


def not_confirmed(batch: Batch, published: Sequence[Message], error: Exception) -> BrokerUnavailable:
    """Return the error of a publish that the broker did not confirm.

    Args:
        batch: the messages.
        published: those of them that the broker has confirmed.
        error: the error of the broker's client.
    """
    confirmed = {message.message_id for message in published}
    missing = [message for _, message in batch if message.message_id not in confirmed]
    first, cause = missing[0], error.__cause__ or error
    if len(batch) == 1:
        what = f"message {first.message_id} to {first.to_agent!r} was"
    else:
        what = (
            f"{len(missing)} of {len(batch)} messages, the first of them {first.message_id} to "
            f"{first.to_agent!r}, were"
        )
    failure = BrokerUnavailable(f"{what} not confirmed by the broker: {explained(cause)}")
    failure.message_ids = tuple(message.message_id for message in published)
    return failure


def refused(batch: Batch, error: Exception) -> BrokerUnavailable:
    """Return the error of messages that the broker refused: it is certain that it has none of them.

    Args:
        batch: the messages.
        error: the refusal.
    """
    failure = BrokerUnavailable(f"{counted(len(batch), 'message')} not published: {reason_of(error)}")
    failure.uncertain = False
    return failure


def refuse(
    receipts: ReceiptStore, batch: Batch, new: set[str], belongs_to_accepted: bool, error: Exception
) -> NoReturn:
    """End messages that the broker refused, unless it may have one or recovery is to publish them.

    Args:
        receipts: the store of their receipts.
        batch: the messages.
        new: ids of those that were recorded for this call: no other call can have published them.
        belongs_to_accepted: whether they belong to what was accepted: an outbox, an event, a finished handler.
        error: the refusal.

    Raises:
        BrokerUnavailable: always.
    """
    messages = [message for _, message in batch]
    failure = refused(batch, error)
    failure.uncertain = True  # until the messages have ended
    answers = any(message.message_type is MessageType.RESPONSE for message in messages)
    if not belongs_to_accepted and not answers and ids_of(batch) <= new:
        try:
            withdraw(receipts, messages, error)
        except StoreUnavailable as unavailable:  # recovery may find them, and publish them
            logger.warning(
                "refused messages stay PENDING, and recovery may publish them: %s",
                unavailable,
                extra={"action": "receipt_stays_pending"},
            )
        else:
            failure.uncertain = False
    raise failure from error


def reason_of(error: Exception) -> str:
    """Return why the broker refused a publish, and what to do about it."""
    if isinstance(error, BatchPublishError) or refusal_in(error) is None:  # its text says it already
        return str(error)
    return f"Redis refused it: {explained(error)}"


def withdraw(receipts: ReceiptStore, messages: Sequence[Message], error: Exception) -> None:
    """End messages that were recorded and are not published; recovery would publish them otherwise.

    Args:
        receipts: the store of their receipts.
        messages: the messages.
        error: why they are not published.
    """
    if messages:
        about: dict[str, Any] = {
            "event": MessageEvent.FAILED,
            "error": f"not published: {reason_of(error)}"[:MAX_ERROR_CHARACTERS],
        }
        receipts.note(*(MessageFact(message_id=each.message_id, message=each, **about) for each in messages))
