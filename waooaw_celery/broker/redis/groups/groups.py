"""How a channel groups the messages that it claims: by sender, and by the keys of their handlers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgpack

from waooaw_celery.broker.incoming.guard import Delivery, read_item
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import Caps

#: What stands for a message without a key.
NO_KEY = "::"


class Groups:
    """What the claims of a channel need for groups; the script ``claim_groups.lua`` makes them.

    The script meets a message whose key it needs, and returns its text. The next claim brings the key: only the
    application can read the message and knows what its key is.

    Args:
        is_fair: Whether the messages of each sender wait in a flow of their own.
        weights: How many turns the flow of a sender gets for each one of another; 1 if it has none here.
        tasks: The names of the tasks whose messages have keys.
        key_of: Returns the key of a checked message as ``<most>:<policy>:<key in hexadecimal digits>``, or None.
        cancel: Called with the id of a running message that is to be cancelled.
    """

    def __init__(
        self,
        *,
        is_fair: bool,
        weights: Mapping[str, float],
        tasks: Collection[str],
        key_of: Callable[[Delivery], str | None],
        cancel: Callable[[str], None],
    ) -> None:
        self._fixed = [is_fair, dict(weights), list(tasks)]
        self._key_of, self._cancel = key_of, cancel
        self._keys: dict[str, str] = {}
        self._without_keys = {is_reversed: self._packed(is_reversed) for is_reversed in (False, True)}

    def add_key(self, raw: bytes, caps: Caps) -> None:
        """Find the key of a message, for the next claim.

        Args:
            raw: The message as it travels.
            caps: The limits of messages.
        """
        try:
            key = self._key_of(read_item(raw, caps))
        except DecodingFailed:  # whoever claims it makes a dead letter of it
            key = None
        self._keys[hashlib.sha1(raw, usedforsecurity=False).hexdigest()] = key or NO_KEY

    def cancel(self, message_id: bytes) -> None:
        """Cancel a running message, because a later one with its key has arrived."""
        self._cancel(message_id.decode(errors="replace"))

    def take_argument(self, is_reversed: bool) -> bytes:
        """Return the argument of the next claim, and forget the keys that it brings.

        Args:
            is_reversed: Whether the claim begins with the least urgent priority.
        """
        if not self._keys:
            return self._without_keys[is_reversed]
        argument = self._packed(is_reversed)
        self._keys.clear()
        return argument

    def _packed(self, is_reversed: bool) -> bytes:
        packed: Any = msgpack.packb([*self._fixed, self._keys, is_reversed])
        return bytes(packed)
