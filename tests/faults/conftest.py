"""Servers that only the fault tests use, because they are killed and frozen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faults.catalogue import RABBITMQ, VALKEY, Servers, servers
from faults.servers import RabbitMQ


@pytest.fixture(scope="module")
def on_valkey() -> Iterator[Servers]:
    """A Valkey server with an append-only file, and a PostgreSQL server."""
    with servers(VALKEY) as found:
        yield found


@pytest.fixture(scope="module")
def on_rabbitmq() -> Iterator[Servers]:
    """A RabbitMQ node, and a PostgreSQL server."""
    if not RabbitMQ.is_installed:
        pytest.skip("Debian's package rabbitmq-server is not installed; these tests start their own node")
    with servers(RABBITMQ) as found:
        yield found
