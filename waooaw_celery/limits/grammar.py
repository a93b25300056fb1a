"""How a quota is written: ``10/second; 100/hour burst 20``, or as rules.

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
from waooaw_celery.limits.rules import EACH, MAX_LIMIT, MAX_PERIOD, UNITS, Quota, Rule
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.validation import check_agent_name

#: Every way to write a unit.
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


def read_quota(value: Any) -> Quota:
    """Return the quota that a text, rules, or mappings with a rule's fields say.

    Args:
        value: such as ``"10/second; 100/hour burst 20"``, ``[Rule(100, 3600, burst=20)]`` or
            ``[{"limit": 100, "period": 3600, "burst": 20}]``.

    Raises:
        ConfigurationError: it cannot be read; of a text, the sentence names the character.
    """
    if isinstance(value, Quota):
        return value
    if isinstance(value, str):
        return _Reader(value).quota()
    if isinstance(value, Rule | Mapping):
        return Quota((_rule(value),))
    if isinstance(value, Iterable):
        return Quota(tuple(_rule(one) for one in value))
    raise ConfigurationError(f"a rate limit is a text such as '100/hour burst 20', or rules, not {value!r:.80}")


def configured_quota(key: str, value: Any) -> Quota:
    """Return the quota of a setting.

    Raises:
        ConfigurationError: it cannot be read; the sentence names the setting.
    """
    try:
        return read_quota(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error}") from error


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
            f"a rule has limit, period in seconds and, if wanted, burst, to, of; not {value!r:.80} ({error})"
        ) from error


class _Reader:
    """Reads one text from left to right, and knows where it is."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [(match[1], match.start(1)) for match in _TOKEN.finditer(text)]
        self.next = 0

    def quota(self) -> Quota:
        if self.token.lower() == "unlimited" and len(self.tokens) == 1:
            return Quota()
        rules: list[Rule] = []
        while True:
            begin = self.at
            rule = self.rule()
            try:
                Quota((*rules, rule))
            except ConfigurationError as error:
                self.fail(str(error), begin)
            rules.append(rule)
            if not self.accept(";"):
                break
            if not self.token:  # one semicolon at the end does no harm
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
            at = self.at
            burst = self.number("how many may come at once")
            if burst > limit:
                self.fail(f"the burst is more than the limit {limit}, and no more than that pass anyway", at)
        if self.accept("to"):
            to = self.recipient()
        begin = self.at
        if self.accept("of"):
            if to is not None:
                self.fail("a rule is 'to' an agent or 'of' a type, not both: write two rules", begin)
            of = self.type()
        return Rule(limit, period, burst, to, of)

    def period(self) -> int:
        begin = self.at
        count = self.number("a unit") if self.is_number else 1
        unit = self.token.lower()
        if unit not in _UNITS:
            near = difflib.get_close_matches(unit, list(UNITS), 1)
            self.fail(f"expected second, minute, hour or day{f'; did you mean {near[0]}?' if near else ''}")
        self.next += 1
        if count * _UNITS[unit] > MAX_PERIOD:
            self.fail(f"the longest window is {MAX_PERIOD // UNITS['day']} days", begin)
        return count * _UNITS[unit]

    def number(self, what: str) -> int:
        if not self.is_number:
            self.fail(f"expected {what}, a whole number")
        if len(self.token) > len(str(MAX_LIMIT)) or not 1 <= int(self.token) <= MAX_LIMIT:
            self.fail(f"expected {what}, from 1 to {MAX_LIMIT}")
        self.next += 1
        return int(self.tokens[self.next - 1][0])

    def recipient(self) -> str:
        # An agent's name may begin with a digit, where the tokens of numbers end: the whole word counts.
        match = re.compile(r"[^\s;]+").match(self.text, self.at)
        name = match[0] if match else ""
        if name != EACH:
            try:
                check_agent_name(name, "the recipient")
            except InvalidMessage as error:
                self.fail(str(error))
        end = self.at + len(name)
        while self.token and self.at < end:
            self.next += 1
        return name

    def type(self) -> MessageType:
        try:
            found = MessageType(self.token.lower())
        except ValueError:
            self.fail(f"expected a type of message: {', '.join(type_.value for type_ in MessageType)}")
        self.next += 1
        return found

    @property
    def token(self) -> str:
        return self.tokens[self.next][0] if self.next < len(self.tokens) else ""

    @property
    def is_number(self) -> bool:
        return self.token.isascii() and self.token.isdecimal()

    @property
    def at(self) -> int:
        return self.tokens[self.next][1] if self.next < len(self.tokens) else len(self.text)

    def accept(self, token: str) -> bool:
        if self.token.lower() != token:
            return False
        self.next += 1
        return True

    def fail(self, why: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        here = f"{self.text[at : at + 20]!r}" if at < len(self.text) else "the end"
        shown = self.text if len(self.text) <= 80 else f"{self.text[:80]}…"
        raise ConfigurationError(f"rate limit {shown!r}, at character {at + 1} ({here}): {why}")
