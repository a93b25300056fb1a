"""The ledger itself: retention, holds, purges and erasures, its health, and what people changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.pages.messages import parse_time
from waooaw_celery.console.rendering import Pages
from waooaw_celery.ledger.operators.actions import list_actions
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.maintenance.diagnostics.examination import examine
from waooaw_celery.maintenance.diagnostics.finding import Finding
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.ledger import LedgerReader

#: Changes on a page.
PAGE_SIZE = 100
#: Seconds that all checks together may take.
CHECK_SECONDS = 20.0
#: Seconds for which their findings are shown to others who ask.
KEEP_SECONDS = 5.0


def routes(app: AgentApp, pages: Pages) -> Sequence[BaseRoute]:
    """Return the routes of the ledger."""

    def retention(request: Request) -> Response:
        rules = Retention(app.database)
        return pages.draw(
            request,
            "retention.html",
            policy=app.settings.retention.value,
            holds=rules.holds(),
            kinds=[kind.value for kind in HoldKind],
            removals=rules.removals(),
        )

    def ledger(request: Request) -> Response:
        found = {
            metric.name: next(iter(series.values())) for metric, series in LedgerReader(app).read().values.items()
        }
        spool = app.ledger.spool
        waiting, refused = spool.counts()
        return pages.draw(
            request,
            "ledger.html",
            size=found.get(metrics.LEDGER_SIZE.name),
            lag=found.get(metrics.LEDGER_LAG.name),
            purge_age=found.get(metrics.LEDGER_PURGE_AGE.name),
            partitions=found.get(metrics.LEDGER_PARTITIONS.name),
            days_ahead=found.get(metrics.LEDGER_DAYS_AHEAD.name),
            overdue=found.get(metrics.LEDGER_OVERDUE_PARTITIONS.name),
            spool_path=str(spool.path),
            waiting=waiting,
            refused=refused,
            refusals=spool.refusals(20),
            damaged=spool.damaged(),
        )

    examination = _Examination(app)

    def checks(request: Request) -> Response:
        return pages.draw(request, "checks.html", findings=examination.findings())

    def changes(request: Request) -> Response:
        at, _, id_ = request.query_params.get("after", "").partition("|")
        moment = parse_time(at)
        found = list_actions(app.database, limit=PAGE_SIZE, after=None if moment is None else (moment, id_))
        last = found[-1] if len(found) == PAGE_SIZE else None
        after = None if last is None else f"{last.at.isoformat()}|{last.action_id}"
        return pages.draw(request, "changes.html", actions=found, after=after)

    return (
        Route("/retention", retention),
        Route("/ledger", ledger),
        Route("/ledger/checks", checks),
        Route("/changes", changes),
    )


class _Examination:
    """Runs all checks once at a time: they write to the servers, and each takes a thread."""

    def __init__(self, app: AgentApp) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._findings: list[Finding] = []
        self._at = float("-inf")

    def findings(self) -> list[Finding]:
        """Return the findings; those that somebody else has just asked for are good enough."""
        with self._lock:
            if time.monotonic() - self._at > KEEP_SECONDS:
                self._findings = examine(self._app, seconds=CHECK_SECONDS)
                self._at = time.monotonic()
            return self._findings
