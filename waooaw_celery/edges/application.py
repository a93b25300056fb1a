"""Puts an edge together: its protocols, who may use them, and what protects it."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from waooaw_celery.app.app import AgentApp
from waooaw_celery.edges.access.authentication import Authentication, NoAuthentication
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.edges.protection.bounds import Bounds, Protection, refused
from waooaw_celery.errors import ConfigurationError

#: The agent in whose name an edge without authentication sends, unless another is chosen.
LOCAL_AGENT = "edge"


class Protocol(StrEnum):
    """What an edge speaks."""

    A2A = "a2a"
    MCP = "mcp"
    HTTP = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeOptions:
    """How an edge is served.

    Attributes:
        protocols: what it speaks.
        authentication: finds out who makes a request; None: everybody is one principal that may do everything.
            That is only for an edge that listens on loopback.
        agents: only these agents can be called; empty: all.
        public_url: its address as clients see it, such as ``https://agents.example.com``.
        hosts: the names by which clients reach it, without ports; empty: any.
        timeout: seconds within which a request must be answered, and a workflow must have ended, unless the client
            says less.
        cancel_when_gone: whether a task is cancelled when its client goes away before the answer.
        bounds: bounds on what arrives.
        allowed_networks: inner networks that webhooks, push notifications and cards may reach.
    """

    protocols: Collection[Protocol] = (Protocol.HTTP,)
    authentication: Authentication | None = None
    agents: tuple[str, ...] = ()
    public_url: str = "http://127.0.0.1:8080"
    hosts: Collection[str] = ()
    timeout: float = 300.0
    cancel_when_gone: bool = False
    bounds: Bounds = field(default_factory=Bounds)
    allowed_networks: Sequence[IPv4Network | IPv6Network] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeContext:
    """What each protocol is given.

    Attributes:
        gateway: calls agents.
        options: how the edge is served.
        authentication: finds out who makes a request.
    """

    gateway: Gateway
    options: EdgeOptions
    authentication: Authentication


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolParts:
    """What a protocol adds to an edge.

    Attributes:
        routes: its routes.
        open_paths: the ends of paths that need no authentication.
        lifespan: runs while the edge is served, or None.
        stop: ends the streams that never end by themselves, or None.
    """

    routes: Sequence[BaseRoute]
    open_paths: Sequence[str] = ()
    lifespan: Callable[[], contextlib.AbstractAsyncContextManager[Any]] | None = None
    stop: Callable[[], None] | None = None


#: The module of each protocol, which has ``parts(context)``, and the extra that it needs.
_PROTOCOLS = {
    Protocol.A2A: ("waooaw_celery.edges.a2a.serving", "a2a"),
    Protocol.MCP: ("waooaw_celery.edges.mcp.serving", "mcp"),
    Protocol.HTTP: ("waooaw_celery.edges.http.serving", "http"),
}


#: Where a client of each protocol begins.
_FIRST_PATHS = {
    Protocol.A2A: "/a2a/AGENT/.well-known/agent-card.json",
    Protocol.MCP: "/mcp",
    Protocol.HTTP: "/v1/agents and /openapi.json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """An edge, ready to be served.

    Attributes:
        asgi: the ASGI application. Mount it in another one, or serve it with any ASGI server.
        stop: ends the streams that never end by themselves; call it before the server stops.
    """

    asgi: Starlette
    stop: Callable[[], None]


def create_edge(app: AgentApp, options: EdgeOptions | None = None) -> Edge:
    """Return an edge of an application.

    Args:
        app: the application, with a ledger.
        options: how it is served; None: by HTTP, for everybody who reaches it on this computer.

    Raises:
        ConfigurationError: the application has no ledger, or an extra is not installed.

    Example:
        >>> edge = create_edge(app, EdgeOptions(protocols=[Protocol.A2A, Protocol.HTTP]))
        >>> fastapi_app.mount("/agents", edge.asgi)
    """
    options = options or EdgeOptions()
    authentication = options.authentication or NoAuthentication(local_principal())
    context = EdgeContext(gateway=Gateway(app, options.agents), options=options, authentication=authentication)
    parts = [_parts(protocol, context) for protocol in dict.fromkeys(options.protocols)]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for part in parts:
                if part.lifespan is not None:
                    await stack.enter_async_context(part.lifespan())
            yield

    def stop() -> None:
        for part in parts:
            if part.stop is not None:
                part.stop()

    def no_route(_: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        begin = ", ".join(_FIRST_PATHS[protocol] for protocol in dict.fromkeys(options.protocols))
        told = {404: f"there is nothing here: begin with {begin}", 405: "this path takes other methods"}
        return refused(error.status_code, told.get(error.status_code, error.detail), dict(error.headers or {}))

    asgi = Starlette(
        routes=[route for part in parts for route in part.routes],
        exception_handlers={HTTPException: no_route},
        lifespan=lifespan,
        middleware=[
            Middleware(
                Protection,
                authentication=authentication,
                hosts=options.hosts,
                bounds=options.bounds,
                open_paths=[path for part in parts for path in part.open_paths],
            )
        ],
    )
    return Edge(asgi=asgi, stop=stop)


def local_principal() -> Principal:
    """Return the principal of an edge without authentication: the person who started it, who may do everything."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # in a container, the user may have no name
        name = "local"
    return Principal(name=name, from_agent=LOCAL_AGENT, may_call=("*",), may_publish=("#",), may_read=True)


def _parts(protocol: Protocol, context: EdgeContext) -> ProtocolParts:
    module, extra = _PROTOCOLS[Protocol(protocol)]
    try:
        parts: ProtocolParts = import_module(module).parts(context)
    except ImportError as error:
        raise ConfigurationError(
            f"an edge with {protocol} needs more packages ({error}): run `pip install 'waooaw-celery[{extra}]'`"
        ) from error
    return parts
