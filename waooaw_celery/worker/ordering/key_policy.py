"""The key of a handler's messages: those with the same key are handled in order, and only some at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.messages.message import Message

#: Fields of a message that may be its key.
KEY_FIELDS = ("conversation_id", "correlation_id", "causation_id", "from_agent")
#: A path into the payload, such as ``payload.customer.id``.
_PATH = re.compile(r"payload(\.[^.\s]+)+")
#: The most messages of a key that may be handled at once.
LARGEST_RUNNING = 1000
#: The longest key, in characters.
LONGEST_KEY = 1000


class OnBusy(StrEnum):
    """What becomes of a message whose key is busy."""

    WAIT = "wait"  #: it waits until the messages before it have ended
    DROP = "drop"  #: it is not handled: it ends as CANCELLED
    CANCEL = "cancel"  #: the running message is cancelled, and those that wait are dropped; it is handled next


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """Which messages of a handler belong together, and how they are handled.

    Attributes:
        key: a field of the message, a path into its payload, or a function of the Message.
        max_running: how many messages of a key are handled at once.
        on_busy: what becomes of a message whose key is busy.
    """

    key: str | Callable[[Message], str | None]
    max_running: int = 1
    on_busy: OnBusy = OnBusy.WAIT

    def key_of(self, message: Message) -> str | None:
        """Return the key of a message; None if it has none, so that it waits for no other.

        Args:
            message: the message.

        Raises:
            InvalidMessage: the key is no text, number or flag, or is too long.
            Exception: what a function raises.
        """
        found = self.key(message) if callable(self.key) else _read(message, self.key)
        if found is None:
            return None
        if not isinstance(found, str | int | float):
            raise InvalidMessage(f"its key {self.name} must be a text or a number, not {type(found).__name__}")
        text = str(found)
        if len(text) > LONGEST_KEY:
            raise InvalidMessage(f"its key {self.name} has {len(text)} characters, more than {LONGEST_KEY}")
        return text

    def group_of(self, message: Message) -> str | None:
        """Return the group of a message, as the broker's script takes it: ``<most>:<policy>:<key>``.

        The key itself may be private, and stands in no name of a Redis key: its digest does.

        Raises:
            InvalidMessage, Exception: as ``key_of``.
        """
        digest = self.digest_of(message)
        return None if digest is None else f"{self.max_running}:{self.on_busy[0]}:{digest}"

    def digest_of(self, message: Message) -> str | None:
        """Return the digest of the key of a message, in hexadecimal; None if it has none.

        Raises:
            InvalidMessage, Exception: as ``key_of``.
        """
        key = self.key_of(message)
        if key is None:
            return None
        return hashlib.sha1(f"{self.name}\n{key}".encode(errors="replace"), usedforsecurity=False).hexdigest()

    @property
    def name(self) -> str:
        """The name of the key; handlers of an agent with the same name and key share its order."""
        if isinstance(self.key, str):
            return self.key
        return f"{self.key.__module__}.{getattr(self.key, '__qualname__', type(self.key).__qualname__)}"


def take_key_policy(options: dict[str, Any], target: object) -> KeyPolicy | None:
    """Take the options ``key``, ``max_running`` and ``on_busy`` out of a handler's options.

    Args:
        options: the options of the handler.
        target: the handler, for the text of an error.

    Returns:
        What they say; None: the handler's messages have no keys.

    Raises:
        ConfigurationError: a value is wrong, or another option does not go with them.
    """
    given = {name: options.pop(name) for name in ("key", "max_running", "on_busy") if name in options}
    if not given:
        return None
    key, most, on_busy = given.get("key"), given.get("max_running", 1), given.get("on_busy", OnBusy.WAIT)
    if key is None:
        raise ConfigurationError(
            f'{target} has {next(iter(given))}= and no key=: add one, such as key="conversation_id"'
        )
    if not callable(key) and not (isinstance(key, str) and (key in KEY_FIELDS or _PATH.fullmatch(key))):
        raise ConfigurationError(
            f"{target} cannot have key={key!r:.80}: it is one of {', '.join(KEY_FIELDS)}, a path into the payload "
            'such as "payload.customer", or a function of the Message that returns a text'
        )
    if type(most) is not int or not 1 <= most <= LARGEST_RUNNING:
        raise ConfigurationError(
            f"{target} cannot have max_running={most!r:.80}: it is the number of messages of a key that are "
            f"handled at once, from 1 to {LARGEST_RUNNING}"
        )
    if on_busy not in list(OnBusy):
        raise ConfigurationError(f"{target} cannot have on_busy={on_busy!r:.80}: it is one of {', '.join(OnBusy)}")
    if options.get("batch") is not None:
        raise ConfigurationError(f"{target} cannot have key= together with batch=: leave one of them out")
    return KeyPolicy(key, most, OnBusy(on_busy))


def _read(message: Message, key: str) -> Any:
    if key in KEY_FIELDS:
        return getattr(message, key)
    if message.reference is not None and message.payload is None:
        raise InvalidMessage(
            f"its key {key} is in a payload that is stored by reference, which is not read before the message has "
            "its turn: use a field of the message as key, or raise waooaw_reference_above"
        )
    value: Any = message.payload
    for part in key.split(".")[1:]:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
