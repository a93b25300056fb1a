"""Kombu connections that use this package's transports."""

from __future__ import annotations

from typing import Any

from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.utils.collections import HashedSeq

from waooaw_celery.broker.amqp import transport as amqp
from waooaw_celery.broker.redis import transport

#: This package's transports, by Kombu's names for its own.
TRANSPORTS: dict[str, Any] = transport.TRANSPORTS | amqp.TRANSPORTS


class _UsesOwnTransports:
    """Uses this package's transports for URLs of Redis and RabbitMQ, also after a failover to another URL."""

    transport_cls: Any

    def get_transport_cls(self) -> Any:
        """Return the transport class for the URL."""
        name = self.transport_cls
        return TRANSPORTS[name] if name in TRANSPORTS else super().get_transport_cls()  # type: ignore[misc]

    def __eqhash__(self) -> Any:
        # Keeps these connections out of the pool of a plain Celery application for the same server.
        return HashedSeq("claiming", *super().__eqhash__())  # type: ignore[misc]


class ClaimConnection(_UsesOwnTransports, Connection):
    """A Kombu connection that uses this package's transports."""

    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool:  # noqa: N802 - Kombu's own name
        """Return a pool of such connections."""
        return _ClaimConnectionPool(self, limit, **kwargs)


class _PooledClaimConnection(_UsesOwnTransports, PooledConnection):
    """A connection of the pool."""


class _ClaimConnectionPool(ConnectionPool):
    def new(self) -> Any:
        return _PooledClaimConnection(self, **dict(self.connection._info(resolve=False)))
