"""The rate limits: who is near one, the quotas, who was refused, who is paused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.rendering import Pages
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.settings import RateLimitStorage

#: Share of a limit from which an agent is shown, and how many of them.
SHARE, MAX_NEAR = 0.5, 100
#: The past whose refused messages are shown.
_REFUSALS = timedelta(hours=24)


def routes(app: AgentApp, pages: Pages) -> Sequence[BaseRoute]:
    """Return the route of the limits."""

    def limits(request: Request) -> Response:
        is_shared = app.settings.rate_limit_storage is not RateLimitStorage.MEMORY
        return pages.draw(
            request,
            "limits.html",
            near=app.limiter.near(SHARE)[:MAX_NEAR] if is_shared else [],
            quotas=app.limiter.quotas(),
            is_shared=is_shared,
            share=SHARE,
            pauses=app.restrictions.pauses(),
            refusals=_refusals(app),
        )

    return (Route("/limits", limits),)


def _refusals(app: AgentApp) -> Any:
    if app.settings.database_url is None:
        return None
    return MessageAuditTrail(app.ledger).refusals(since=app.reference_clock.now() - _REFUSALS, limit=100)
