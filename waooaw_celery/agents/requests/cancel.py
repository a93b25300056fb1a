"""How a message is cancelled: written down first, then told to the workers, and claimed only when it is true."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

from amqp.exceptions import AMQPError
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import BackendUnavailable, InvalidMessage, NotStoppable, UnknownAgent
from waooaw_celery.messages.message import DeliveryReceipt, MessageStatus
from waooaw_celery.messages.queues import takes_message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.worker.cancellation import CANCELLED, CancelAnswer
from waooaw_celery.worker.current_task import current_task
from waooaw_celery.worker.remote_control import CANCEL

logger = logging.getLogger(__name__)

#: Seconds between two looks at a receipt whose end a worker is about to write.
_LOOK_SECONDS = 0.02
#: What the brokers raise when a broadcast or its answers fail.
_BROKER_ERRORS = (OperationalError, KombuError, AMQPError, RedisError, OSError)


def cancel(
    app: AgentApp, message_id: str, *, running: bool, timeout: float, by: str | None = None
) -> DeliveryReceipt:
    """Cancel a message; see ``MessageBus.cancel``."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 3.2e9:
        raise InvalidMessage(f"timeout must be a positive number of seconds, not {timeout!r}")
    deadline = time.monotonic() + timeout
    receipt = app.receipts.get(message_id)
    if receipt.status.final:
        return receipt
    app.receipts.request_cancel(receipt, running, by or _speaker(app))
    workers = _living(app, receipt.to_agent)
    answers = _tell(app, workers, message_id, running, timeout)
    receipt = app.receipts.get(message_id)
    if workers and answers == [CancelAnswer.PROMISED] * len(workers) and _not_begun(receipt):
        # No worker has it, and none will begin it: those that start later read the list first.
        app.receipts.note(MessageFact(message_id=message_id, event=MessageEvent.CANCELLED))
        _answer(app, receipt)
        return app.receipts.get(message_id)
    if not receipt.status.final and CancelAnswer.NOT_STOPPABLE in answers:
        raise NotStoppable(
            f"the handler of {message_id} runs in a thread of {receipt.to_agent!r}, where only an async def can "
            "be stopped (in a worker with -P prefork every handler can); it will not be tried again"
        )
    told = {CancelAnswer.DROPPED, CancelAnswer.STOPPING} & set(answers)
    while told and not receipt.status.final and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        receipt = app.receipts.get(message_id)
    return receipt


def _speaker(app: AgentApp) -> str:
    task = current_task()
    return task.agent if task is not None else app.settings.sender or "somebody"


def _not_begun(receipt: DeliveryReceipt) -> bool:
    return receipt.status in (MessageStatus.PENDING, MessageStatus.SENT)


def _living(app: AgentApp, agent: str) -> list[str]:
    """Return the node names of the workers of an agent that gave a sign of life lately."""
    with suppress(UnknownAgent):  # nobody ever declared it, and its message waits for the first worker
        return list(app.registry.get(agent).workers)
    return []


def _tell(app: AgentApp, workers: list[str], message_id: str, running: bool, timeout: float) -> list[CancelAnswer]:
    """Tell workers what to cancel, and return what those say who answer in time."""
    if not workers:
        return []
    arguments = {"message_id": message_id, "running": running}
    try:
        replies: Any = app.control.broadcast(
            CANCEL, arguments=arguments, destination=workers, reply=True, timeout=timeout, limit=len(workers)
        )
    except _BROKER_ERRORS as error:  # it is written down: they read it within a few seconds
        logger.warning(
            "the workers were not told that %s is cancelled: %s",
            message_id,
            error,
            extra={"action": "cancel_not_told", "message_id": message_id},
        )
        return []
    said = [answer for reply in replies or () for answer in reply.values()]
    return [CancelAnswer(answer) for answer in said if answer in list(CancelAnswer)]


def _answer(app: AgentApp, receipt: DeliveryReceipt) -> None:
    """Tell whoever waits for the answer of a request that there will be none."""
    if takes_message(receipt.handler):
        return
    try:
        app.result_collector.revoke(receipt.message_id, CANCELLED)
    except BackendUnavailable as error:
        logger.warning(
            "the caller of %s was not told that it is cancelled: %s",
            receipt.message_id,
            error,
            extra={"action": "caller_not_told", "message_id": receipt.message_id},
        )
