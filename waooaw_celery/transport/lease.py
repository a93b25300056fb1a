"""Keeps what a consumer has claimed its own while its process lives, and finds what others left that died."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Any

from redis import Redis

from waooaw_celery.transport.scripts import OVERDUE, TOUCH

logger = logging.getLogger(__name__)

#: Times that a lease is renewed before it would end.
RENEWALS = 4
#: Overdue messages looked at together.
BATCH = 10


class LeaseKeeper:
    """A thread that renews the leases of one channel's messages, and puts back those whose lease is over.

    It goes on while a handler keeps the worker's event loop from doing anything, and has a connection of its own.
    It ends with the channel.

    Args:
        channel: whose messages.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = weakref.ref(channel)
        self._pool = channel._get_pool()
        self._renew_every = channel.visibility_timeout / RENEWALS
        self._look_every = channel.unacked_restore_interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="waooaw-lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join(self._channel_timeout())
        self._pool.disconnect()

    def _channel_timeout(self) -> float:
        channel = self._channel()
        return float((channel and channel.socket_timeout) or 5.0) + 1.0

    def _run(self) -> None:
        client = Redis(connection_pool=self._pool)
        pause = min(self._renew_every, self._look_every)
        look_at = time.monotonic() + self._look_every
        failed = False
        while not self._ended.wait(pause):
            channel = self._channel()
            if channel is None or channel.closed:
                return
            try:
                asked = renew(channel, client)
                if channel.active_queues and time.monotonic() >= look_at:
                    look_at = time.monotonic() + self._look_every
                    recover(channel, client)
                    asked = True
            except Exception as error:  # noqa: BLE001 - if this thread ended, so would every lease
                if not failed:  # one line an incident
                    logger.warning("leases cannot be renewed: %s", error, extra={"action": "lease_failed"})
                failed = True
            else:
                if failed and asked:
                    logger.warning("leases are renewed again", extra={"action": "lease_back"})
                failed = failed and not asked
            del channel  # so that it can go


def renew(channel: Any, client: Any) -> bool:
    """Renew the leases of all that a channel holds; return whether there was anything."""
    tags = channel.qos.tags()
    for start in range(0, len(tags), 1000):
        TOUCH(client, [channel.key(channel.unacked_index_key)], tags[start : start + 1000])
    return bool(tags)


def recover(channel: Any, client: Any) -> None:
    """Put back the messages whose lease is over: their consumer died."""
    keys = [channel.key(channel.unacked_key), channel.key(channel.unacked_index_key)]
    limits = [channel.visibility_timeout, channel.foreign_visibility_timeout, channel.TAG_MARK, BATCH]
    while True:
        found = OVERDUE(client, keys, limits)
        moved = [channel.restore(client, *found[start : start + 3]) for start in range(0, len(found), 3)]
        if not any(moved) or len(found) < 3 * BATCH:
            return
