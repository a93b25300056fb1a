"""What the Celery worker of this process does with the messages of a channel that is about to close."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakSet

#: How often to read the worker's sets of requests while the threads of its pool change them.
MAX_ATTEMPTS = 100

#: Requests whose handlers have ended, and whose acknowledgement waits until their outcome is recorded.
unacknowledged: WeakSet[Any] = WeakSet()
#: Requests that wait for the other messages of their batch. No pool has them yet.
collecting: WeakSet[Any] = WeakSet()


def is_ending() -> bool:
    """Return whether the Celery worker of this process is shutting down; False in a process that is no worker.

    A worker that closes a channel without shutting down has lost its connection, and will open another channel.
    """
    state: Any = sys.modules.get("celery.worker.state")
    return state is not None and (_is_set(state.should_stop) or _is_set(state.should_terminate))


def _is_set(flag: Any) -> bool:
    return flag is not None and flag is not False  # 0 is an exit code


def running_messages(held: Mapping[str, Any]) -> dict[str, Any]:
    """Return the messages that this process's Celery worker runs, gave to its pool, or will acknowledge.

    Celery drops all others when it reconnects: those that wait for their time (``eta``, ``countdown``, the pause
    before a retry), for a rate limit, or for the other messages of a batch. References to the dropped messages may
    remain, because Celery's consumer keeps cancelled entries of its timer.

    Args:
        held: The messages of a channel by their delivery tags.
    """
    begun, reserved = _requests()
    tags = {request.message.delivery_tag for request in (begun | reserved) - {*collecting}}
    return {tag: message for tag, message in held.items() if tag in tags}


def not_begun(tags: Iterable[str]) -> set[str]:
    """Return those of some messages that the pool of this process's Celery worker never began.

    That is certain in a worker that ends warmly, once its pool has ended: the pool discards what it did not begin,
    and has reported the beginning of everything else. In a worker that ends in another way, the set is empty.

    Args:
        tags: The delivery tags of messages that are not acknowledged.
    """
    from celery.worker import state

    if not is_ending() or state.should_terminate not in (None, False):
        return set()
    begun, _ = _requests()
    return {*tags} - {request.message.delivery_tag for request in begun}


def _requests() -> tuple[set[Any], set[Any]]:
    """Return the requests that have begun, and those that Celery has given to its pool."""
    from celery.worker import state

    for _ in range(MAX_ATTEMPTS):
        try:
            return {*state.active_requests, *unacknowledged}, set(state.reserved_requests)
        except RuntimeError as error:  # a thread of the pool changed one of the sets meanwhile
            changed = error
    raise changed
