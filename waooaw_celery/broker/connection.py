"""Connections to the broker that carry messages with this package's transports."""

from __future__ import annotations

from typing import Any

from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.utils.collections import HashedSeq

from waooaw_celery.broker.amqp import transport as amqp
from waooaw_celery.broker.redis import transport

#: Our transports by the names that Kombu has for its own.
TRANSPORTS: dict[str, Any] = transport.TRANSPORTS | amqp.TRANSPORTS


class _Claims:
    """Uses our transports where a URL names their broker, also after a fail-over to another URL."""

    transport_cls: Any

    def get_transport_cls(self) -> Any:
        """Return the class of the transport."""
        name = self.transport_cls
        return TRANSPORTS[name] if name in TRANSPORTS else super().get_transport_cls()  # type: ignore[misc]

    def __eqhash__(self) -> Any:
        # Not put into one pool with the connections of a plain Celery application to the same server.
        return HashedSeq("claiming", *super().__eqhash__())  # type: ignore[misc]


class ClaimConnection(_Claims, Connection):
    """Kombu's connection, with our transports."""

    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool:  # noqa: N802 - Kombu's own name
        """Return a pool of such connections."""
        return _ClaimingPool(self, limit, **kwargs)


class _PooledClaimingConnection(_Claims, PooledConnection):
    """One of a pool."""


class _ClaimingPool(ConnectionPool):
    def new(self) -> Any:
        return _PooledClaimingConnection(self, **dict(self.connection._info(resolve=False)))
