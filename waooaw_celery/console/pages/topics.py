"""The topics of events, what became of the events, the subscriptions and the schemas."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.rendering import Pages
from waooaw_celery.ledger.events.event_log import EventLog

#: The periods whose events are counted. All events of a period are read.
PERIODS = {
    "15min": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "7d": timedelta(days=7),
}


def routes(app: AgentApp, pages: Pages) -> Sequence[BaseRoute]:
    """Return the route of the topics."""

    def topics(request: Request) -> Response:
        period = request.query_params.get("period", "15min")
        since = app.reference_clock.now() - PERIODS.get(period, PERIODS["15min"])
        known = app.subscriptions.read()
        counted = EventLog(app.ledger).statistics(since) if app.settings.database_url is not None else None
        return pages.draw(
            request,
            "topics.html",
            topics=counted,
            subscriptions=known.subscriptions,
            schemas=sorted(known.schemas, key=lambda schema: schema.topic),
            period=period,
            periods=tuple(PERIODS),
        )

    return (Route("/topics", topics),)
