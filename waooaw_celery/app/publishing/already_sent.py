"""Whether a message was sent before, so that no message is published twice."""

from __future__ import annotations

from waooaw_celery.app.publishing.publication import Batch
from waooaw_celery.app.publishing.publish_failures import withdraw
from waooaw_celery.errors import InvalidMessage, StoreUnavailable, UnknownMessage
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.receipt import ReceiptStore
from waooaw_celery.worker.current_task import current_task, is_sent_by_finished_handler
from waooaw_celery.worker.outcomes.committed_effects import is_redelivered


def was_sent_by_earlier_attempt(receipts: ReceiptStore, message_id: str) -> bool:
    """Return whether an earlier attempt of the finished handler has sent this, such as a chain's next step."""
    task = current_task()
    if task is None or not is_sent_by_finished_handler() or not is_redelivered(task.request):
        return False
    return is_sent(receipts, message_id)


def is_sent(receipts: ReceiptStore, message_id: str) -> bool:
    """Return whether a message is known, and the broker has had it."""
    try:
        return receipts.get(message_id).status is not MessageStatus.PENDING
    except UnknownMessage:
        return False


def check_not_sent_before(receipts: ReceiptStore, batch: Batch, new: set[str], *, withdraws: bool = True) -> None:
    """Check that the broker cannot have any of the messages that were recorded before.

    Args:
        receipts: the store of their receipts.
        batch: the messages.
        new: ids of those that were recorded for this call.
        withdraws: whether they must be withdrawn when one of the others was sent: they are recorded already.

    Raises:
        InvalidMessage: it may have one. The new messages are withdrawn, because none is published.
        StoreUnavailable: the store does not answer, or does not have a record yet that waits in the spool.
    """
    for _, message in batch:
        if message.message_id not in new:
            try:
                _check_may_be_sent_again(receipts, message.message_id)
            except InvalidMessage as error:
                if withdraws:
                    withdraw(receipts, [each for _, each in batch if each.message_id in new], error)
                raise


def _check_may_be_sent_again(receipts: ReceiptStore, message_id: str) -> None:
    """Let a message be sent again only when the broker may not have it, or its own handler replaces it."""
    task = current_task()
    if task is not None and task.request.id == message_id:
        return
    try:
        status = receipts.get(message_id).status
    except UnknownMessage:  # the ledger did not answer when it was recorded, and answers again
        raise StoreUnavailable(
            f"message {message_id} was not published: its record waits in the spool, and is not in the ledger yet"
        ) from None
    if status is not MessageStatus.PENDING:
        raise InvalidMessage(
            f"message {message_id} was sent already and is {status}: "
            "to send the same content again, send a new Message"
        )
