"""Recurring workflows: beat starts them, and several beats start each of them once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from celery.beat import BeatLazyFunc
from celery.schedules import crontab
from celery.schedules import schedule as interval

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import system_queue
from waooaw_celery.messages.validation import JSON, check_id
from waooaw_celery.workflows.flow import seconds_of
from waooaw_celery.workflows.start import checked_input, parse_name
from waooaw_celery.workflows.workflows import Workflows

#: The task that starts a recurring workflow. The system's worker runs it.
START = "waooaw.start_workflow"


def schedule_workflow(
    app: AgentApp,
    entry: str,
    name: str,
    when: crontab | timedelta | float,
    given: Mapping[str, JSON] | None = None,
    **options: Any,
) -> None:
    """Start a workflow again and again, by beat. Each time is started once, also when several beats run.

    Call it for the application of beat and of the system's worker, after ``register_periodic_tasks``. The id of
    each workflow is the name of the entry and the time for which it was due: ``nightly-2026-11-29T03-00-00``.

    Args:
        app: the application, with a ledger.
        entry: the name of the entry in the schedule of beat, unique; part of the workflows' ids.
        name: ``<agent>.<function>``.
        when: Celery's crontab, in the application's time zone; or how long from one to the next, a timedelta or
            seconds, counted from 1970.
        given: its input.
        options: the other arguments of ``Workflows.start``: ``priority``, ``retention``, ``version``, …; they must
            be JSON values.

    Raises:
        ConfigurationError: the entry exists, or this is no schedule with times that can be computed.
        InvalidMessage: another argument is invalid.

    Example:
        >>> app = create_app("beat_schedule")
        >>> register_periodic_tasks(app)
        >>> schedule_workflow(app, "nightly", "reports.daily", crontab(hour=3, minute=0), {"region": "eu"})
    """
    check_id(f"{entry}-0000-00-00T00-00-00", "the name of the entry with a time")
    parse_name(name)
    if entry in (app.conf.beat_schedule or {}):
        raise ConfigurationError(f"the schedule of beat has an entry {entry!r} already: choose another name")
    schedule = when if isinstance(when, crontab) else _interval(entry, when)
    _register_task(app)
    # Computed when beat sends the task, because the task may wait in the queue.
    due = BeatLazyFunc(_due, schedule)
    app.conf.beat_schedule = {
        **(app.conf.beat_schedule or {}),
        entry: {
            "task": START,
            "schedule": schedule,
            "kwargs": {
                "entry": entry,
                "name": name,
                "given": checked_input(given),
                "due": due,
                "options": options,
            },
            "options": {"queue": system_queue()},
        },
    }


def _interval(entry: str, when: timedelta | float) -> interval:
    seconds = seconds_of(when) or 0.0
    if seconds < 1:
        raise ConfigurationError(f"{entry!r} must be a crontab, or take a second or longer, not {seconds:g} s")
    return interval(timedelta(seconds=seconds))


def _register_task(app: AgentApp) -> None:
    if START in app.tasks:
        return

    @app.task(
        name=START, ignore_result=True, shared=False, Request="waooaw_celery.worker.timed_request:TimedRequest"
    )
    def start_workflow(entry: str, name: str, given: dict[str, Any], due: str, options: dict[str, Any]) -> None:
        """Start a recurring workflow; it changes nothing if another beat was faster."""
        Workflows(app).start(name, given, workflow_id=f"{entry}-{due}", **options)


def _due(when: interval) -> str:
    """Return the newest time for which a schedule was due, as a part of an id."""
    return last_time(when, when.now()).strftime("%Y-%m-%dT%H-%M-%S")


def last_time(when: Any, now: datetime) -> datetime:
    """Return the newest time, not after a moment, for which a schedule is due.

    Args:
        when: Celery's crontab or schedule.
        now: the moment, in the time zone of the crontab.
    """
    if not isinstance(when, crontab):
        seconds = when.run_every.total_seconds()
        # In UTC: where the clock is set back, two times of an hour look the same.
        return datetime.fromtimestamp(now.timestamp() // seconds * seconds, UTC)
    spec: Any = when  # its sets of numbers are missing in the type stubs
    for days in count():  # Celery refuses a crontab that is never due
        day = now - timedelta(days=days)
        if (
            day.month in spec.month_of_year
            and day.day in spec.day_of_month
            and day.isoweekday() % 7 in spec.day_of_week
        ):
            for hour in sorted(spec.hour, reverse=True):
                for minute in sorted(spec.minute, reverse=True):
                    found = day.replace(hour=hour, minute=minute, second=0, microsecond=0)
                    if found <= now:
                        return found
    raise AssertionError("unreachable")
