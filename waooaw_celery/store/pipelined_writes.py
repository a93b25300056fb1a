"""Writes to Redis whose replies are read later, so that the caller does not wait for them.

The command is in the server's socket when the call returns: also the end of the process does not take it back.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.connection import Client
from waooaw_celery.store.redis_refusals import remedy

logger = get_logger(__name__)

#: How many replies may be unread. The server keeps them, and so does the socket.
MAX_UNREAD = 100


class PipelinedWrites:
    """Sends commands over a connection of its own. Any thread may use it.

    Use it only for what may be lost: an error is known only when the replies are read, and is then logged.

    Args:
        client: client of the Redis.
        what: what the commands do, for the log.
    """

    def __init__(self, client: Client, what: str) -> None:
        self._client, self._what = client, what
        self._lock = threading.Lock()
        self._connection: Any = None
        self._unread = 0
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(reference))

    def send(self, *command: str) -> None:
        """Send a command.

        Args:
            command: its name and its arguments. It may be sent twice.

        Raises:
            RedisError: it could not be sent.
        """
        with self._lock:
            if self._connection is not None and (self._unread >= MAX_UNREAD or self._has_arrived()):
                self._read()
            try:
                self._write(command)
            except RedisConnectionError:  # the server has closed the connection, such as at its restart
                self._write(command)

    def settle(self) -> None:
        """Wait until the server has executed what was sent, so that a read over another connection sees it."""
        if not self._unread:  # the usual case needs no lock
            return
        with self._lock:
            if self._unread:  # or else another thread has read them meanwhile
                self._read()

    def close(self) -> None:
        """Read the replies, and give the connection back."""
        self.settle()
        with self._lock:
            if self._connection is not None:
                self._client.connection_pool.release(self._connection)
            self._connection = None

    def forget(self) -> None:
        """Leave the connection to the parent of this process, which was forked while any thread used it."""
        self._lock, self._connection, self._unread = threading.Lock(), None, 0

    def _write(self, command: tuple[str, ...]) -> None:
        if self._connection is None:
            self._connection = self._client.connection_pool.get_connection()
        try:
            packed = self._connection.pack_command(*command)
            self._connection.send_packed_command(packed, check_health=False)
        except BaseException:  # a part of the command may be written
            self._drop()
            raise
        self._unread += 1

    def _has_arrived(self) -> bool:
        """Return whether replies have arrived, or the end of the connection."""
        try:
            return bool(self._connection.can_read())
        except RedisError:
            return True

    def _read(self) -> None:
        """Read the replies that are due; where there are none, the server has closed the connection."""
        unread, self._unread = self._unread, 0
        try:
            if not unread:
                self._connection.disconnect()  # the next command connects again
            for number in range(unread, 0, -1):
                try:
                    self._connection.read_response()
                except RedisError as error:
                    logger.warning(
                        "could not %s: %s",
                        self._what,
                        remedy(error) or error,
                        extra={"action": "receipt_stays_pending"},
                    )
                    if not self._connection.is_connected:
                        logger.debug("%d replies are lost", number, extra={"action": "replies_lost"})
                        break
        except BaseException:  # a time limit may have interrupted it in the middle of a reply
            self._drop()
            raise

    def _drop(self) -> None:
        connection, self._connection, self._unread = self._connection, None, 0
        if connection is not None:
            connection.disconnect()
            self._client.connection_pool.release(connection)


def _forget(reference: weakref.ref[PipelinedWrites]) -> None:
    writes = reference()
    if writes is not None:
        writes.forget()
