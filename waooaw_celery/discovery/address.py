"""The address of a message to an agent that has a capability, such as ``capability:summarise@>=2?tags=eu``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.validation import check_tags

#: What an address by capability begins with. No agent's name has a colon.
PREFIX = "capability:"
#: The longest key of an address, in characters.
MAX_KEY = 255
#: Addresses whose text was read before and is remembered.
MAX_REMEMBERED = 10_000
#: A version without an operator: it stands for every version that begins with it.
_PLAIN_VERSION = re.compile(r"\d+(\.\d+)*")


def is_capability(to: object) -> bool:
    """Return whether the recipient of a message is named by capability.

    Args:
        to: a name of an agent, an address as text, or a CapabilityAddress.
    """
    return isinstance(to, CapabilityAddress) or (isinstance(to, str) and to.startswith(PREFIX))


@dataclass(frozen=True, slots=True)
class CapabilityAddress:
    """A recipient that is named by what it can do.

    Attributes:
        name: name of the capability.
        version: condition on its version, such as ``>=2,<3``; ``2`` stands for 2 and every 2.x; None: any version.
        tags: tags that the agent must have, all of them.
        policy: how one of several agents is chosen (see ``Policy``); None: the setting ``waooaw_routing_policy``.
        key: what the policy ``sticky`` keeps with one agent, such as the id of a conversation.

    Raises:
        InvalidMessage: the name, the version, a tag or the key is invalid.

    Example:
        >>> str(CapabilityAddress("summarise", version=">=2", tags=("eu",)))
        'capability:summarise@>=2?tags=eu'
    """

    name: str
    version: str | None = None
    tags: tuple[str, ...] = ()
    policy: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        check_capability_name(self.name)
        object.__setattr__(self, "tags", check_tags(self.tags))
        if self.version is not None:
            version_condition(self.version)
        if self.policy is not None and (not isinstance(self.policy, str) or not self.policy.isidentifier()):
            raise InvalidMessage(f"the policy of a capability's address must be a name, not {self.policy!r:.80}")
        if self.key is not None and (not isinstance(self.key, str) or not 0 < len(self.key) <= MAX_KEY):
            raise InvalidMessage(
                f"the key of a capability's address must be a string of 1 to {MAX_KEY} characters, "
                f"not {self.key!r:.80}"
            )

    def __str__(self) -> str:
        query = "&".join(
            f"{name}={quote(value, safe=',:.')}"
            for name, value in (("tags", ",".join(self.tags)), ("policy", self.policy), ("key", self.key))
            if value
        )
        version = f"@{self.version}" if self.version is not None else ""
        return f"{PREFIX}{self.name}{version}" + (f"?{query}" if query else "")

    @property
    def recorded(self) -> str:
        """What the message and the ledger keep of it: the capability and the condition on its version."""
        return str(self).removeprefix(PREFIX).partition("?")[0]

    @classmethod
    def of(cls, to: str | CapabilityAddress) -> CapabilityAddress:
        """Return the address that a text stands for.

        Args:
            to: an address, or its text.

        Raises:
            InvalidMessage: the text is no address; the error shows a correct one.
        """
        return to if isinstance(to, CapabilityAddress) else _parsed(to)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address that a text stands for; see ``of``."""
        path, _, query = text.removeprefix(PREFIX).partition("?")
        name, at, version = path.partition("@")
        options = dict(parse_qsl(query, keep_blank_values=True, separator="&"))
        if unknown := sorted(set(options) - {"tags", "policy", "key"}):
            raise InvalidMessage(
                f"the address {text!r:.200} has the unknown option {unknown[0]!r}: tags, policy and key are "
                f"known, as in {PREFIX}summarise@>=2?tags=eu,gpu&policy=sticky&key=conversation-7"
            )
        if at and not version:
            raise InvalidMessage(
                f"the address {text!r:.200} has no version after @: write @>=2, or leave out the @"
            )
        return cls(
            name,
            unquote(version) if at else None,
            tuple(tag for tag in options.get("tags", "").split(",") if tag),
            options.get("policy"),
            options.get("key"),
        )


@lru_cache(maxsize=MAX_REMEMBERED)
def _parsed(text: str) -> CapabilityAddress:
    return CapabilityAddress.parse(text)


def check_capability_name(name: Any) -> str:
    """Return the name of a capability, if it is valid.

    Raises:
        InvalidMessage: it has other characters than a-z, 0-9, ``_``, ``.``, ``-``, or is too long.
    """
    try:
        [checked] = check_tags([name])
    except InvalidMessage as error:
        raise InvalidMessage(f"the name of a capability is invalid: {error}") from None
    return checked


@lru_cache(maxsize=1024)
def version_condition(text: str) -> SpecifierSet:
    """Return what a condition on a version accepts.

    Args:
        text: such as ``>=2,<3``, ``==2.1`` or ``~=2.1``, as in Python's packaging; ``2`` stands for ``==2.*``.

    Raises:
        InvalidMessage: it is malformed.
    """
    try:
        return SpecifierSet(f"=={text}.*" if _PLAIN_VERSION.fullmatch(text) else text)
    except (InvalidSpecifier, TypeError):
        raise InvalidMessage(
            f"{text!r:.80} is no condition on a version: write >=2, >=2,<3, ==2.1, ~=2.1, or 2 for every 2.x"
        ) from None


def check_version(text: Any) -> str:
    """Return the version of a capability or an agent, if it is valid.

    Raises:
        InvalidMessage: it is no version such as 2 or 2.1.3.
    """
    try:
        return str(Version(text))
    except (InvalidVersion, TypeError):
        raise InvalidMessage(f"{text!r:.80} is no version: use numbers such as '2' or '2.1.3'") from None


@lru_cache(maxsize=10_000)
def accepts(condition: str | None, version: str | None) -> bool:
    """Return whether a version meets a condition.

    Args:
        condition: as ``version_condition`` takes it; None: any version, and none.
        version: the version; None, of a capability without one, meets no condition.
    """
    if condition is None:
        return True
    return version is not None and version_condition(condition).contains(Version(version), prereleases=True)
