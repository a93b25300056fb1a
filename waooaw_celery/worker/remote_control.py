"""Brings cancellations to a worker: at once by Celery's remote control, and repeatedly from the store."""

from __future__ import annotations

import time
from typing import Any

from celery import bootsteps
from celery.worker.control import control_command

from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.request import apply_cancellation, stop_handler

logger = get_logger(__name__)

#: The name of the remote control command.
CANCEL = "waooaw_cancel"
#: The name of the command that asks for a heartbeat.
BEAT = "waooaw_beat"


@control_command(name=CANCEL, visible=False)
def cancel(state: Any, message_id: str, running: bool = False, **_: Any) -> str:
    """Cancel a message, and return the value of a CancelAnswer."""
    answer = apply_cancellation(state.app, state.consumer, message_id, running)
    logger.info(
        "cancellation of message %s: %s", message_id, answer, extra={"action": "cancel", "message_id": message_id}
    )
    return answer.value


@control_command(name=BEAT, visible=False)
def beat(state: Any, **_: Any) -> None:
    """Have the worker send a heartbeat at once, and read what operators have ordered about its agents."""
    heartbeat = getattr(state.consumer.controller, "heartbeat", None)
    if heartbeat is not None:
        heartbeat.hurry()


def broadcast_beat(app: Any) -> None:
    """Have all workers send a heartbeat at once. It is only faster: each worker does so regularly.

    Args:
        app: the application, an AgentApp.
    """
    try:
        app.control.broadcast(BEAT)
    except BROKER_ERRORS as error:
        logger.warning(
            "the workers are not told at once, and see the change with their next heartbeat: %s",
            error,
            extra={"action": "beat_not_sent"},
        )


def broadcast_cancel(app: Any, message_id: str) -> None:
    """Have the worker that handles a message stop it. Workers also read the cancellations with heartbeats.

    Args:
        app: the application, an AgentApp.
        message_id: the message.
    """
    try:
        app.control.broadcast(CANCEL, arguments={"message_id": message_id, "running": True})
    except BROKER_ERRORS as error:
        logger.warning(
            "the workers are not told at once that %s is cancelled: %s",
            message_id,
            error,
            extra={"action": "cancel_not_told", "message_id": message_id},
        )


class CancelListener(bootsteps.StartStopStep):
    """Bootstep of the consumer: before it consumes, it reads the cancellations that it missed."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        """Read the cancellations."""
        try:
            read_cancellations(parent.app, parent.pool)
        except StoreUnavailable as error:  # the next heartbeat reads them; messages do not wait for it
            logger.warning(
                "cannot read the cancellations; the next heartbeat retries: %s",
                error,
                extra={"action": "cancels_unknown"},
            )


def read_cancellations(app: Any, pool: Any) -> None:
    """Read the cancellations from the store, and stop running handlers that are to be stopped.

    Args:
        app: the application, an AgentApp.
        pool: the worker's pool.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    asked_at = time.monotonic()
    requested = app.receipts.cancellations(app.consumed_agents())
    stop_handler(pool, app.cancellations.learn(requested, asked_at))
