"""Kombu connections that use this package's transports, and that decode messages within the caps."""

from __future__ import annotations

from typing import Any

from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.utils.collections import HashedSeq

from waooaw_celery.broker.amqp import transport as amqp
from waooaw_celery.broker.incoming.bounded import bounded_transport
from waooaw_celery.broker.redis import transport

#: This package's transports, by Kombu's names for its own.
TRANSPORTS: dict[str, Any] = transport.TRANSPORTS | amqp.TRANSPORTS


class _Bounded:
    """Uses Kombu's transports with messages that are decoded within the caps, also after a failover."""

    #: Which transports it uses. It keeps these connections out of the pools of others for the same server.
    kind = "bounded"

    def get_transport_cls(self) -> Any:
        """Return the transport class for the URL."""
        return bounded_transport(super().get_transport_cls())  # type: ignore[misc]

    def __eqhash__(self) -> Any:
        return HashedSeq(self.kind, *super().__eqhash__())  # type: ignore[misc]


class _UsesOwnTransports(_Bounded):
    """Uses this package's transports for URLs of Redis and RabbitMQ, also after a failover to another URL."""

    kind = "claiming"
    transport_cls: Any

    def get_transport_cls(self) -> Any:
        """Return the transport class for the URL."""
        name = self.transport_cls
        return TRANSPORTS[name] if name in TRANSPORTS else super().get_transport_cls()


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


class BoundedConnection(_Bounded, Connection):
    """A Kombu connection that uses Kombu's transports, with bounded messages."""

    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool:  # noqa: N802 - Kombu's own name
        """Return a pool of such connections."""
        return _BoundedConnectionPool(self, limit, **kwargs)


class _PooledBoundedConnection(_Bounded, PooledConnection):
    """A connection of the pool."""


class _BoundedConnectionPool(ConnectionPool):
    def new(self) -> Any:
        return _PooledBoundedConnection(self, **dict(self.connection._info(resolve=False)))
