"""The system's worker and beat: when each of their tasks ran last."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from celery.schedules import crontab

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.waiting import queue_depths
from waooaw_celery.maintenance.diagnostics.finding import Finding, ok, warn
from waooaw_celery.maintenance.tasks import PURGE, RECOVER, SWEEP
from waooaw_celery.messages.queues import system_queue
from waooaw_celery.messages.wording import counted

#: Runs that a task may miss, and seconds on top, before there is a warning.
MISSED_RUNS, GRACE_SECONDS = 3, 30.0
#: How late the purge may be: it is only once a day.
PURGE_GRACE = timedelta(hours=2)


def housekeeping(app: AgentApp) -> Iterator[Finding]:
    """Check that the periodic tasks have run when they should have.

    Raises:
        StoreUnavailable: Redis does not answer.
        BrokerUnavailable: the broker does not answer.
    """
    name = "housekeeping"
    housekeeping = app.components.housekeeping
    if housekeeping is None:
        yield ok(name, "not known: the times of their tasks are kept in a Redis, and there is none")
        return
    runs, now = housekeeping.runs(), housekeeping.now()
    [depth] = queue_depths(app, [system_queue()], read=False)
    periods = {SWEEP: app.settings.sweep_seconds}
    if app.components.has_ledger:
        periods[RECOVER] = app.settings.recover_seconds
    late = []
    for task, seconds in periods.items():
        last = runs.get(task)
        if last is None:
            late.append(f"{task} has never run")
        elif (now - last).total_seconds() > MISSED_RUNS * seconds + GRACE_SECONDS:
            late.append(f"{task} ran {_ago(now - last)} ago, and should every {seconds:g} s")
    if late:
        yield warn(name, f"{'; '.join(late)}. {_remedy(depth.total)}")
        return
    last = max(runs[task] for task in periods)
    yield ok(name, f"beat and the system's worker run: their last task ended {_ago(now - last)} ago")
    if app.components.has_ledger:
        yield from _purge(app, runs, housekeeping.since(), now)


def _remedy(waiting: int) -> str:
    effect = "Until then messages do not expire, and lost ones are not recovered"
    if waiting:
        what = counted(waiting, "task")
        return f"{what} of beat wait: start the system's worker, `celery -A beat_schedule worker`. {effect}"
    return (
        "None of their tasks waits: start beat, `celery -A beat_schedule beat`, and the system's worker, "
        f"`celery -A beat_schedule worker`. {effect}"
    )


def _purge(app: AgentApp, runs: dict[str, datetime], since: datetime | None, now: datetime) -> Iterator[Finding]:
    """Yield whether the purge has run when it was due; at first, it is due after the first recorded task."""
    last, when = runs.get(PURGE), app.settings.purge_at
    reference = last or since or now
    schedule: Any = crontab.from_string(when)
    schedule.nowfun = lambda: now
    due = now + schedule.remaining_estimate(reference)
    if now - due > PURGE_GRACE:
        told = "has never run" if last is None else f"ran {_ago(now - last)} ago"
        sentence = f"it {told}, and was due at {due:%Y-%m-%d %H:%M} UTC (waooaw_purge_at is {when})"
        yield warn("purge", f"{sentence}. The ledger grows: see {PURGE} in the log of the system's worker")
    elif last is None:
        yield ok("purge", f"it is due at {due:%Y-%m-%d %H:%M} UTC for the first time")
    else:
        yield ok("purge", f"it ran {_ago(now - last)} ago")


def _ago(passed: timedelta) -> str:
    seconds = max(passed.total_seconds(), 0.0)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
