"""Faults of workers and messages, on Valkey: real agents, their ledger, and every message counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.catalogue import Fault, Servers, check, chosen


@pytest.mark.parametrize("fault", chosen("valkey", "workers", "messages"), ids=str)
def test_nothing_is_lost(fault: Fault, on_valkey: Servers, tmp_path: Path) -> None:
    """All that was accepted has one end, which the ledger knows; errors were honest, and no call took long."""
    check(fault, on_valkey, tmp_path)
