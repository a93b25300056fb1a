"""The negative control: a plain Celery application fails under the same faults and checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from selection import takes_long

from faults.account import Account
from faults.catalogue import FAULTS, Servers, run_fault, violations

#: Attempts for a fault that plain Celery sometimes survives.
ATTEMPTS = 6


def plain(number: str, on: Servers, folder: Path, rounds: int, seed: int = 1) -> Account:
    [fault] = [fault for fault in FAULTS if fault.number == number]
    assert fault.plain
    account = run_fault(fault, False, on, rounds, seed, folder)
    print(number, violations(fault, account, rounds))
    return account


@takes_long
@pytest.mark.timeout(300)
def test_kills_under_load_lose_messages(on_valkey: Servers, tmp_path: Path) -> None:
    """A worker that is killed between fetching a message and noting it as unacknowledged loses the message."""
    assert any(plain("T1", on_valkey, tmp_path, 6, seed).lost for seed in range(ATTEMPTS))


@pytest.mark.slow
def test_a_frozen_worker_that_is_killed_loses_messages(on_valkey: Servers, tmp_path: Path) -> None:
    """A message that the broker delivers to a frozen worker is lost when the worker is killed."""
    assert plain("T2", on_valkey, tmp_path, 3).lost


@takes_long
def test_a_message_kills_its_worker(on_valkey: Servers, tmp_path: Path) -> None:
    """A handler that runs out of memory ends its worker, and each next worker that gets the message."""
    account = plain("T4", on_valkey, tmp_path, 1)
    assert any("the worker ended" in sentence or sentence.startswith("stuck") for sentence in account.broken)


@takes_long
def test_malformed_messages_end_workers(on_valkey: Servers, tmp_path: Path) -> None:
    """Several malformed messages end the worker that gets them."""
    account = plain("T14", on_valkey, tmp_path, 1)
    assert any("ended the worker" in sentence or sentence.startswith("stuck") for sentence in account.broken)


@pytest.mark.slow
def test_a_database_outage_leaves_gaps_in_the_audit(on_valkey: Servers, tmp_path: Path) -> None:
    """Messages that are handled during the outage are missing in the audit."""
    assert plain("T19", on_valkey, tmp_path, 1).audit_errors
