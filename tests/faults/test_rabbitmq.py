"""Faults of workers and messages, on RabbitMQ: real agents, their ledger, and every message counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.catalogue import Fault, Servers, check, chosen

pytestmark = pytest.mark.rabbitmq


@pytest.mark.parametrize("fault", chosen("rabbitmq", "workers", "messages"), ids=str)
def test_nothing_is_lost(fault: Fault, on_rabbitmq: Servers, tmp_path: Path) -> None:
    """All that was accepted has one end, which the ledger knows; errors were honest, and no call took long."""
    check(fault, on_rabbitmq, tmp_path)
