"""The lists into which the messages of a queue are grouped, for what counts, reads, moves and deletes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.broker.redis.scripts import UNGROUP

#: Messages that one call moves: the server does nothing else meanwhile.
MOVED = 1000


def sublists(client: Any, keys: Keys, queue: str) -> list[str]:
    """Return the keys of the lists that are not empty, in the order in which a message moves through them.

    Args:
        client: A Redis client that does not prefix keys.
        keys: The names of the keys.
        queue: The name of the queue.
    """
    return sorted(as_text(key) for key in client.smembers(keys.sublists(queue)))


def message_of(entry: bytes) -> bytes:
    """Return the message of an entry of such a list, or of an item of a queue's own list.

    Args:
        entry: The entry.
    """
    return entry[max(entry.find(b"{"), 0) :]


def ungroup(client: Any, keys: Keys, queues: Iterable[str], limit: int | None = None) -> None:
    """Put grouped messages back into their queues' own lists.

    Args:
        client: A Redis client that does not prefix keys.
        keys: The names of the keys.
        queues: The names of the queues.
        limit: The maximum for each queue, about; None: all.
    """
    for queue in queues:
        left = limit
        while client.exists(keys.sublists(queue)) and (left is None or left > 0):
            moved = UNGROUP(client, [keys.bell(queue), *keys.lists((queue,))], [MOVED])
            left = None if left is None else left - max(int(moved), 1)


def as_text(key: bytes | str) -> str:
    """Return the name of a key as text."""
    return key.decode() if isinstance(key, bytes) else key
