"""Faults of workers and messages on Valkey: agents, their ledger, and an account of every message."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.catalogue import Fault, Servers, check, chosen


@pytest.mark.parametrize("fault", chosen("valkey", "workers", "messages", "keys"), ids=str)
def test_nothing_is_lost(fault: Fault, on_valkey: Servers, tmp_path: Path) -> None:
    """Each accepted message has one final event in the ledger; errors are true, and calls keep their deadline."""
    check(fault, on_valkey, tmp_path)
