"""The agents: status, health, speed, capabilities, workers, circuit breaker and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.agent_graph import state_of
from waooaw_celery.console.live import LiveSnapshots
from waooaw_celery.console.rendering import Pages
from waooaw_celery.discovery.agent_info import AgentInfo
from waooaw_celery.discovery.registry import Registry
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.top.frame import AgentLine

#: The orders of the table.
ORDERS = ("attention", "name", "slowest", "waiting", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How long an agent takes for a message, in the last minute.

    Attributes:
        median, slow: the median and the 95th percentile of the worker that is the slowest, in seconds.
    """

    median: float
    slow: float


def routes(app: AgentApp, pages: Pages, snapshots: LiveSnapshots) -> Sequence[BaseRoute]:
    """Return the routes of the agents."""
    registry = Registry(app)

    def agents(request: Request) -> Response:
        order = request.query_params.get("order", ORDERS[0])
        infos = {info.name: info for info in registry.list()}
        frame = snapshots.current().frame
        lines = [(line, infos.get(line.name), _speed(infos.get(line.name))) for line in frame.agents]
        lines.sort(key=lambda each: _key(order, *each))
        return pages.draw(
            request,
            "agents.html",
            lines=lines,
            order=order,
            orders=ORDERS,
            sources=frame.sources,
        )

    def agent(request: Request) -> Response:
        info = registry.get(request.path_params["name"])
        line = next((line for line in snapshots.current().frame.agents if line.name == info.name), None)
        changes = [
            (change.at, each.node, change.health, "; ".join(change.reasons))
            for each in info.workers
            for change in (each.facts.history if each.facts else ())
        ]
        return pages.draw(
            request,
            "agent.html",
            info=info,
            line=line,
            state=state_of(line),
            speed=_speed(info),
            changes=sorted(changes, key=_first, reverse=True),
            read_at=app.reference_clock.now(),
            limits=_limits(app, info.name),
            pause=next((each for each in app.restrictions.pauses() if each.agent == info.name), None),
            breaker=next((each for each in app.breakers.states() if each.agent == info.name), None),
            recent=_recent(app, info.name),
        )

    return Route("/agents", agents), Route("/agents/{name}", agent)


def _key(order: str, line: AgentLine, _info: AgentInfo | None, speed: Speed | None) -> Any:
    if order == "name":
        return line.name
    if order == "slowest":
        return -(speed.slow if speed is not None else -1.0), line.name
    if order == "waiting":
        return -(line.waiting or 0), line.name
    if order == "failed":
        return -(line.failed or 0), line.name
    return 0  # the frame has them in the order of their urgency


def _first(change: tuple[datetime, Any, Any, Any]) -> datetime:
    return change[0]


def _speed(info: AgentInfo | None) -> Speed | None:
    known = [each.facts.seconds for each in info.workers if each.facts and each.facts.seconds] if info else []
    return max(
        (Speed(median=median, slow=slow) for median, slow in known), key=lambda each: each.slow, default=None
    )


def _limits(app: AgentApp, name: str) -> Any:
    try:
        return app.limiter.status(name)
    except ConfigurationError:  # there are no rate limits
        return []


def _recent(app: AgentApp, name: str) -> Any:
    if app.settings.database_url is None:
        return None
    return MessageAuditTrail(app.ledger).history(name, 7, limit=20, payloads=False)
