"""Beat in this process: the entries of the application's schedule, the sweep, the recovery and the purge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from celery.beat import Scheduler
from celery.schedules import crontab

from waooaw_celery.app.events.replay import REPLAY_TASK
from waooaw_celery.app.events.replay_runner import run_replays
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.maintenance.large_payloads import purge_payloads
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.maintenance.tasks import PAYLOADS, PURGE, RECONCILE, RECOVER, SWEEP
from waooaw_celery.workflows.schedule import last_time

#: What the package has beat do. Here it is done at once, and not as often as a clock of days would ask for it.
_MAINTENANCE = {SWEEP, RECONCILE, RECOVER, PURGE, PAYLOADS, REPLAY_TASK}


class Beat:
    """What beat does for an application.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._scheduler: Any = None
        self._entries: dict[str, Any] = {}
        self._next: datetime | None = None

    def next_due(self) -> datetime | None:
        """Return when the next entry of the schedule is due; None: there is none."""
        entries = {
            name: entry
            for name, entry in (self._app.conf.beat_schedule or {}).items()
            if entry.get("task") not in _MAINTENANCE
        }
        if not entries:
            return None
        if self._scheduler is None or entries != self._entries:
            self._entries = entries
            self._scheduler = _Scheduler(app=self._app, lazy=True)
            self._scheduler.update_from_dict(entries)
            self.tick()
        return self._next

    def tick(self) -> None:
        """Send the tasks that are due."""
        if self._scheduler is not None:
            seconds = self._scheduler.tick()
            while seconds <= 0:
                seconds = self._scheduler.tick()
            self._next = datetime.now(UTC) + timedelta(seconds=seconds)

    def maintain(self, since: datetime) -> None:
        """Do what the package's own periodic tasks have done since a time: sweep, replay, recover, purge.

        Args:
            since: when the clock was moved, aware.
        """
        app, now = self._app, datetime.now(UTC)
        app.receipts.sweep()
        run_replays(app)
        if now - since >= timedelta(seconds=app.settings.recover_after):
            Recovery(app, pause=0.0).run()
        if last_time(crontab.from_string(app.settings.purge_at), now) > since:
            app.ledger.reconcile(recovered=True)
            Retention(app.database).purge()
            purge_payloads(app)


class _Scheduler(Scheduler):
    """Celery's scheduler, which waits as long as the schedule says."""

    max_interval = 10 * 365 * 86_400

    def setup_schedule(self) -> None:
        """Leave out Celery's own entries: results in memory need no clean-up."""
