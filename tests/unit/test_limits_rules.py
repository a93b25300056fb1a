"""Rules, quotas and scopes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from waooaw_celery import MessageType, Priority
from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.limits.grammar import parse_quota
from waooaw_celery.limits.rules import Demand, Rule, demands_by_scope, rule_for_scope, to_seconds


@pytest.mark.parametrize(
    ("limit", "period", "step_us", "group_size"),
    [
        (1, 1, 40, 1),
        (100, 60, 2400, 1),
        (101, 60, 2400, 2),
        (1234, 3600, 144_000, 13),
        (1_000_000_000, 31_622_400, 1_264_896_000, 10_000_000),
    ],
)
def test_a_window_has_25000_steps_and_at_most_100_groups(
    limit: int, period: int, step_us: int, group_size: int
) -> None:
    """Step and group size follow from period and limit, up to the largest of both."""
    rule = Rule(limit, period)
    assert (rule.step_us, rule.group_size) == (step_us, group_size)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((1_000_000_001, 1), "limit must be a whole number from 1 to 1000000000"),
        ((1, 31_622_401), "period must be a whole number from 1 to 31622400"),
        ((1, 0), "period must be a whole number from 1 to 31622400"),
        ((10, 1, 0), "burst must be a whole number from 1 to 1000000000"),
        ((10, 1, 11), "burst 11 is larger than the limit 10"),
        ((1, 1, None, "a", MessageType.QUERY), "not both"),
        ((1, 1, None, "Not Ok"), "to must be"),
        ((1, 1, None, None, "query"), "of must be a MessageType, not 'query'"),
    ],
)
def test_an_invalid_rule_is_refused(arguments: tuple[Any, ...], reason: str) -> None:
    """The error names the argument and its range."""
    with pytest.raises((ConfigurationError, InvalidMessage), match=reason):
        Rule(*arguments)


def test_the_burst_may_equal_the_limit() -> None:
    """The largest burst is the limit; each recipient may be counted separately."""
    assert str(Rule(10, 1, 10, "*")) == "10/second burst 10 to *"


@pytest.mark.parametrize(
    ("rule", "reserve", "limits"),
    [
        (Rule(10, 60, 5), 200, (8, 4)),
        (Rule(1000, 60, 500), 251, (749, 375)),
        (Rule(1, 60), 900, (1, 0)),
        (Rule(10, 60, 1), 900, (1, 1)),
        (Rule(2, 60, 2), 900, (1, 1)),
        (Rule(10, 60, 5), 0, (10, 5)),
    ],
)
def test_the_reserve_leaves_at_least_one_message(rule: Rule, reserve: int, limits: tuple[int, int]) -> None:
    """The reserve is a share in thousandths of limit and burst, rounded down."""
    assert rule.without_reserve(reserve) == limits


def test_a_rule_takes_recipient_or_type_from_its_scope() -> None:
    """The names of scopes are ``to:`` and ``of:`` and a name, or empty."""
    assert rule_for_scope("to:x", 3, 2, 1) == Rule(3, 2, 1, to="x")
    assert rule_for_scope("of:query", 3, 2, None) == Rule(3, 2, of=MessageType.QUERY)
    assert rule_for_scope("", 3, 2, None) == Rule(3, 2)
    assert [Rule(1, 1, to="x").scope, Rule(1, 1, of=MessageType.ACK).scope, Rule(1, 1).scope] == [
        "to:x",
        "of:ack",
        "",
    ]


def test_a_quota_finds_the_rules_of_a_scope() -> None:
    """A recipient without rules of its own gets those of ``*``; a type does not."""
    quota = parse_quota("1/hour to *; 2/hour to x; 3/minute to x")
    assert quota.rules_for("to:x") == quota.rules[1:]
    assert quota.rules_for("to:y") == quota.rules[:1]
    assert quota.rules_for("of:query") == quota.rules_for("") == ()


def test_messages_are_counted_by_scope() -> None:
    """Each message counts for all, for its recipient and for its type; URGENT ones apart."""
    assert demands_by_scope(
        [
            ("x", MessageType.QUERY, Priority.URGENT, 2),
            ("x", None, Priority.HIGH, 3),
            (None, MessageType.QUERY, Priority.LOW, 4),
        ]
    ) == [Demand("", 9, 7), Demand("to:x", 5, 3), Demand("of:query", 6, 4)]
    assert demands_by_scope([]) == [Demand("", 0, 0)]


def test_a_wait_is_converted_to_seconds() -> None:
    """None, which means never, is infinity."""
    assert to_seconds(1_500_000) == 1.5
    assert math.isinf(to_seconds(None))
