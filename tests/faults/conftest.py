"""Servers of their own for the faults: they are killed and frozen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faults.catalogue import RABBITMQ, VALKEY, Servers, servers
from faults.servers import RabbitMQ


@pytest.fixture(scope="module")
def on_valkey() -> Iterator[Servers]:
    """A Valkey with a log of its commands, and a PostgreSQL."""
    with servers(VALKEY) as found:
        yield found


@pytest.fixture(scope="module")
def on_rabbitmq() -> Iterator[Servers]:
    """A RabbitMQ, and a PostgreSQL."""
    if not RabbitMQ.there:
        pytest.skip("Debian's package rabbitmq-server is not installed: its faults need a node of their own")
    with servers(RABBITMQ) as found:
        yield found
