"""Keeps what a consumer has claimed its own while its process lives, and finds what others left that died."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis import Redis

from waooaw_celery.broker.redis.leases.pause_detector import PauseDetector
from waooaw_celery.broker.redis.leases.restore import restore_overdue
from waooaw_celery.broker.redis.leases.worker_requests import is_ending
from waooaw_celery.broker.redis.scripts import TOUCH

logger = logging.getLogger(__name__)

#: Times that a lease is renewed before it would end. A lease of 13.5 s is renewed every 3 s: a process that stands
#: still for 10 s keeps what it holds, and what a killed one held is handed out again within 15 s.
RENEWALS = 4.5
#: Seconds of a lease of a worker that was told to end, and between two renewals of it. Whoever told it so may kill
#: it soon, and does not let it stand still meanwhile.
LAST_LEASE, LAST_RENEWAL = 3.0, 1.0
#: Tags of the only messages whose leases this process renews; None: it renews all leases that it holds.
_only: frozenset[str] | None = None
#: Seconds between two rounds at least.
SHORTEST_PAUSE = 0.1


class LeaseKeeper:
    """A thread that renews the leases of one channel's messages, and puts back those whose lease is over.

    It goes on while a handler keeps the worker's event loop from doing anything, and has a connection of its own.
    It ends with the channel; unless a connection was lost under handlers that run on: then with the last of these.

    Args:
        channel: whose messages.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = weakref.ref(channel)
        self._index = channel.keys.index
        self._pool = channel._get_pool()
        self.client = Redis(connection_pool=self._pool)
        self._renew_every = channel.visibility_timeout / RENEWALS
        self._look_every = channel.unacked_restore_interval
        self._pull_back = max(channel.visibility_timeout - LAST_LEASE, 0.0)
        self._steadiness = PauseDetector(
            longest_gap=channel.visibility_timeout - 2 * self._renew_every,
            patience=self._renew_every + min(self._renew_every, 3.0),
        )
        self._patience = float(channel.socket_timeout or 5.0) + 1.0
        self._adopted: dict[str, weakref.ref[Any]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="waooaw-lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join(self._patience)
        self._pool.disconnect()

    def adopt(self, messages: Mapping[str, Any]) -> None:
        """Keep the leases of messages whose channel is closed, each as long as somebody still has the message.

        Args:
            messages: by their tags.
        """
        self._adopted.update({tag: weakref.ref(message) for tag, message in messages.items()})

    def let_go(self, tag: str) -> bool:
        """Keep a lease no longer, and return whether it was one of an adopted message."""
        return self._adopted.pop(tag, None) is not None

    def _run(self) -> None:
        # The first look is at once: where each worker dies soon, nobody would ever look otherwise.
        renew_at = look_at = time.monotonic()
        failed = False
        while True:
            channel = self._channel()
            if (channel is None or channel.closed) and not self._living():
                break
            now, asked, ending = time.monotonic(), False, is_ending()
            try:
                if ending or now >= renew_at:
                    tags = self._tags(channel)
                    renew(self.client, self._index, tags, self._pull_back if ending else 0.0)
                    renew_at = now + self._renew_every
                    asked = bool(tags)
                if now >= look_at and _consumes(channel):
                    look_at = now + self._look_every
                    restore_overdue(channel, self.client, self._steadiness.answered)
                    asked = True
            except Exception as error:  # noqa: BLE001 - if this thread ended, so would every lease
                if not failed:  # one line an incident
                    logger.warning("leases cannot be renewed: %s", error, extra={"action": "lease_failed"})
                failed = True
            else:
                if failed and asked:  # a round that asked nothing is no answer
                    logger.warning("leases are renewed again", extra={"action": "lease_back"})
                failed = failed and not asked
            due_at = min(renew_at, look_at) if _consumes(channel) else renew_at
            del channel  # so that it can go
            # After a failure it is due already: then it waits for a moment all the same.
            if self._ended.wait(min(max(due_at - time.monotonic(), SHORTEST_PAUSE), LAST_RENEWAL)):
                break

    def _tags(self, channel: Any) -> tuple[str, ...]:
        held = () if channel is None or channel.closed else channel.qos.tags()
        return (*held, *tuple(self._adopted))

    def _living(self) -> bool:
        """Forget adopted messages that nobody has any more, and return whether there are others."""
        if self._adopted:
            gc.collect()  # what Celery dropped may hang on in a circle
            for tag, message in list(self._adopted.items()):
                if message() is None:
                    self._adopted.pop(tag, None)
        return bool(self._adopted)


def _consumes(channel: Any) -> bool:
    """Whether a channel consumes queues; a caller that did so once need not look for the dead."""
    return channel is not None and not channel.closed and bool(channel.active_queues)


def renew_only(tags: Iterable[str] | None) -> None:
    """Let the leases of all other messages of this process end: it no longer works on them.

    Args:
        tags: of the messages whose handlers run; None: renew all leases again.
    """
    global _only
    _only = None if tags is None else frozenset(tags)


def renew(client: Any, index: str, tags: Sequence[str], pull_back: float = 0.0) -> None:
    """Renew leases, with one command for each thousand.

    Args:
        client: over which to do it.
        index: key of the sorted set with the moments in which messages were claimed.
        tags: the messages'.
        pull_back: seconds by which the leases are to end earlier than whole ones.
    """
    if (only := _only) is not None:
        tags = [tag for tag in tags if tag in only]
    for start in range(0, len(tags), 1000):
        TOUCH(client, [index], [pull_back, *tags[start : start + 1000]])
