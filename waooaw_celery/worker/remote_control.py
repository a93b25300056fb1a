"""How a worker hears what is to be cancelled: by Celery's remote control at once, and from the store."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import bootsteps
from celery.worker.control import control_command

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.worker.request import apply_cancellation, stop_handler

logger = logging.getLogger(__name__)

#: The name of the command.
CANCEL = "waooaw_cancel"


@control_command(name=CANCEL, visible=False)
def cancel(state: Any, message_id: str, running: bool = False, **_: Any) -> str:
    """Cancel a message, and tell what could be done."""
    answer = apply_cancellation(state.app, state.consumer, message_id, running)
    logger.info(
        "message %s is cancelled: %s", message_id, answer, extra={"action": "cancel", "message_id": message_id}
    )
    return answer.value


class CancelListener(bootsteps.StartStopStep):
    """Bootstep of the consumer: what was said while the worker was not connected is known before it consumes."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        """Read what is to be cancelled."""
        try:
            read_cancellations(parent.app, parent.pool)
        except StoreUnavailable as error:  # the next sign of life tries again; messages do not wait for it
            logger.warning(
                "what is to be cancelled is not known yet: %s", error, extra={"action": "cancels_unknown"}
            )


def read_cancellations(app: Any, pool: Any) -> None:
    """Read from the store what is to be cancelled, and stop what runs of it.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    asked_at = time.monotonic()
    requested = app.receipts.cancellations(app.consumed_agents())
    stop_handler(pool, app.cancellations.learn(requested, asked_at))
