"""A thread that renews the leases of a consumer's messages, and restores the messages of consumers that died."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from waooaw_celery.broker.redis.acks import ack_keys, remove_unacked
from waooaw_celery.broker.redis.groups.sublists import ungroup
from waooaw_celery.broker.redis.leases.pause_detector import PauseDetector
from waooaw_celery.broker.redis.leases.restore import restore_overdue
from waooaw_celery.broker.redis.leases.worker_requests import is_ending
from waooaw_celery.broker.redis.scripts import TOUCH
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Renewals within the time of one lease. A lease of 13.5 s is renewed every 3 s: a process that pauses for 10 s
#: keeps its messages, and those of a killed process are redelivered within 15 s.
RENEWALS_PER_LEASE = 4.5
#: The lease of a worker that is shutting down, and the pause between its renewals, in seconds. It may be killed
#: soon. If it alone pauses for longer, another worker handles its messages too.
SHUTDOWN_LEASE_SECONDS, SHUTDOWN_RENEWAL_SECONDS = 3.0, 1.0
#: The tags of the only messages whose leases this process renews; None: it renews all.
_only: frozenset[str] | None = None
#: The shortest pause between two rounds, in seconds.
MIN_PAUSE_SECONDS = 0.1
#: Acknowledgements that are sent together.
ACK_BATCH = 1000
#: Seconds between two looks for messages that earlier consumers of the same queues have grouped.
UNGROUP_SECONDS = 5.0
#: The most of them that are put back at once, about: the thread has leases to renew.
UNGROUPED = 50_000


class LeaseRenewer:
    """A thread that renews the leases of one channel's messages, and restores overdue messages of other consumers.

    It has its own connection, and runs even while a handler blocks the event loop. It ends with the channel.
    If the channel lost its connection, it ends when the messages whose handlers ran are acknowledged.

    Args:
        channel: The channel that holds the messages.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = weakref.ref(channel)
        self._index = channel.keys.index
        self._pool = channel._get_pool()
        self.client = Redis(connection_pool=self._pool)
        self._renew_every = channel.visibility_timeout / RENEWALS_PER_LEASE
        self._restore_every = channel.unacked_restore_interval
        self._shutdown_reduction = max(channel.visibility_timeout - SHUTDOWN_LEASE_SECONDS, 0.0)
        self._pauses = PauseDetector(
            longest_gap=max(
                # In a longer pause, a worker that is shutting down could not renew its leases.
                min(channel.visibility_timeout - 2 * self._renew_every, SHUTDOWN_LEASE_SECONDS - 1.0),
                1.5 * self._restore_every,
            ),
            quiet_seconds=self._renew_every + min(self._renew_every, 3.0),
        )
        self._join_seconds = float(channel.socket_timeout or 5.0) + 1.0
        self._adopted: dict[str, weakref.ref[Any]] = {}
        #: The tags of adopted messages that are handled, and whose acknowledgement the server has not confirmed.
        self._handled: deque[str] = deque()
        self._ack_keys, self._carried = ack_keys(channel.keys), channel.acks.carried
        self._ungroup_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="waooaw-lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join(self._join_seconds)
        self._pool.disconnect()

    def adopt(self, messages: Mapping[str, Any], handled: Sequence[str] = ()) -> None:
        """Renew the leases of messages whose channel is closed, each as long as its object exists.

        Args:
            messages: The messages by their delivery tags.
            handled: The delivery tags of other messages, to be acknowledged.
        """
        self._handled.extend(handled)
        self._adopted.update({tag: weakref.ref(message) for tag, message in messages.items()})

    def acknowledge(self, tag: str) -> None:
        """Acknowledge an adopted message; try again until the server confirms it.

        Args:
            tag: Its delivery tag. That of another message is ignored.
        """
        if tag not in self._adopted:
            return
        may_wait = bool(self._handled)  # the last attempt failed: the thread makes the next one
        self._handled.append(tag)  # before the next line, so that the thread does not end in between
        self._adopted.pop(tag, None)
        if may_wait:
            return
        try:
            self._acknowledge_handled()
        except (RedisError, OSError) as error:
            logger.warning(
                "acknowledgements wait until Redis answers: %s", error, extra={"action": "acknowledgement_waits"}
            )

    def release(self, tag: str) -> bool:
        """Stop renewing the lease of an adopted message, and return whether it was one."""
        return self._adopted.pop(tag, None) is not None

    def _run(self) -> None:
        # The first round starts at once: where each worker dies soon, there might be no later one.
        renew_at = restore_at = time.monotonic()
        failed = False
        while True:
            channel = self._channel()
            if (channel is None or channel.closed) and not self._has_adopted() and not self._handled:
                break
            now, used_server, ending = time.monotonic(), False, is_ending()
            try:
                if self._handled:
                    self._acknowledge_handled()
                    used_server = True
                if ending or now >= renew_at:
                    tags = self._tags(channel)
                    renew(self.client, self._index, tags, self._shutdown_reduction if ending else 0.0)
                    renew_at = now + self._renew_every
                    used_server = bool(tags)
                if now >= restore_at and _consumes(channel):
                    restore_at = now + self._restore_every
                    if not restore_overdue(channel, self.client, self._pauses.record_answer):
                        restore_at = now  # goes on after the leases are renewed
                    if channel is not None and channel.groups is None and now >= self._ungroup_at:
                        self._ungroup_at = now + UNGROUP_SECONDS
                        ungroup(self.client, channel.keys, tuple(channel.active_queues), UNGROUPED)
                    used_server = True
            except Exception as error:  # noqa: BLE001 - if this thread ended, all leases would end
                if not failed:  # one log line for each incident
                    logger.warning(
                        "leases cannot be renewed, so running messages may be redelivered: %s",
                        error,
                        extra={"action": "lease_failed"},
                    )
                failed = True
            else:
                if failed and used_server:  # a round without a command proves nothing
                    logger.warning("leases are renewed again", extra={"action": "lease_back"})
                failed = failed and not used_server
            due_at = min(renew_at, restore_at) if _consumes(channel) else renew_at
            del channel  # so that it can be collected
            # After a failure the next round is already due, so there is a minimum.
            pause = max(due_at - time.monotonic(), MIN_PAUSE_SECONDS)
            if self._ended.wait(min(pause, SHUTDOWN_RENEWAL_SECONDS)):
                break

    def _tags(self, channel: Any) -> tuple[str, ...]:
        held = () if channel is None or channel.closed else channel.qos.tags()
        return (*held, *tuple(self._adopted), *tuple(self._handled))

    def _acknowledge_handled(self) -> None:
        """Acknowledge the handled messages.

        Raises:
            RedisError: The server does not answer. Their tags stay in ``_handled``.
        """
        while tags := tuple(self._handled)[:ACK_BATCH]:
            remove_unacked(self.client, self._ack_keys, tags, self._carried)
            for tag in tags:
                with suppress(ValueError):  # a thread of the pool has acknowledged it too
                    self._handled.remove(tag)

    def _has_adopted(self) -> bool:
        """Drop adopted messages that nothing refers to any more, and return whether others are left."""
        if self._adopted:
            gc.collect()  # what Celery dropped may be part of a reference cycle
            for tag, message in list(self._adopted.items()):
                if message() is None:
                    self._adopted.pop(tag, None)
        return bool(self._adopted)


def _consumes(channel: Any) -> bool:
    """Whether a channel consumes queues. One that only calls basic_get need not restore the messages of others."""
    return channel is not None and not channel.closed and bool(channel.active_queues)


def renew_only(tags: Iterable[str] | None) -> None:
    """Stop renewing the leases of all other messages of this process, because it no longer works on them.

    Args:
        tags: The delivery tags of the messages whose handlers run; None: renew all leases again.
    """
    global _only
    _only = None if tags is None else frozenset(tags)


def renew(client: Any, index: str, tags: Sequence[str], reduction: float = 0.0) -> None:
    """Renew leases, with one command for each thousand.

    Args:
        client: The Redis client to use.
        index: The key of the sorted set with the times of the claims.
        tags: The delivery tags of the messages.
        reduction: Seconds by which the leases are shorter than the visibility timeout.
    """
    if (only := _only) is not None:
        tags = [tag for tag in tags if tag in only]
    for start in range(0, len(tags), 1000):
        TOUCH(client, [index], [reduction, *tags[start : start + 1000]])
