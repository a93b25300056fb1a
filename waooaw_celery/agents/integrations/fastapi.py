"""Helpers for FastAPI, and for every other framework with Starlette's lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

from waooaw_celery.app.app import AgentApp

#: What FastAPI and Starlette take as ``lifespan=``.
Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]


def agents_lifespan(app: AgentApp, *, inner: Lifespan | None = None) -> Lifespan:
    """Return a lifespan that checks an application of agents at the start, and ends it with the server.

    At the start it checks the settings, so that a wrong one is reported before the first request. At the end it
    writes what the process has recorded, and closes its connections.

    Args:
        app: the application, which sends and requests.
        inner: the lifespan that you have already; it runs within this one.

    Raises:
        ConfigurationError: a setting is missing or wrong; the server does not start.

    Example:
        >>> app = create_app(waooaw_sender="shop")
        >>> api = FastAPI(lifespan=agents_lifespan(app))
    """

    @asynccontextmanager
    async def lifespan(server: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(app.components.check)
            stack.push_async_callback(asyncio.to_thread, _end, app)
            yield None if inner is None else await stack.enter_async_context(inner(server))

    return lifespan


def _end(app: AgentApp) -> None:
    app.components.finish()
    app.close()
