"""The periodic tasks of this package, for the worker of the queue `waooaw.system`; an agent's worker has none."""

from __future__ import annotations

import dataclasses
import logging
from datetime import timedelta
from typing import Any

from celery.schedules import BaseSchedule, crontab, schedule

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import ClockSkew
from waooaw_celery.ledger.retention import Retention
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.queues import system_queue

logger = logging.getLogger(__name__)

SWEEP = "waooaw.sweep"
RECONCILE = "waooaw.reconcile"
RECOVER = "waooaw.recover"
PURGE = "waooaw.purge"
#: Options of every task here. They expire by the reference clock: a worker whose own is ahead would drop them.
_COMMON: dict[str, Any] = {
    "ignore_result": True,
    "shared": False,
    "Request": "waooaw_celery.worker.timed_request:TimedRequest",
}


def register_periodic_tasks(app: AgentApp) -> None:
    """Give an application the periodic tasks, their queue and their timetable.

    The application then serves as beat's (``celery -A beat_schedule beat``) and as the worker that carries
    the tasks out (``celery -A beat_schedule worker``). Two beats do no harm: a sweep may run twice, and a purge
    runs alone.
    """

    @app.task(name=SWEEP, **_COMMON)
    def sweep() -> None:
        """Mark as EXPIRED the messages that no worker began in time."""
        swept = app.receipts.sweep()
        if swept:
            logger.info("%d messages expired", len(swept), extra={"action": "swept", "message_ids": swept})

    @app.task(name=RECONCILE, **_COMMON)
    def reconcile() -> None:
        """Mark as FAILED the messages that were begun and of whose end nobody told, and that are not recovered."""
        lost = app.ledger.reconcile(recovered=True)
        if lost:
            logger.warning("%d messages were lost", len(lost), extra={"action": "lost", "message_ids": lost})

    @app.task(name=RECOVER, **_COMMON)
    def recover() -> None:
        """Publish again what the ledger knows as open and the broker no longer has."""
        Recovery(app).run()  # it tells the log itself

    @app.task(name=PURGE, **_COMMON, time_limit=7200, soft_time_limit=7000)
    def purge() -> None:
        """Remove from the ledger what need not be kept, and make room for the coming months."""
        retention = Retention(app.database, app.components.witnesses())
        retention.prepare()
        try:
            removed = retention.purge()
        except ClockSkew as error:  # the same tomorrow, until somebody sets a clock
            logger.error("%s", error, extra={"action": "purge_refused"})  # noqa: TRY400 - one line is enough
            return
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
