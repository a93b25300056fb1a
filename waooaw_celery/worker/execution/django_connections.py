"""Django's database connections of ``async def`` handlers: each handler has its own, closed when it has ended.

Celery's Django fixup closes them around each task, in the pool's thread. Django's async ORM uses another thread,
of which the fixup knows nothing: once PostgreSQL has closed a connection there, every later query fails. So each
handler runs in a thread-sensitive context of its own, as each request does in Django's ASGI handler.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from concurrent.futures import Future
from importlib import import_module
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The fixup of Celery for Django, as ``app.fixups`` names it.
_FIXUP = "celery.fixups.django:fixup"


def django_is_used(app: Any) -> bool:
    """Whether Celery's Django fixup is active for an application, and its worker has loaded Django."""
    return _FIXUP in app.fixups and bool(os.environ.get("DJANGO_SETTINGS_MODULE")) and "django.db" in sys.modules


async def with_own_connections(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a handler's coroutine with connections of its own, which are closed when it has ended.

    Args:
        coroutine: the handler's.
    """
    from asgiref.sync import SyncToAsync, ThreadSensitiveContext  # Django brings it

    context = ThreadSensitiveContext()
    # Its own end waits for the thread, and would stop all other coroutines until a slow query has ended.
    token = SyncToAsync.thread_sensitive_context.set(context)
    try:
        return await coroutine
    finally:
        SyncToAsync.thread_sensitive_context.reset(token)
        executor = SyncToAsync.context_to_thread_executor.pop(context, None)
        if executor is not None:  # it used the ORM
            closed: Future[None] = executor.submit(_close_connections)
            executor.shutdown(wait=False)  # what was submitted is still done
            await asyncio.shield(asyncio.wrap_future(closed))


def _close_connections() -> None:
    """Close the connections of this thread, also those that the database has closed already."""
    connections: Any = import_module("django.db").connections
    for connection in connections.all(initialized_only=True):
        try:
            connection.close()
        except Exception as error:  # noqa: BLE001 - the handler has ended, and its outcome is not the connection's
            logger.warning(
                "Django's connection %r of a handler was not closed: %r",
                connection.alias,
                error,
                extra={"action": "django_connection_not_closed"},
            )
    import_module("django.core.cache").close_caches()
