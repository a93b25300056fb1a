"""Cancels a message: records the request, notifies the workers, and confirms it when it is certain."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from amqp.exceptions import AMQPError
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import InvalidMessage, NotStoppable, UnknownAgent
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import takes_message
from waooaw_celery.messages.receipt import DeliveryReceipt, MessageEvent, MessageFact
from waooaw_celery.worker.cancellation import CancelAnswer, notify_caller
from waooaw_celery.worker.current_task import current_task
from waooaw_celery.worker.remote_control import CANCEL

logger = get_logger(__name__)

#: Seconds between two reads of the receipt of a message that a worker is about to end.
_POLL_SECONDS = 0.02
#: Errors of the brokers' clients when a broadcast or its replies fail.
_BROKER_ERRORS = (OperationalError, KombuError, AMQPError, RedisError, OSError)


def cancel(
    app: AgentApp, message_id: str, *, running: bool, timeout: float, by: str | None = None
) -> DeliveryReceipt:
    """Cancel a message; see ``MessageBus.cancel``. ``by`` is its ``from_agent``."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 3.2e9:
        raise InvalidMessage(f"timeout must be a positive number of seconds, not {timeout!r}")
    deadline = time.monotonic() + timeout
    receipt = app.receipts.get(message_id)
    if receipt.status.final:
        return receipt
    app.receipts.request_cancellation(receipt, running, by or _current_sender(app))
    workers = _living_workers(app, receipt.to_agent)
    answers = _notify(app, workers, message_id, running, timeout)
    receipt = app.receipts.get(message_id)
    if workers and answers == [CancelAnswer.PROMISED] * len(workers) and _is_not_begun(receipt):
        # No worker has it, and none will begin it: a worker that starts later reads the cancellations first.
        app.receipts.note(MessageFact(message_id=message_id, event=MessageEvent.CANCELLED))
        if not takes_message(receipt.handler):
            notify_caller(app, message_id)
        return app.receipts.get(message_id)
    if not receipt.status.final and CancelAnswer.NOT_STOPPABLE in answers:
        raise NotStoppable(
            f"the handler of {message_id} cannot be stopped: it is a plain def in a thread of "
            f"{receipt.to_agent!r}. It is not retried. To stop such handlers, run their worker with -P prefork"
        )
    is_ending = {CancelAnswer.DROPPED, CancelAnswer.STOPPING} & set(answers)
    while is_ending and not receipt.status.final and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        receipt = app.receipts.get(message_id)
    return receipt


def _current_sender(app: AgentApp) -> str:
    task = current_task()
    return task.agent if task is not None else app.settings.sender or "somebody"


def _is_not_begun(receipt: DeliveryReceipt) -> bool:
    return receipt.status in (MessageStatus.PENDING, MessageStatus.SENT)


def _living_workers(app: AgentApp, agent: str) -> list[str]:
    """Return the node names of the living workers of an agent."""
    with suppress(UnknownAgent):  # no worker of it has ever started; the first one will read the cancellations
        return list(app.registry.get(agent).workers)
    return []


def _notify(
    app: AgentApp, workers: list[str], message_id: str, running: bool, timeout: float
) -> list[CancelAnswer]:
    """Ask workers to cancel a message, and return the answers that arrive in time."""
    if not workers:
        return []
    arguments = {"message_id": message_id, "running": running}
    try:
        replies: Any = app.control.broadcast(
            CANCEL, arguments=arguments, destination=workers, reply=True, timeout=timeout, limit=len(workers)
        )
    except _BROKER_ERRORS as error:  # it is recorded: the workers read it within a few seconds
        logger.warning(
            "could not notify the workers that %s is cancelled: %s",
            message_id,
            error,
            extra={"action": "cancel_not_told", "message_id": message_id},
        )
        return []
    answers = [answer for reply in replies or () for answer in reply.values()]
    return [CancelAnswer(answer) for answer in answers if answer in list(CancelAnswer)]
