"""The periodic tasks of this package, for the worker of the queue `waooaw.system`; an agent's worker has none."""

from __future__ import annotations

import logging
from datetime import timedelta

from celery.schedules import schedule

from waooaw_celery.app import AgentApp
from waooaw_celery.routing import system_queue

logger = logging.getLogger(__name__)

SWEEP = "waooaw.sweep"


def register(app: AgentApp) -> None:
    """Give an application the periodic tasks, their queue and their timetable.

    The application then serves as beat's (``celery -A beat_schedule beat``) and as the worker that carries the
    tasks out (``celery -A beat_schedule worker``). Two beats do no harm: each task may run twice.
    """

    @app.task(name=SWEEP, ignore_result=True, shared=False)
    def sweep() -> None:
        """Mark as EXPIRED the messages that no worker began in time."""
        swept = app.receipts.sweep()
        if swept:
            logger.info("%d messages expired", len(swept), extra={"action": "swept", "message_ids": swept})

    queue = system_queue()
    interval = app.settings.sweep_seconds
    app.conf.task_queues = [queue]
    app.conf.task_routes = {SWEEP: {"queue": queue}}
    app.conf.beat_schedule = {
        SWEEP: {
            "task": SWEEP,
            "schedule": schedule(timedelta(seconds=interval)),
            # A sweep that nobody ran in time is not worth running late: the next one does the same.
            "options": {"expires": interval},
        }
    }
