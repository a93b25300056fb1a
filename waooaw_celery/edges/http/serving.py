"""The HTTP part of an edge: its routes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from waooaw_celery.edges.application import EdgeContext, ProtocolParts
from waooaw_celery.edges.http.event_routes import Events
from waooaw_celery.edges.http.message_routes import Messages
from waooaw_celery.edges.http.openapi.description import Description
from waooaw_celery.edges.http.problems import answered
from waooaw_celery.edges.http.tasks.abandoned import Abandoned
from waooaw_celery.edges.http.tasks.calls import Calls
from waooaw_celery.edges.http.tasks.event_stream import Streams
from waooaw_celery.edges.http.tasks.task_routes import Tasks

#: The path that tells whether the edge lives.
HEALTH_PATH = "/health"
#: Seconds that cancellations may take once the edge stops.
_STOP_SECONDS = 2.0


def parts(context: EdgeContext) -> ProtocolParts:
    """Return what HTTP and CloudEvents add to an edge.

    Args:
        context: the edge.
    """
    streams, abandoned = Streams(), Abandoned(context.gateway)
    calls, tasks = Calls(context, streams, abandoned), Tasks(context, streams)
    messages, events, description = Messages(context), Events(context), Description(context)

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        await abandoned.ended(_STOP_SECONDS)

    routes = [
        ("GET", "/v1/agents", description.agents),
        ("GET", "/v1/agents/{agent}", description.agent),
        ("POST", "/v1/agents/{agent}/methods/{method}", calls.call),
        ("POST", "/v1/agents/{agent}/messages", messages.send),
        ("GET", "/v1/receipts/{id}", messages.receipt),
        ("GET", "/v1/tasks/{id}", tasks.get),
        ("DELETE", "/v1/tasks/{id}", tasks.cancel),
        ("GET", "/v1/tasks/{id}/events", tasks.events),
        ("POST", "/v1/tasks/{id}/signals/{name}", tasks.signal),
        ("POST", "/v1/events", events.publish),
        ("GET", "/openapi.json", description.openapi),
        ("GET", HEALTH_PATH, _health),
    ]
    return ProtocolParts(
        routes=[Route(path, answered(handler), methods=[method]) for method, path, handler in routes],
        open_paths=[HEALTH_PATH],
        lifespan=lifespan,
        stop=streams.stop,
    )


async def _health(_: Request) -> Response:
    """Tell that the process answers. Whether the servers behind it do, `waooaw doctor` and the metrics tell."""
    return JSONResponse({"status": "alive"})
