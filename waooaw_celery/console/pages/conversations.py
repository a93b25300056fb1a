"""A conversation as a picture: its sequence, its timeline, and its messages."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.rendering import Pages, path_part
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.diagrams.building import diagram_of
from waooaw_celery.maintenance.diagrams.page import html_page
from waooaw_celery.maintenance.diagrams.svg.sequence import sequence_svg
from waooaw_celery.maintenance.diagrams.svg.style import DIAGRAM_CSS
from waooaw_celery.maintenance.diagrams.svg.timeline import timeline_svg
from waooaw_celery.maintenance.diagrams.thread import thread_of
from waooaw_celery.maintenance.diagrams.workflow_ids import workflow_ids

#: Messages in the table below the pictures, which have all of them.
MAX_LISTED = 200


def routes(app: AgentApp, pages: Pages) -> Sequence[BaseRoute]:
    """Return the routes of conversations."""

    def conversation(request: Request) -> Response:
        records = MessageAuditTrail(app.ledger).conversation(request.path_params["id"], payloads=False)
        total = len(records)
        message_id = request.query_params.get("message")
        if message_id is not None:
            records = thread_of(records, message_id)
        workflows = workflow_ids(app.database, {record.conversation_id for record in records})
        diagram = diagram_of(records, workflows=workflows)
        return pages.draw(
            request,
            "conversation.html",
            diagram=diagram,
            message_id=message_id,
            total=total,
            records=records[:MAX_LISTED],
            workflows=sorted(workflows),
            sequence=sequence_svg(diagram, link=_link),
            timeline=timeline_svg(diagram, link=_link),
        )

    def download(request: Request) -> Response:
        payloads = request.state.person.may(Role.OFFICER)
        records = MessageAuditTrail(app.ledger).conversation(request.path_params["id"], payloads=payloads)
        workflows = workflow_ids(app.database, {record.conversation_id for record in records})
        name = f"conversation-{path_part(records[0].conversation_id)}.html"
        return HTMLResponse(
            html_page(records, payloads=payloads, workflows=workflows),
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    def style(_: Request) -> Response:
        return Response(DIAGRAM_CSS, media_type="text/css")

    return (
        Route("/conversations/{id}", conversation),
        Route("/conversations/{id}/page", download),
        Route("/diagrams.css", style),
    )


def _link(message_id: str) -> str:
    return f"/messages/{path_part(message_id)}"
