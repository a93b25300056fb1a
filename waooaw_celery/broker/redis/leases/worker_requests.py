"""What the Celery worker of this process does with the messages of a channel that is about to close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

#: How often to read the worker's sets of requests while the threads of its pool change them.
MAX_ATTEMPTS = 100

#: Requests whose handlers have ended, and whose acknowledgement waits until their outcome is recorded.
unacknowledged: WeakSet[Any] = WeakSet()


def is_ending() -> bool:
    """Return whether the Celery worker of this process is shutting down; False in a process that is no worker.

    A worker that closes a channel without shutting down has lost its connection, and will open another channel.
    """
    from celery.worker import state

    return any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))


def running_messages(held: Mapping[str, Any]) -> dict[str, Any]:
    """Return the messages that this process's Celery worker runs, gave to its pool, or will acknowledge.

    Celery drops all others when it reconnects: those that wait for their time (``eta``, ``countdown``, the pause
    before a retry) or for a rate limit. References to the dropped messages may remain, because Celery's consumer
    keeps cancelled entries of its timer.

    Args:
        held: The messages of a channel by their delivery tags.
    """
    tags = {request.message.delivery_tag for request in _requests()}
    return {tag: message for tag, message in held.items() if tag in tags}


def _requests() -> set[Any]:
    from celery.worker import state

    for _ in range(MAX_ATTEMPTS):
        try:
            return {*state.active_requests, *state.reserved_requests, *unacknowledged}
        except RuntimeError as error:  # a thread of the pool changed one of the sets meanwhile
            changed = error
    raise changed
