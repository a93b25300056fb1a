"""Brings cancellations to a worker: at once by Celery's remote control, and repeatedly from the store."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import bootsteps
from celery.worker.control import control_command

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.worker.request import apply_cancellation, stop_handler

logger = logging.getLogger(__name__)

#: The name of the remote control command.
CANCEL = "waooaw_cancel"


@control_command(name=CANCEL, visible=False)
def cancel(state: Any, message_id: str, running: bool = False, **_: Any) -> str:
    """Cancel a message, and return the value of a CancelAnswer."""
    answer = apply_cancellation(state.app, state.consumer, message_id, running)
    logger.info(
        "message %s is cancelled: %s", message_id, answer, extra={"action": "cancel", "message_id": message_id}
    )
    return answer.value


class CancelListener(bootsteps.StartStopStep):
    """Bootstep of the consumer: before it consumes, it reads the cancellations that it missed."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        """Read the cancellations."""
        try:
            read_cancellations(parent.app, parent.pool)
        except StoreUnavailable as error:  # the next heartbeat reads them; messages do not wait for it
            logger.warning("cannot read the cancellations yet: %s", error, extra={"action": "cancels_unknown"})


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
