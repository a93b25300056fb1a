"""The workflows: the list, and one workflow with its steps, its parent and its children."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.pages.messages import parse_time
from waooaw_celery.console.rendering import Pages
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.workflows.info import WorkflowInfo, WorkflowPage, WorkflowStep
from waooaw_celery.workflows.states import StepKind, WorkflowStatus
from waooaw_celery.workflows.workflows import Workflows

#: Workflows on a page.
PAGE_SIZE = 50
#: Children of a workflow that its page lists, the newest ones.
MAX_CHILDREN = 100
#: Statuses from which a workflow can be run again.
_RETRIABLE = (WorkflowStatus.FAILED, WorkflowStatus.CANCELLED, WorkflowStatus.TIMED_OUT)


def routes(app: AgentApp, pages: Pages) -> Sequence[BaseRoute]:
    """Return the routes of the workflows."""

    def workflows(request: Request) -> Response:
        names = ("name", "status", "agent", "since", "text")
        given = {name: request.query_params.get(name, "").strip() for name in names}
        if given["text"] and not request.state.person.may(Role.OFFICER):
            return pages.error(
                request, 403, "Only an officer searches inputs, because the result tells their text."
            )
        found = WorkflowPage(workflows=(), next_page=None)
        problem = None
        try:
            filters: dict[str, Any] = {name: given[name] or None for name in ("name", "status", "agent", "text")}
            page = request.query_params.get("page") or None
            found = Workflows(app).list(since=parse_time(given["since"]), page=page, limit=PAGE_SIZE, **filters)
        except InvalidMessage as error:
            problem = str(error)
        return pages.draw(
            request,
            "workflows.html",
            status=400 if problem else 200,
            found=found,
            given=given,
            problem=problem,
            statuses=[each.value for each in WorkflowStatus],
        )

    def workflow(request: Request) -> Response:
        all_ = Workflows(app)
        found = all_.get(request.path_params["id"])
        steps = all_.steps(found.workflow_id)
        return pages.draw(
            request,
            "workflow.html",
            found=found,
            steps=[_shown(step, found, app.reference_clock.now()) for step in steps],
            children=all_.list(parent_id=found.workflow_id, limit=MAX_CHILDREN).workflows,
            is_retriable=found.status in _RETRIABLE,
        )

    return Route("/workflows", workflows), Route("/workflows/{id}", workflow)


def _shown(step: WorkflowStep, found: WorkflowInfo, now: datetime) -> dict[str, Any]:
    """Return a step with its depth, its place in time and what it links to."""
    begin, now = found.created_at, found.ended_at or now
    total = max((now - begin).total_seconds(), 0.001)
    end = step.ended_at or (now if not found.status.final else step.started_at)
    seconds = max((end - step.started_at).total_seconds(), 0.0)
    return {
        "step": step,
        "depth": step.path.count("/"),
        "name": step.path.rpartition("/")[2],
        "seconds": None if step.ended_at is None and found.status.final else seconds,
        "left": round(100 * min(max((step.started_at - begin).total_seconds() / total, 0.0), 1.0), 2),
        "width": round(100 * min(max(seconds / total, 0.004), 1.0), 2),
        "link": None if step.request_id is None else _link(step),
    }


def _link(step: WorkflowStep) -> tuple[str, str]:
    return ("/workflows/" if step.kind is StepKind.CHILD else "/messages/"), str(step.request_id)
