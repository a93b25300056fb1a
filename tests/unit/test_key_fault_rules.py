"""What the faults with keys count as a violation of the order."""

from __future__ import annotations

import pytest
from faults.effects import Effect
from faults.key_faults import check_order

PLACES = {"a": ("k", 0), "b": ("k", 1), "c": ("k", 2), "x": ("other", 3)}


def effects(text: str) -> list[Effect]:
    """Return effects: ``a`` is the begin of a message, ``A`` its end."""
    return [Effect("done" if each.isupper() else "begun", each.lower(), 1, 1, 0.0) for each in text]


@pytest.mark.parametrize("text", ["aAbBcC", "axAXbBcC", "aaAbBcC", "aAbbBcC", "aAaAbBcC", "aAbBcCaA"])
def test_messages_in_order_are_no_violation(text: str) -> None:
    """Also with attempts that were killed, repeats, and other keys meanwhile."""
    assert check_order(effects(text), PLACES) == []


@pytest.mark.parametrize(("text", "count"), [("bBaAcC", 1), ("abABcC", 1), ("cbaABC", 2), ("acCAbB", 1)])
def test_messages_out_of_order_or_at_once_are_violations(text: str, count: int) -> None:
    """One for each message that begins before an earlier one of its key has ended."""
    assert len(check_order(effects(text), PLACES)) == count
