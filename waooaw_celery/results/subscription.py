"""A subscription of one process to the results of all its requests on a Redis server.

Celery's backend publishes each result to a channel that has the name of the result's key, and so do workers of
every version. Celery subscribes to each of these channels, and unsubscribes again: two commands for each request,
and an answer of the server to both. The ids of a process's requests begin alike, so here one pattern covers all of
them.

The server compares each message that anybody publishes with each pattern. Where it has many patterns, or where its
user may not subscribe to one, the channels are subscribed to one by one.
"""

from __future__ import annotations

import re
import select
import threading
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: The most patterns that a server may have before another one is used: each costs it time for each publish.
MAX_PATTERNS = 200
#: The names of the user that has all permissions, unless an administrator has taken them away.
_USERS_WITH_PATTERNS = frozenset({None, "", "default"})
#: What Redis calls a message to a channel, and to a pattern: the places of the channel and the text in each.
_MESSAGES: dict[Any, tuple[int, int]] = {
    b"message": (1, 2),
    "message": (1, 2),
    b"pmessage": (2, 3),
    "pmessage": (2, 3),
}
#: What the server answers to the commands of this class.
_CONFIRMATIONS = frozenset({b"psubscribe", "psubscribe", b"subscribe", "subscribe"})


class Subscription:
    """What is published to the channels of results. Any thread may add a channel; one thread reads.

    Args:
        backend: Celery's result backend on Redis.
        start: How the ids of this process's requests begin.
    """

    def __init__(self, backend: Any, start: str) -> None:
        self._backend = backend
        self._start = start
        self._prefix = _text(backend.get_key_for_task("*"))[:-1]
        self._connection: Any = None
        self._lock = threading.Lock()
        #: The channels that the pattern does not cover.
        self._channels: set[str] = set()
        self._has_pattern = False

    def open(self) -> None:
        """Connect and subscribe; what was subscribed to before, too.

        Raises:
            RedisError: The server does not answer.
        """
        with self._lock:
            self._disconnect()
            client = self._backend.client
            self._connection = connection = client.connection_pool.get_connection()
            parser = connection._parser
            if hasattr(parser, "set_pubsub_push_handler"):  # redis-py's own writes each message into a log record
                parser.set_pubsub_push_handler(_returned)
            self._has_pattern = self._subscribe_to_pattern(connection, client)
            if self._channels:
                self._command("SUBSCRIBE", *self._channels)

    def channel(self, message_id: str) -> str:
        """Return the channel of a request's result, which is also the key of the result."""
        return self._prefix + message_id

    def add(self, message_id: str) -> None:
        """Subscribe to the result of a request, unless the pattern covers it.

        Raises:
            RedisError: The server does not answer.
        """
        if self._has_pattern and message_id.startswith(self._start):
            return
        with self._lock:
            channel = self._prefix + message_id
            self._channels.add(channel)
            self._command("SUBSCRIBE", channel)

    def remove(self, message_id: str) -> None:
        """End what ``add`` has begun."""
        channel = self._prefix + message_id
        if channel not in self._channels:
            return
        with self._lock:
            self._channels.discard(channel)
            self._command("UNSUBSCRIBE", channel)

    def read(self, timeout: float) -> list[tuple[str, Any]]:
        """Wait for results, and return all that have arrived: the id of each request, and the text.

        Args:
            timeout: The longest wait, in seconds.

        Raises:
            RedisError, OSError: The connection is lost.
        """
        with self._lock:
            found = self._take()
            connection = self._connection
        if found or connection is None:
            return found
        if not _is_readable(connection, timeout):
            return []
        with self._lock:
            return self._take()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._disconnect()

    # --- with the lock

    def _take(self) -> list[tuple[str, Any]]:
        """Return the results that have arrived."""
        connection, found = self._connection, list[tuple[str, Any]]()
        if connection is None or connection._sock is None:  # redis-py would connect, but not subscribe
            raise RedisConnectionError("the connection to the result backend is lost")
        while connection.can_read(0):
            message = connection.read_response(push_request=True)
            places = _MESSAGES.get(message[0]) if isinstance(message, list) and message else None
            if places is not None:
                channel, text = places
                found.append((_text(message[channel]).removeprefix(self._prefix), message[text]))
        return found

    def _subscribe_to_pattern(self, connection: Any, client: Any) -> bool:
        """Subscribe to the pattern, and return whether that is possible.

        The ACL of a user with a name cannot name the pattern, and the server writes down what it refuses.
        """
        if client.connection_pool.connection_kwargs.get("username") not in _USERS_WITH_PATTERNS:
            return False
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", self._prefix + self._start) + "*"
        try:
            if int(client.pubsub_numpat()) >= MAX_PATTERNS:
                return False
            connection.send_command("PSUBSCRIBE", pattern)
            confirmed = connection.read_response(push_request=True)
        except NoPermissionError:
            return False
        return isinstance(confirmed, list) and confirmed[0] in _CONFIRMATIONS

    def _command(self, *words: str) -> None:
        connection = self._connection
        if connection is None or connection._sock is None:  # the thread that reads connects and subscribes again
            return
        # Without the check of its health: the thread that reads would get the answer.
        connection.send_command(*words, check_health=False)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._backend.client.connection_pool.release(connection)


def _is_readable(connection: Any, timeout: float) -> bool:
    """Wait until a connection has data or is closed, without its lock."""
    sock = connection._sock
    if sock is None:
        return True
    try:
        make = getattr(select, "poll", None)  # looked up here, because gevent may have replaced it
        if make is None:
            return bool(select.select([sock], [], [], timeout)[0])
        poller = make()
        poller.register(sock, select.POLLIN)
        return bool(poller.poll(timeout * 1000))
    except (OSError, ValueError):  # it was closed meanwhile
        return True


def _returned(message: Any) -> Any:
    return message


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
