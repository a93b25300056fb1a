"""Puts the console together: its routes, who may use them, and what its errors look like."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ExceptionHandler

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.access.authentication import Authentication
from waooaw_celery.console.access.oidc import SESSION_SECONDS
from waooaw_celery.console.access.protection import Protection
from waooaw_celery.console.changes.handler import ChangeHandler
from waooaw_celery.console.live import LiveSnapshots, LiveStream
from waooaw_celery.console.pages import (
    agents,
    conversations,
    dead_letters,
    ledger,
    limits,
    messages,
    overview,
    topics,
    workflows,
)
from waooaw_celery.console.rendering import Pages
from waooaw_celery.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidMessage,
    StoreUnavailable,
    WaooawError,
)
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleOptions:
    """How the console is served.

    Attributes:
        authentication: finds out who makes a request.
        hosts: the names by which browsers reach it, without ports.
        allow_changes: whether anything may be changed.
        is_secure: whether browsers reach it by HTTPS.
        secret: the key of sessions and tokens. Several consoles behind one address need the same.
    """

    authentication: Authentication
    hosts: Collection[str]
    allow_changes: bool = False
    is_secure: bool = False
    secret: bytes = field(default_factory=lambda: os.urandom(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """The console, ready to be served.

    Attributes:
        asgi: the ASGI application.
        stream: the live pages, which end with ``stream.stop()``.
    """

    asgi: Starlette
    stream: LiveStream


def create_console(app: AgentApp, options: ConsoleOptions) -> Console:
    """Return the console of an application.

    Args:
        app: the application, with its settings checked.
        options: how it is served.

    Raises:
        ConfigurationError: changes are allowed, and there is no ledger to record them.

    Example:
        >>> options = ConsoleOptions(authentication=NoAuthentication("ada"), hosts=["localhost"])
        >>> create_console(app, options).asgi
    """
    if options.allow_changes and app.settings.database_url is None:
        raise ConfigurationError(
            "changes need a ledger, which records who changed what: set waooaw_database_url, or leave out "
            "--allow-changes"
        )
    authentication = options.authentication
    pages = Pages(app, allow_changes=options.allow_changes, logout_path=authentication.logout_path)
    snapshots = LiveSnapshots(app)
    overview_routes, stream = overview.routes(app, pages, snapshots)
    routes = [
        *overview_routes,
        *agents.routes(app, pages, snapshots),
        *messages.routes(app, pages),
        *conversations.routes(app, pages),
        *dead_letters.routes(app, pages),
        *workflows.routes(app, pages),
        *topics.routes(app, pages),
        *limits.routes(app, pages),
        *ledger.routes(app, pages),
        *authentication.routes,
        Route(
            "/changes/{action}",
            ChangeHandler(app, pages, allow_changes=options.allow_changes).answer,
            methods=["POST"],
        ),
        Mount("/static", StaticFiles(packages=[("waooaw_celery.console", "static")])),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            snapshots.close()

    asgi = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers=_error_pages(pages),
        middleware=[
            Middleware(
                SessionMiddleware,
                secret_key=options.secret.hex(),
                session_cookie="waooaw_session",
                max_age=SESSION_SECONDS,
                same_site="lax",
                https_only=options.is_secure,
            ),
            Middleware(
                Protection,
                authentication=authentication,
                hosts=options.hosts,
                is_secure=options.is_secure,
                secret=options.secret,
            ),
        ],
    )
    return Console(asgi=asgi, stream=stream)


def _error_pages(pages: Pages) -> dict[int | type[Exception], ExceptionHandler]:
    """Return the pages for errors: what is unknown, what is not valid, and servers that do not answer."""

    def refused(request: Request, error: Exception) -> Response:
        status = next((code for kind, code in _STATUSES if isinstance(error, kind)), 500)
        return pages.error(request, status, str(error))

    def not_found(request: Request, _: Exception) -> Response:
        if not hasattr(request.state, "person"):  # a public path, which is open without a login
            return PlainTextResponse("There is no such page.", 404)
        return pages.error(request, 404, "There is no such page.")

    def server_failed(request: Request, error: Exception) -> Response:
        logger.warning("a page of the console could not be drawn: %r", error)
        return pages.error(request, 503, f"A server does not answer: {str(error) or type(error).__name__}")

    return {404: not_found, WaooawError: refused, RedisError: server_failed, OSError: server_failed}


#: The HTTP status for each kind of error.
_STATUSES = (
    (LookupError, 404),
    ((StoreUnavailable, BrokerUnavailable), 503),
    ((InvalidMessage, ConfigurationError), 400),
)
