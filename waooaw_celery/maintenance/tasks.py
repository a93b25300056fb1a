"""The periodic tasks, which the system's worker runs from the queue `waooaw.system`. Agents' workers have none."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

from celery.schedules import BaseSchedule, crontab, schedule

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.events.replay import REPLAY_TASK as REPLAY
from waooaw_celery.errors import ClockSkew, StoreUnavailable
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.maintenance.beat_health import serve_health
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import system_queue
from waooaw_celery.messages.wording import counted

logger = get_logger(__name__)

SWEEP = "waooaw.sweep"
RECONCILE = "waooaw.reconcile"
RECOVER = "waooaw.recover"
PURGE = "waooaw.purge"
PAYLOADS = "waooaw.payloads"
#: Seconds between two purges of large payloads.
_PAYLOADS_SECONDS = 3600.0
#: Longest time in seconds until a worker looks again for a replay that is not due yet.
_REPLAY_SECONDS = 60.0
#: Options of all tasks. TimedRequest expires them by the reference clock: a worker whose own clock is ahead would
#: drop them.
_COMMON: dict[str, Any] = {
    "ignore_result": True,
    "shared": False,
    "Request": "waooaw_celery.worker.timed_request:TimedRequest",
}


def register_periodic_tasks(app: AgentApp) -> None:
    """Add the periodic tasks, their queue and their schedule to an application.

    Use the application for beat (``celery -A beat_schedule beat``) and for the system's worker (``celery -A
    beat_schedule worker``). Two beats do no harm: sweeps may run twice, and only one purge runs at a time.

    Args:
        app: an application with or without a ledger; without one, only the sweep is scheduled.

    Example:
        >>> app = create_app()
        >>> register_periodic_tasks(app)
    """
    _register_sweep(app)
    _register_ledger_tasks(app)
    _register_purge_of_payloads(app)
    _configure_beat(app)
    serve_health(app)


def _register_sweep(app: AgentApp) -> None:
    @app.task(name=SWEEP, **_COMMON)
    def sweep() -> None:
        """Mark as EXPIRED the messages that expired before a worker began them."""
        expired = app.receipts.sweep()
        if expired:
            logger.info(
                "%s expired", counted(len(expired), "message"), extra={"action": "swept", "message_ids": expired}
            )
        _note_run(app, SWEEP)


def _register_ledger_tasks(app: AgentApp) -> None:
    @app.task(name=RECONCILE, **_COMMON)
    def reconcile() -> None:
        """Mark as FAILED the messages whose workers stopped reporting, and that the recovery cannot publish."""
        lost = app.ledger.reconcile(recovered=True)
        if lost:
            logger.warning(
                "marked %s as FAILED",
                counted(len(lost), "lost message"),
                extra={"action": "lost", "message_ids": lost},
            )

    @app.task(name=RECOVER, **_COMMON)
    def recover() -> None:
        """Publish again the open messages that the broker no longer has."""
        Recovery(app).run()  # logs its result itself
        _note_run(app, RECOVER)

    @app.task(name=REPLAY, **_COMMON)
    def replay() -> None:
        """Send events of the replays that nobody waits for, for some seconds; the next task goes on."""
        # Imported here, because a process without a ledger does not load SQLAlchemy.
        from waooaw_celery.app.events.replay_runner import run_replays

        seconds = run_replays(app)
        if seconds is not None and seconds < _REPLAY_SECONDS:
            replay.apply_async(countdown=seconds, expires=seconds + _REPLAY_SECONDS)

    @app.task(name=PURGE, **_COMMON, time_limit=7200, soft_time_limit=7000)
    def purge() -> None:
        """Remove the messages whose retention has ended, and create the partitions of the coming months."""
        retention = Retention(app.database, app.components.witnesses())
        retention.prepare()
        try:
            removal = retention.purge()
        except ClockSkew as error:  # a retry would not help: somebody must set a clock
            logger.error("%s", error, extra={"action": "purge_refused"})  # noqa: TRY400 - no traceback needed
            return
        logger.info(
            "purged %s",
            counted(removal.messages, "message"),
            extra={"action": "purged", "removal": dataclasses.asdict(removal)},
        )
        _note_run(app, PURGE)


def _register_purge_of_payloads(app: AgentApp) -> None:
    @app.task(name=PAYLOADS, **_COMMON, time_limit=7200, soft_time_limit=7000)
    def payloads() -> None:
        """Remove the large payloads that no message needs any more, and those that never got a message."""
        # Imported here, because a process without a ledger does not load SQLAlchemy.
        from waooaw_celery.maintenance.large_payloads import purge_payloads

        purge_payloads(app)  # logs its result itself
        _note_run(app, PAYLOADS)


def _note_run(app: AgentApp, task: str) -> None:
    """Note that a task has run, for `waooaw doctor`. A Redis that does not answer changes nothing of its work."""
    if app.components.housekeeping is None:
        return
    try:
        app.components.housekeeping.note(task)
    except StoreUnavailable as error:
        logger.info("%s", error, extra={"action": "run_not_noted"})


def _configure_beat(app: AgentApp) -> None:
    """Add the queue, the routes and the schedule."""
    settings, conf, queue = app.settings, app.conf, system_queue()
    schedules: dict[str, BaseSchedule] = {SWEEP: schedule(timedelta(seconds=settings.sweep_seconds))}
    if settings.database_url is not None:
        schedules[RECONCILE] = schedule(timedelta(seconds=settings.sweep_seconds))
        schedules[REPLAY] = schedule(timedelta(seconds=settings.sweep_seconds))
        schedules[RECOVER] = schedule(timedelta(seconds=settings.recover_seconds))
        schedules[PURGE] = crontab.from_string(settings.purge_at)
    if app.components.has_large_payloads:
        schedules[PAYLOADS] = schedule(timedelta(seconds=_PAYLOADS_SECONDS))
    # A task expires when its successor is due, which does the same work.
    expires = {
        SWEEP: settings.sweep_seconds,
        RECONCILE: settings.sweep_seconds,
        REPLAY: settings.sweep_seconds,
        RECOVER: settings.recover_seconds,
        PURGE: 3600,
        PAYLOADS: _PAYLOADS_SECONDS,
    }
    conf.task_queues = [*(conf.task_queues or ()), queue]
    conf.task_routes = {**(conf.task_routes or {}), **{name: {"queue": queue} for name in schedules}}
    conf.beat_schedule = {
        **(conf.beat_schedule or {}),
        **{
            name: {"task": name, "schedule": when, "options": {"expires": expires[name]}}
            for name, when in schedules.items()
        },
    }
