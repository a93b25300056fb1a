"""Celery's consumer, which tells of what it cannot read."""

from __future__ import annotations

import logging
from typing import Any

from celery import signals
from celery.worker.consumer import Consumer

logger = logging.getLogger(__name__)


class AgentConsumer(Consumer):
    """Receives the messages of a worker."""

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Reject a message that cannot be unpacked or decoded, as one that Celery can make no task of.

        Celery would acknowledge it, and write its body to the log.
        """
        message.ack()
        signals.task_rejected.send(sender=self, message=message, exc=exc)
