"""The connection to the Redis that keeps agents and receipts: one place for its address and its patience."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from waooaw_celery.errors import ConfigurationError, StoreUnavailable

#: A client whose answers are str (redis-py's own types cannot say so).
Client: TypeAlias = Any

#: Seconds that one command may take; a store that is slower counts as away.
COMMAND_TIMEOUT = 2.0

_REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "unix")


#: What to do where there is no Redis.
_WITHOUT = (
    "without a Redis a ledger keeps them, in SQLite too: set waooaw_database_url, such as sqlite:///waooaw.db, "
    "and run `waooaw db upgrade`"
)


def store_url(configured: str | None, *others: str | None, without: str = _WITHOUT) -> str:
    """Return the address of the store, in the form that redis-py reads.

    Args:
        configured: the setting ``waooaw_redis_url``.
        others: the result backend and the broker, which serve when they are Redis.
        without: what else can be done, for the error's sentence.

    Raises:
        ConfigurationError: none of them is Redis.
    """
    if configured is not None and urlsplit(configured).scheme not in _REDIS_SCHEMES:
        raise ConfigurationError("waooaw_redis_url must begin with redis://, rediss:// or unix://")
    for url in (configured, *others):
        if isinstance(url, str) and urlsplit(url).scheme in _REDIS_SCHEMES:
            return _for_redis_py(url)
    raise ConfigurationError(
        "there is no Redis to keep the known agents and the receipts in: set waooaw_redis_url "
        f"(or WAOOAW_REDIS_URL), such as redis://localhost:6379/0; {without}"
    )


def _for_redis_py(url: str) -> str:
    """Turn Celery's ``redis+socket:///path?virtual_host=1`` into redis-py's ``unix:///path?db=1``."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    query = dict(parse_qsl(parts.query))
    query["db"] = query.pop("virtual_host", "0").lstrip("/")
    return f"unix://{parts.netloc}{parts.path}?{urlencode(query)}"


def connect(url: str, patience: float = COMMAND_TIMEOUT, *, once: bool = False) -> Client:
    """Return a client whose every command ends within its time, also when Redis is frozen.

    Args:
        url: as ``store_url`` returns it.
        patience: seconds that one command may take.
        once: do not repeat what was not answered in time: it may have been carried out.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    try:
        return _client(url, patience, once)
    except ValueError as error:
        raise ConfigurationError(
            f"the URL of the Redis for agents and receipts cannot be read: {error}"
        ) from error


def _client(url: str, patience: float, once: bool) -> Client:
    faults = {"supported_errors": (redis.ConnectionError,)} if once else {}
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=patience,
        socket_connect_timeout=patience,
        # redis-py 8 would retry ten times with a growing pause; one quick retry rides out a restarted connection.
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.05), 1, **faults),
        health_check_interval=10,
    )


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn redis-py's errors into ours.

    Raises:
        StoreUnavailable: Redis refused or did not answer.
    """
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailable(
            f"could not {what}: the Redis that keeps agents and receipts says: {str(error).rstrip('.')}. "
            "Check that it runs and that waooaw_redis_url (or the result backend, or the broker) points to it"
        ) from error
