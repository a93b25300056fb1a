"""Tasks whose clients have gone: they are cancelled in the background, if that is set."""

from __future__ import annotations

import asyncio
import time

from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.errors import UnknownMessage, WaooawError
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds within which the ledger must know a task that is to be cancelled, and pauses between two looks.
_KNOWN_SECONDS, _PAUSE = 10.0, 0.1


class Abandoned:
    """Cancels tasks in the background.

    Args:
        gateway: calls agents.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._running: set[asyncio.Task[None]] = set()  # the event loop holds its tasks only weakly

    def cancel(self, principal: Principal, task_id: str) -> None:
        """Cancel a task, without waiting for it.

        Args:
            principal: who called it.
            task_id: the task.
        """
        running = asyncio.get_running_loop().create_task(self._cancel(principal, task_id))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def ended(self, seconds: float) -> None:
        """Wait until all cancellations are made, or some seconds have passed."""
        if self._running:
            await asyncio.wait(tuple(self._running), timeout=seconds)

    async def _cancel(self, principal: Principal, task_id: str) -> None:
        until = time.monotonic() + _KNOWN_SECONDS
        try:
            while True:
                try:
                    await self._gateway.cancel(principal, task_id)
                except UnknownMessage:  # its client went away before it was sent
                    if time.monotonic() > until:
                        return
                    await asyncio.sleep(_PAUSE)
                else:
                    return
        except WaooawError as error:
            logger.warning(
                "the task %s, whose client has gone, was not cancelled: %s",
                task_id,
                error,
                extra={"action": "edge_task_not_cancelled", "message_id": task_id},
            )
        except Exception:
            logger.exception("the task %s, whose client has gone, was not cancelled", task_id)
