"""Gives each ``async def`` handler its own Django database connections, and closes them when it ends.

Celery's Django fixup closes connections around each task, in the pool's thread. Django's async ORM uses another
thread, which the fixup does not know: once PostgreSQL has closed a connection there, every later query fails. So
each handler runs in its own thread-sensitive context, like each request in Django's ASGI handler.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from concurrent.futures import Future
from importlib import import_module
from typing import Any, TypeVar

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

T = TypeVar("T")

#: Celery's fixup for Django, as ``app.fixups`` names it.
_FIXUP = "celery.fixups.django:fixup"


def django_is_used(app: Any) -> bool:
    """Return whether an application uses Celery's Django fixup, and its worker has loaded Django."""
    return _FIXUP in app.fixups and bool(os.environ.get("DJANGO_SETTINGS_MODULE")) and "django.db" in sys.modules


async def with_own_connections(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a handler's coroutine with its own Django connections, and close them when it ends.

    Args:
        coroutine: the handler's.
    """
    from asgiref.sync import SyncToAsync, ThreadSensitiveContext  # installed with Django

    context = ThreadSensitiveContext()
    # Not `async with`: its exit waits for the thread, and would block all other coroutines during a slow query.
    token = SyncToAsync.thread_sensitive_context.set(context)
    try:
        return await coroutine
    finally:
        SyncToAsync.thread_sensitive_context.reset(token)
        executor = SyncToAsync.context_to_thread_executor.pop(context, None)
        if executor is not None:  # the handler used the ORM
            closed: Future[None] = executor.submit(_close_connections)
            executor.shutdown(wait=False)  # it still runs what was submitted
            await asyncio.shield(asyncio.wrap_future(closed))


def _close_connections() -> None:
    """Close the connections of this thread, also those that the database has closed."""
    connections: Any = import_module("django.db").connections
    for connection in connections.all(initialized_only=True):
        try:
            connection.close()
        except Exception as error:  # noqa: BLE001 - the handler has ended: the connection must not change its outcome
            logger.warning(
                "could not close the Django connection %r of a handler: %r",
                connection.alias,
                error,
                extra={"action": "django_connection_not_closed"},
            )
    import_module("django.core.cache").close_caches()
