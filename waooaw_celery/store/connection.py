"""Connects to the Redis that stores agents and receipts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from waooaw_celery.errors import ConfigurationError, StoreUnavailable

#: A client whose replies are str; redis-py's types cannot express that.
Client: TypeAlias = Any

#: Timeout of one command, in seconds; a store that is slower counts as unavailable.
COMMAND_TIMEOUT = 2.0

_REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "unix")
#: What the error suggests instead of a Redis.
_WITHOUT = (
    "without Redis, a ledger stores them, in SQLite too: set waooaw_database_url, such as sqlite:///waooaw.db, "
    "and run `waooaw db upgrade`"
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
    if configured is not None and urlsplit(configured).scheme not in _REDIS_SCHEMES:
        raise ConfigurationError("waooaw_redis_url must begin with redis://, rediss:// or unix://")
    for url in (configured, *others):
        if isinstance(url, str) and urlsplit(url).scheme in _REDIS_SCHEMES:
            return _for_redis_py(url)
    raise ConfigurationError(
        "no Redis is configured to store agents and receipts: set waooaw_redis_url "
        f"(or WAOOAW_REDIS_URL), such as redis://localhost:6379/0; {without}"
    )


def _for_redis_py(url: str) -> str:
    """Convert Celery's ``redis+socket:///path?virtual_host=1`` to redis-py's ``unix:///path?db=1``."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    query = dict(parse_qsl(parts.query))
    query["db"] = query.pop("virtual_host", "0").lstrip("/")
    return f"unix://{parts.netloc}{parts.path}?{urlencode(query)}"


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
    except ValueError as error:
        raise ConfigurationError(f"the URL of the Redis for agents and receipts is invalid: {error}") from error


def _client(url: str, timeout: float, once: bool) -> Client:
    faults = {"supported_errors": (redis.ConnectionError,)} if once else {}
    return redis.Redis.from_url(
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
        raise StoreUnavailable(
            f"could not {what}: the Redis for agents and receipts failed: {str(error).rstrip('.')}. "
            "Check that it runs and that waooaw_redis_url (or the result backend, or the broker) points to it"
        ) from error
