"""A conversation: all its messages in causal order."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.rendering import Pages
from waooaw_celery.ledger.trail import MessageAuditTrail


def routes(app: AgentApp, pages: Pages) -> Sequence[BaseRoute]:
    """Return the routes of conversations."""

    def conversation(request: Request) -> Response:
        records = MessageAuditTrail(app.ledger).conversation(request.path_params["id"], payloads=False)
        return pages.draw(request, "conversation.html", records=records)

    return (Route("/conversations/{id:path}", conversation),)
