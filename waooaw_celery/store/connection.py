"""Connects to the Redis that stores agents and receipts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from waooaw_celery.errors import ConfigurationError, StoreUnavailable
from waooaw_celery.messages.urls import check_url, shown_url
from waooaw_celery.store.redis_refusals import RefusalMixin, remedy

#: A client whose replies are str; redis-py's types cannot express that.
Client: TypeAlias = Any

#: Timeout of one command, in seconds; a store that is slower counts as unavailable.
COMMAND_TIMEOUT = 2.0

_REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "unix")
#: What the error suggests instead of a Redis.
_WITHOUT = (
    "or use a ledger instead: set waooaw_database_url, such as sqlite:///waooaw.db, and run `waooaw db upgrade`"
)


def store_url(configured: str | None, *others: str | None, without: str = _WITHOUT) -> str:
    """Return the URL of the store, in the form that redis-py reads.

    Args:
        configured: the setting ``waooaw_redis_url``.
        others: URLs of the result backend and the broker; the first that is a Redis is the default.
        without: what the error suggests instead of a Redis.

    Raises:
        ConfigurationError: none of them is a Redis.
    """
    if configured is not None and not is_redis(configured):
        raise ConfigurationError(
            "waooaw_redis_url must begin with redis://, rediss://, redis+socket:// or unix://"
        )
    if configured is not None:
        check_url("waooaw_redis_url", configured)
    for url in (configured, *others):
        if url is not None and is_redis(url):
            return _for_redis_py(url)
    raise ConfigurationError(
        "no Redis is configured to store agents and receipts: set waooaw_redis_url "
        f"(or WAOOAW_REDIS_URL), such as redis://localhost:6379/0, {without}"
    )


def is_redis(url: object) -> bool:
    """Return whether a URL is that of a Redis."""
    return isinstance(url, str) and url.partition(":")[0] in _REDIS_SCHEMES


def redis_address(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the server, the database and the user in redis-py's options of a connection, with their defaults.

    Args:
        options: ``connection_kwargs`` of a connection pool, or what redis-py reads from a URL.
    """
    get = options.get
    server = get("path") or (get("host") or "localhost", int(get("port") or 6379))
    return server, int(get("db") or 0), get("username") or None, get("password") or None


def is_same_redis(one: Client, other: Client) -> bool:
    """Return whether two clients use the same database of the same server as the same user."""
    pools = one.connection_pool, other.connection_pool
    return redis_address(pools[0].connection_kwargs) == redis_address(pools[1].connection_kwargs)


def _for_redis_py(url: str) -> str:
    """Convert Celery's ``redis+socket:///path?virtual_host=1`` to redis-py's ``unix:///path?db=1``."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    query = dict(parse_qsl(parts.query))
    query["db"] = query.pop("virtual_host", "0").lstrip("/")
    return f"unix://{parts.netloc}{parts.path}?{urlencode(query)}"


class StoreClient(RefusalMixin, redis.Redis):
    """redis-py's client; its errors name the command and the key for which a permission is missing."""


def connect(url: str, timeout: float = COMMAND_TIMEOUT, *, once: bool = False) -> Client:
    """Return a client whose commands time out, even if Redis is frozen.

    Args:
        url: as ``store_url`` returns it.
        timeout: time limit of one command, in seconds.
        once: do not repeat a command that timed out, because Redis may have executed it.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    try:
        return _client(url, timeout, once)
    except ValueError:  # redis-py quotes the URL's parts, and one may be a password
        raise ConfigurationError(
            f"the Redis for agents and receipts has an invalid URL, {shown_url(url)}: "
            "use one such as redis://:password@localhost:6379/0"
        ) from None


def _client(url: str, timeout: float, once: bool) -> Client:
    faults = {"supported_errors": (redis.ConnectionError,)} if once else {}
    return StoreClient.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        # redis-py 8 retries ten times with a growing pause; one quick retry is enough for a restarted connection.
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.05), 1, **faults),
        health_check_interval=10,
    )


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Convert redis-py's errors to StoreUnavailable.

    Args:
        what: what the block does, for the error, such as ``read the receipts``.

    Raises:
        StoreUnavailable: Redis refused the command or did not answer.
    """
    try:
        yield
    except redis.RedisError as error:
        reason = remedy(error)
        if reason is not None:
            raise StoreUnavailable(
                f"could not {what}: the Redis for agents and receipts refused: {reason}"
            ) from error
        raise StoreUnavailable(
            f"could not {what}: the Redis for agents and receipts failed: {str(error).rstrip('.')}. "
            "Check that it runs and that waooaw_redis_url (or the result backend, or the broker) points to it"
        ) from error
