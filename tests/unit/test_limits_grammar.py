"""The quota grammar: what parses to which rules, and the errors."""

from __future__ import annotations

from typing import Any

import pytest

from waooaw_celery import MessageType
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.limits.grammar import parse_quota
from waooaw_celery.limits.rules import MAX_LIMIT, Quota, Rule
from waooaw_celery.settings import WaooawSettings


@pytest.mark.parametrize(
    ("text", "rules", "formatted"),
    [
        ("10/second", [Rule(10, 1)], "10/second"),
        ("10/s;100 / h  burst 20", [Rule(10, 1), Rule(100, 3600, 20)], "10/second; 100/hour burst 20"),
        ("5/2 minutes", [Rule(5, 120)], "5/2 minutes"),
        ("5/90 SECONDS", [Rule(5, 90)], "5/90 seconds"),
        ("3/day to worker-1; 4/day to *;", [Rule(3, 86400, to="worker-1"), Rule(4, 86400, to="*")], None),
        ("3/day to 9-lives", [Rule(3, 86400, to="9-lives")], "3/day to 9-lives"),
        ("3/min burst 1 of Query", [Rule(3, 60, 1, of=MessageType.QUERY)], "3/minute burst 1 of query"),
        (f"{MAX_LIMIT}/366 days", [Rule(MAX_LIMIT, 366 * 86400)], f"{MAX_LIMIT}/366 days"),
        ("unlimited", [], "unlimited"),
    ],
)
def test_a_quota_is_parsed_and_formatted(text: str, rules: list[Rule], formatted: str | None) -> None:
    """Each form of the grammar gives these rules, and their text parses to the same quota."""
    quota = parse_quota(text)
    assert quota == Quota(tuple(rules))
    assert formatted is None or str(quota) == formatted
    assert parse_quota(str(quota)) == quota


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("10/secnd", 4, "did you mean second?"),
        ("10/fortnight", 4, "expected second, minute, hour or day"),
        ("ten/second", 1, "a whole number"),
        ("1.5/second", 2, "expected '/'"),
        ("10 second", 4, "expected '/'"),
        ("10/second; 0/hour", 12, f"from 1 to {MAX_LIMIT}"),
        ("-1/hour", 1, "a whole number"),
        ("10/0 hours", 4, f"from 1 to {MAX_LIMIT}"),
        (f"{MAX_LIMIT + 1}/day", 1, f"from 1 to {MAX_LIMIT}"),
        ("9" * 5000 + "/day", 1, f"from 1 to {MAX_LIMIT}"),
        ("10/367 days", 4, "the longest window is 366 days"),
        ("10/hour burst 0", 15, "from 1"),
        ("10/hour burst 11", 15, "larger than the limit 10"),
        ("10/hour burst", 14, "the burst size"),
        ("10/hour to Boss", 12, "the recipient must be"),
        ("10/hour to", 11, "the recipient must be"),
        ("10/hour of gossip", 12, "command, query, event"),
        ("10/hour to boss of query", 17, "not both"),
        ("10/hour 5/minute", 9, "';' or the end"),
        ("10/hour; 5/60 minutes", 10, "the same window and scope: keep one"),
        ("unlimited; 10/hour", 1, "a whole number"),
        ("", 1, "a number of messages"),
        ("10/hour;;", 9, "a number of messages"),
        ("\uff11\uff10/hour", 1, "a whole number"),
    ],
)
def test_a_parse_error_names_the_character(text: str, position: int, reason: str) -> None:
    """The error gives the character, counted from 1, and what was expected there."""
    with pytest.raises(ConfigurationError) as caught:
        parse_quota(text)
    assert f"at character {position} (" in str(caught.value)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value",
    [
        Quota((Rule(100, 3600, burst=20),)),
        Rule(100, 3600, 20),
        [Rule(100, 3600, 20)],
        {"limit": 100, "period": 3600, "burst": 20},
        [{"limit": 100, "period": 3600, "burst": 20}],
    ],
)
def test_a_quota_can_be_given_as_rules_or_mappings(value: Any) -> None:
    """The structured forms give the same quota as the text."""
    assert parse_quota(value) == parse_quota("100/hour burst 20")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"limit": 0, "period": 1}, "limit must be a whole number from 1"),
        ({"limit": True, "period": 1}, "limit must be a whole number"),
        ({"limit": 1, "period": 0.5}, "period must be a whole number"),
        ({"limit": 1, "period": 1, "of": "gossip"}, "gossip"),
        ({"limit": 1, "perod": 1}, "perod"),
        ([5], "a rule needs limit and period"),
        (5, "a rate limit must be a string such as"),
        ([{"limit": 1, "period": 1}, {"limit": 2, "period": 1}], "keep one of them"),
    ],
)
def test_an_invalid_rule_is_a_configuration_error(value: Any, reason: str) -> None:
    """The error names what is wrong with a structured form."""
    with pytest.raises(ConfigurationError, match=reason):
        parse_quota(value)


def test_quotas_by_agent_are_set_as_json() -> None:
    """WAOOAW_RATE_LIMITS is a JSON object; anything else is a ConfigurationError."""
    settings = WaooawSettings.read({}, environ={"WAOOAW_RATE_LIMITS": '{"worker-1": "10/second"}'})
    assert settings.rate_limits == {"worker-1": "10/second"}
    assert settings.limited
    assert not WaooawSettings.read({}, environ={}).limited
    for wrong in ("worker-1=10/second", "[1]", '{"Not Ok": "1/second"}'):
        with pytest.raises(ConfigurationError, match="WAOOAW_RATE_LIMITS"):
            WaooawSettings.read({}, environ={"WAOOAW_RATE_LIMITS": wrong})
    with pytest.raises(ConfigurationError, match="WAOOAW_URGENT_RESERVE"):
        WaooawSettings.read({}, environ={"WAOOAW_URGENT_RESERVE": "1"})


def test_a_parse_error_is_one_readable_line() -> None:
    """It shows the text, the position, what is there and what was expected; long texts are cut."""
    with pytest.raises(ConfigurationError) as caught:
        parse_quota("10/secnd")
    assert str(caught.value) == (
        "rate limit '10/secnd', at character 4 ('secnd'): "
        "expected second, minute, hour or day; did you mean second?"
    )
    with pytest.raises(ConfigurationError) as caught:
        parse_quota("10/fortnight")
    assert str(caught.value).endswith("expected second, minute, hour or day")
    text = "10/hour " + "x" * 80
    with pytest.raises(ConfigurationError) as caught:
        parse_quota(text)
    assert str(caught.value) == (
        f"rate limit {text[:80] + '…'!r}, at character 9 ({'x' * 20!r}): "
        "expected 'burst', 'to', 'of', ';' or the end"
    )
    with pytest.raises(ConfigurationError, match=r"^rate limit '9{77}/da', at character"):
        parse_quota("9" * 77 + "/da")
    with pytest.raises(ConfigurationError, match=r"at character 4 \(the end\)"):
        parse_quota("10/")
    with pytest.raises(ConfigurationError, match=r"expected a number of units, a whole number from 1"):
        parse_quota("10/0 hours")
    with pytest.raises(ConfigurationError, match=r"the longest window is 366 days"):
        parse_quota("10/8785 hours")
    assert parse_quota("10/8784 hours").rules[0].period == 31_622_400


@pytest.mark.parametrize(
    ("unit", "seconds"),
    [
        *(("s", 1), ("sec", 1), ("second", 1), ("seconds", 1)),
        *(("m", 60), ("min", 60), ("minute", 60), ("minutes", 60)),
        *(("h", 3600), ("hour", 3600), ("hours", 3600)),
        *(("d", 86_400), ("day", 86_400), ("days", 86_400)),
    ],
)
def test_every_spelling_of_a_unit_is_accepted(unit: str, seconds: int) -> None:
    """Short, singular and plural forms mean the same."""
    assert parse_quota(f"7/3 {unit}") == Quota((Rule(7, 3 * seconds),))


def test_an_iterable_of_rules_may_mix_rules_and_mappings() -> None:
    """A mapping may name its type by value, and invalid fields are shown."""
    rules = [Rule(1, 1), {"limit": 2, "period": 60, "of": "query"}]
    assert str(parse_quota(rules)) == "1/second; 2/minute of query"
    with pytest.raises(ConfigurationError, match=r"^limit must be a whole number"):
        parse_quota({"limit": 0, "period": 1})
