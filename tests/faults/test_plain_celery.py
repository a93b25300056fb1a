"""The negative control: a plain Celery application, in the same worlds and by the same checks, does fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from selection import takes_long

from faults.account import Account
from faults.catalogue import FAULTS, Servers, run_fault, violations

#: How often a fault is tried that spares plain Celery now and then.
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
    """A worker that is killed between taking a message and noting it loses it."""
    assert any(plain("T1", on_valkey, tmp_path, 6, seed).lost for seed in range(ATTEMPTS))


def test_a_frozen_worker_that_is_killed_loses_messages(on_valkey: Servers, tmp_path: Path) -> None:
    """What the broker hands to a worker that cannot note it any more is lost."""
    assert plain("T2", on_valkey, tmp_path, 3).lost


@takes_long
def test_a_message_ends_its_worker(on_valkey: Servers, tmp_path: Path) -> None:
    """A handler that runs out of memory ends the worker, and the next one that gets the message."""
    account = plain("T4", on_valkey, tmp_path, 1)
    assert any("came to an end" in sentence or sentence.startswith("stuck") for sentence in account.broken)


@takes_long
def test_malformed_messages_end_workers(on_valkey: Servers, tmp_path: Path) -> None:
    """Several of the malformed messages end the worker that meets them."""
    account = plain("T14", on_valkey, tmp_path, 1)
    assert any("ended the worker" in sentence or sentence.startswith("stuck") for sentence in account.broken)


def test_a_database_that_is_away_leaves_holes_in_the_audit(on_valkey: Servers, tmp_path: Path) -> None:
    """What is handled meanwhile is not audited."""
    assert plain("T19", on_valkey, tmp_path, 1).audit_errors
