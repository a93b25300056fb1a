"""The quota grammar, such as ``10/second; 100/hour burst 20``, and quotas as rules or mappings.

.. code-block:: text

    quota = "unlimited" | rule { ";" rule }
    rule  = number "/" [number] unit [ "burst" number ] [ "to" agent | "to" "*" | "of" type ]
    unit  = "second" | "minute" | "hour" | "day", also in the plural and as "s", "min", "h", "d"
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.limits.rules import EACH_RECIPIENT, MAX_LIMIT, MAX_PERIOD, UNITS, Quota, Rule
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.validation import check_agent_name

#: Seconds by every accepted spelling of a unit.
_UNITS = {
    **UNITS,
    **{f"{name}s": seconds for name, seconds in UNITS.items()},
    "s": 1,
    "sec": 1,
    "m": 60,
    "min": 60,
    "h": 3600,
    "d": 86_400,
}
_TOKEN = re.compile(r"\s*([;/*]|[0-9]+|[A-Za-z][A-Za-z0-9_-]*|[^\s;/]+)")


def parse_quota(value: Any) -> Quota:
    """Return a quota from a string, rules, or mappings with a rule's fields.

    Args:
        value: Such as ``"10/second; 100/hour burst 20"``, ``[Rule(100, 3600, burst=20)]`` or
            ``[{"limit": 100, "period": 3600, "burst": 20}]``.

    Raises:
        ConfigurationError: The value is invalid. For a string, the error names the character.

    Example:
        >>> parse_quota("100/hour burst 20").rules[0].burst
        20
    """
    if isinstance(value, Quota):
        return value
    if isinstance(value, str):
        return _QuotaParser(value).quota()
    if isinstance(value, Rule | Mapping):
        return Quota((_rule(value),))
    if isinstance(value, Iterable):
        return Quota(tuple(_rule(one) for one in value))
    raise ConfigurationError(
        f"a rate limit must be a string such as '100/hour burst 20', or rules, not {value!r:.80}"
    )


def parse_quota_setting(setting: str, value: Any) -> Quota:
    """Return the quota of a setting.

    Raises:
        ConfigurationError: The value is invalid. The error names the setting.
    """
    try:
        return parse_quota(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{setting}: {error}") from error


def _rule(value: Any) -> Rule:
    if isinstance(value, Rule):
        return value
    try:
        fields = dict(value)
        if fields.get("of") is not None:
            fields["of"] = MessageType(fields["of"])
        return Rule(**fields)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            f"a rule needs limit and period (seconds), and can have burst, to or of, not {value!r:.80} ({error})"
        ) from error


class _QuotaParser:
    """A recursive-descent parser; errors name the character where parsing stopped."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [(match[1], match.start(1)) for match in _TOKEN.finditer(text)]
        self.index = 0

    def quota(self) -> Quota:
        if self.token.lower() == "unlimited" and len(self.tokens) == 1:
            return Quota()
        rules: list[Rule] = []
        while True:
            start = self.position
            rule = self.rule()
            try:
                Quota((*rules, rule))
            except ConfigurationError as error:
                self.fail(str(error), start)
            rules.append(rule)
            if not self.accept(";"):
                break
            if not self.token:  # a semicolon at the end is allowed
                break
        if self.token:
            self.fail("expected 'burst', 'to', 'of', ';' or the end")
        return Quota(tuple(rules))

    def rule(self) -> Rule:
        limit = self.number("a number of messages")
        if not self.accept("/"):
            self.fail("expected '/', as in 10/second")
        period = self.period()
        burst = to = of = None
        if self.accept("burst"):
            start = self.position
            burst = self.number("the burst size")
            if burst > limit:
                self.fail(f"the burst is larger than the limit {limit}", start)
        if self.accept("to"):
            to = self.recipient()
        start = self.position
        if self.accept("of"):
            if to is not None:
                self.fail("a rule can have 'to' or 'of', not both: write two rules", start)
            of = self.type()
        return Rule(limit, period, burst, to, of)

    def period(self) -> int:
        start = self.position
        count = self.number("a number of units") if self.is_number else 1
        unit = self.token.lower()
        if unit not in _UNITS:
            similar = difflib.get_close_matches(unit, list(UNITS), 1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            self.fail(f"expected second, minute, hour or day{hint}")
        self.index += 1
        if count * _UNITS[unit] > MAX_PERIOD:
            self.fail(f"the longest window is {MAX_PERIOD // UNITS['day']} days", start)
        return count * _UNITS[unit]

    def number(self, what: str) -> int:
        # The length is checked first: Python refuses to convert very long digit strings.
        token = self.token
        if not self.is_number or len(token) > len(str(MAX_LIMIT)) or not 1 <= int(token) <= MAX_LIMIT:
            self.fail(f"expected {what}, a whole number from 1 to {MAX_LIMIT}")
        self.index += 1
        return int(token)

    def recipient(self) -> str:
        # An agent's name may start with a digit, where the tokenizer ends a number: read the whole word.
        match = re.compile(r"[^\s;]+").match(self.text, self.position)
        name = match[0] if match else ""
        if name != EACH_RECIPIENT:
            try:
                check_agent_name(name, "the recipient")
            except InvalidMessage as error:
                self.fail(str(error))
        end = self.position + len(name)
        while self.token and self.position < end:
            self.index += 1
        return name

    def type(self) -> MessageType:
        try:
            type_ = MessageType(self.token.lower())
        except ValueError:
            self.fail(f"expected a message type: {', '.join(each.value for each in MessageType)}")
        self.index += 1
        return type_

    @property
    def token(self) -> str:
        return self.tokens[self.index][0] if self.index < len(self.tokens) else ""

    @property
    def is_number(self) -> bool:
        return self.token.isascii() and self.token.isdecimal()

    @property
    def position(self) -> int:
        return self.tokens[self.index][1] if self.index < len(self.tokens) else len(self.text)

    def accept(self, token: str) -> bool:
        """Consume the next token if it is this one."""
        if self.token.lower() != token:
            return False
        self.index += 1
        return True

    def fail(self, reason: str, position: int | None = None) -> NoReturn:
        position = self.position if position is None else position
        found = f"{self.text[position : position + 20]!r}" if position < len(self.text) else "the end"
        text = self.text if len(self.text) <= 80 else f"{self.text[:80]}…"
        raise ConfigurationError(f"rate limit {text!r}, at character {position + 1} ({found}): {reason}")
