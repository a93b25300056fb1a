"""The overview: what needs attention, the agents as a live graph, and the search for an id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.agent_graph import graph_of
from waooaw_celery.console.live import LiveSnapshots, LiveStream, Snapshot
from waooaw_celery.console.rendering import Pages, path_part
from waooaw_celery.errors import InvalidMessage, UnknownMessage, UnknownWorkflow
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.top.frame import Attention
from waooaw_celery.messages.validation import AGENT_NAME
from waooaw_celery.workflows.workflows import Workflows

#: Agents in the table of the overview; the page of the agents has all.
MAX_LINES = 50


def routes(app: AgentApp, pages: Pages, snapshots: LiveSnapshots) -> tuple[Sequence[BaseRoute], LiveStream]:
    """Return the routes of the overview, and the stream that must be stopped with the server."""

    def overview(request: Request) -> Response:
        return pages.draw(request, "overview.html", **_shown(snapshots.current()))

    def live_part(request: Request) -> str:
        return pages.text(request, "overview_live.html", **_shown(snapshots.current()))

    def find(request: Request) -> Response:
        text = request.query_params.get("q", "").strip()
        path = _found(app, snapshots, text) if text else "/"
        if path is None:
            return pages.draw(request, "not_found.html", 404, text=text)
        return RedirectResponse(path, 303)

    stream = LiveStream(live_part)
    return (Route("/", overview), Route("/find", find), Route("/live/overview", stream.answer)), stream


def _shown(snapshot: Snapshot) -> dict[str, Any]:
    lines = snapshot.frame.agents
    flows, seconds = (snapshot.flows.flows, snapshot.flows.seconds) if snapshot.flows is not None else ((), 1.0)
    return {
        "snapshot": snapshot,
        "lines": lines[:MAX_LINES],
        "urgent": [line for line in lines if line.attention is not Attention.NONE],
        "graph": graph_of(lines, flows, seconds),
        "totals": {
            "agents": len(lines),
            "workers": sum(line.workers or 0 for line in lines),
            "waiting": sum(line.waiting or 0 for line in lines),
            "running": sum(line.running or 0 for line in lines),
            "handled": sum(line.handled or 0 for line in lines),
            "failed": sum(line.failed or 0 for line in lines),
            "oldest": max(
                (line.oldest_seconds for line in lines if line.oldest_seconds is not None), default=None
            ),
        },
    }


def _found(app: AgentApp, snapshots: LiveSnapshots, text: str) -> str | None:
    """Return the path of what a text names: an agent, a message, a workflow, a conversation or a topic."""
    if AGENT_NAME.fullmatch(text) and text in {line.name for line in snapshots.current().frame.agents}:
        return f"/agents/{path_part(text)}"
    if app.settings.database_url is None:
        return None
    trail = MessageAuditTrail(app.ledger)
    try:
        Workflows(app).get(text)
    except (UnknownWorkflow, InvalidMessage):
        pass
    else:
        return f"/workflows/{path_part(text)}"
    try:
        trail.receipt(text)
    except InvalidMessage:  # no id
        return None
    except UnknownMessage:
        pages = (
            trail.query(correlation_id=text, limit=1, payloads=False),
            trail.query(conversation_id=text, limit=1, payloads=False),
        )
        return f"/conversations/{path_part(text)}" if any(page.records for page in pages) else None
    return f"/messages/{path_part(text)}"
