"""Faults of workers and messages on RabbitMQ: agents, their ledger, and an account of every message."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.catalogue import Fault, Servers, check, chosen

pytestmark = pytest.mark.rabbitmq


@pytest.mark.parametrize("fault", chosen("rabbitmq", "workers", "messages", "keys"), ids=str)
def test_nothing_is_lost(fault: Fault, on_rabbitmq: Servers, tmp_path: Path) -> None:
    """Each accepted message has one final event in the ledger; errors are true, and calls keep their deadline."""
    check(fault, on_rabbitmq, tmp_path)
