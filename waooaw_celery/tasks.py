"""The periodic tasks of this package, for the worker of the queue `waooaw.system`; an agent's worker has none."""

from __future__ import annotations

import dataclasses
import logging
from datetime import timedelta

from celery.schedules import BaseSchedule, crontab, schedule

from waooaw_celery.app import AgentApp
from waooaw_celery.audit.retention import Retention
from waooaw_celery.recovery.run import Recovery
from waooaw_celery.routing import system_queue

logger = logging.getLogger(__name__)

SWEEP = "waooaw.sweep"
RECONCILE = "waooaw.reconcile"
RECOVER = "waooaw.recover"
PURGE = "waooaw.purge"


def register(app: AgentApp) -> None:
    """Give an application the periodic tasks, their queue and their timetable.

    The application then serves as beat's (``celery -A beat_schedule beat``) and as the worker that carries
    the tasks out (``celery -A beat_schedule worker``). Two beats do no harm: a sweep may run twice, and a purge
    runs alone.
    """

    @app.task(name=SWEEP, ignore_result=True, shared=False)
    def sweep() -> None:
        """Mark as EXPIRED the messages that no worker began in time."""
        swept = app.receipts.sweep()
        if swept:
            logger.info("%d messages expired", len(swept), extra={"action": "swept", "message_ids": swept})

    @app.task(name=RECONCILE, ignore_result=True, shared=False)
    def reconcile() -> None:
        """Mark as FAILED the messages that were begun and of whose end nobody told, and that are not recovered."""
        lost = app.ledger.reconcile(recovered=True)
        if lost:
            logger.warning("%d messages were lost", len(lost), extra={"action": "lost", "message_ids": lost})

    @app.task(name=RECOVER, ignore_result=True, shared=False)
    def recover() -> None:
        """Publish again what the ledger knows as open and the broker no longer has."""
        Recovery(app).run()  # it tells the log itself

    @app.task(name=PURGE, ignore_result=True, shared=False, time_limit=7200, soft_time_limit=7000)
    def purge() -> None:
        """Remove from the ledger what need not be kept, and make room for the coming months."""
        retention = Retention(app.database)
        retention.prepare()
        removed = retention.purge()
        logger.info(
            "purged %d messages",
            removed.messages,
            extra={"action": "purged", "removal": dataclasses.asdict(removed)},
        )

    settings = app.settings
    timetable: dict[str, BaseSchedule] = {SWEEP: schedule(timedelta(seconds=settings.sweep_seconds))}
    if settings.database_url is not None:
        timetable[RECONCILE] = schedule(timedelta(seconds=settings.sweep_seconds))
        timetable[RECOVER] = schedule(timedelta(seconds=settings.recover_seconds))
        timetable[PURGE] = crontab.from_string(settings.purge_at)
    queue = system_queue()
    conf = app.conf
    conf.task_queues = [*(conf.task_queues or ()), queue]
    conf.task_routes = {**(conf.task_routes or {}), **{name: {"queue": queue} for name in timetable}}
    # What nobody ran in time is not worth running late: the next one does the same.
    lasting = {
        SWEEP: settings.sweep_seconds,
        RECONCILE: settings.sweep_seconds,
        RECOVER: settings.recover_seconds,
        PURGE: 3600,
    }
    conf.beat_schedule = {
        **(conf.beat_schedule or {}),
        **{
            name: {"task": name, "schedule": when, "options": {"expires": lasting[name]}}
            for name, when in timetable.items()
        },
    }
