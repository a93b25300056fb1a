"""The servers that the checks of `waooaw doctor` look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from redis import Redis

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import WaooawError
from waooaw_celery.store.connection import Client, connect, is_redis, redis_address, store_url
from waooaw_celery.store.redis_refusals import RefusalMixin

#: What each Redis keeps, by its role.
BROKER, STORE, RESULTS = "Redis of the broker", "Redis of the store", "Redis of the results"


class _Client(RefusalMixin, Redis):
    """redis-py's client over the broker's connections."""


@contextmanager
def broker_client(app: AgentApp) -> Iterator[Client]:
    """Open a client of the broker's Redis, with the deadlines of the broker's connections.

    It puts no prefix before keys.
    """
    with app.connection_for_write() as connection, connection.channel() as channel:
        yield _Client(connection_pool=channel.pool)


def redis_clients(app: AgentApp) -> list[tuple[str, Any]]:
    """Return each Redis that the application uses, once: its role, and what opens a client of it.

    Args:
        app: the application.
    """
    found: list[tuple[str, Any]] = []
    known: list[Any] = []
    if app.driver == "redis":
        found.append((BROKER, lambda: broker_client(app)))
        known.append(_address(app.conf.broker_write_url or app.conf.broker_url))
    urls: list[tuple[str, str | None]] = [(STORE, app.settings.redis_url), (RESULTS, app.conf.result_backend)]
    if app.settings.redis_url is None and is_redis(app.conf.result_backend):
        urls = [(STORE, app.conf.result_backend)]
    for role, url in urls:
        if is_redis(url) and _address(url) not in known:
            known.append(_address(url))
            found.append((role, lambda url=url: _opened(url)))
    return found


@contextmanager
def _opened(url: str) -> Iterator[Client]:
    with ExitStack() as stack:
        yield stack.enter_context(connect(store_url(url)))


def _address(url: Any) -> Any:
    """Return what tells one Redis from another: server, database and user; None if the URL has none."""
    first = str(url).partition(";")[0]
    if not is_redis(first):
        return None
    try:
        with connect(store_url(first)) as client:
            return redis_address(client.connection_pool.connection_kwargs)
    except WaooawError:  # the check of this server reports it
        return first
