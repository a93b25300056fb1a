"""Publisher confirms of a channel: many messages are on their way at once, and the outcome of each is known."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable
from typing import Any

from amqp.exceptions import AMQPError, IrrecoverableConnectionError, MessageNacked, RecoverableConnectionError

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds for which a publish waits for a sign of RabbitMQ where the connection has no read timeout of its own.
CONFIRM_SECONDS = 30.0
#: Bytes that are written at once, and that may be on their way unconfirmed: RabbitMQ returns whole messages.
WRITE_BYTES, MAX_UNCONFIRMED_BYTES = 128 * 1024, 4 * 1024 * 1024


class Publishing:
    """Messages that are published together, and what became of each.

    Attributes:
        confirmed: ids of the messages that RabbitMQ has, in the order of their confirms.
        refused: why RabbitMQ has not taken a message, by its id.
        waiting: ids of those whose outcome is not known yet.
    """

    def __init__(self) -> None:
        self.confirmed: list[str] = []
        self.refused: dict[str, Exception] = {}
        self._returned: dict[str, Exception] = {}
        self.waiting: set[str] = set()

    def settle(self, id_: str, refusal: Exception | None) -> None:
        """Note the outcome of a message.

        Args:
            id_: its id.
            refusal: why RabbitMQ does not take it; None: it confirms it. It may have returned it before that.
        """
        self.waiting.discard(id_)
        refusal = self._returned.pop(id_, refusal)
        if refusal is None:
            self.confirmed.append(id_)
        else:
            self.refused[id_] = refusal

    def return_(self, id_: str | None, reason: Exception) -> bool:
        """Note that RabbitMQ has returned a message: no queue takes it. Its confirm follows.

        Returns:
            Whether the message is one of these.
        """
        if id_ is None and len(self.waiting) == 1:
            [id_] = self.waiting
        if id_ is None or id_ not in self.waiting:
            return False
        self._returned[id_] = reason
        return True


class Confirms:
    """The confirms of one channel. Only the thread that has the connection uses it.

    Args:
        channel: py-amqp's channel; it is put in confirm mode.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._tag = 0  # RabbitMQ counts the publishes of a channel from 1
        self._waiting: dict[int, tuple[Publishing, str, int]] = {}  # by tag, in the order of the tags
        self._bytes = 0
        self._publishing: Publishing | None = None
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    def publish(
        self, publishing: Publishing, messages: Iterable[tuple[str, bytes]], timeout: float | None = None
    ) -> None:
        """Write messages, and wait until the outcome of each is known.

        Args:
            publishing: gets the outcomes, also when this raises.
            messages: the id of each, and its frames.
            timeout: seconds for which it waits for a sign of RabbitMQ; None: the read timeout of the connection.

        Raises:
            RecoverableConnectionError: the connection was lost.
            IrrecoverableConnectionError: RabbitMQ gave no sign in time: it hangs, or its memory is full and it
                reads nothing. The connection is closed. To publish again would give RabbitMQ the messages twice,
                which are in its socket.
        """
        connection = self._channel.connection
        if connection is None:
            raise RecoverableConnectionError("the channel is closed")
        seconds = timeout or connection.read_timeout or CONFIRM_SECONDS
        self._publishing = publishing
        try:
            self._write(publishing, messages, seconds)
            self._wait(0, seconds)
        except (TimeoutError, BlockingIOError) as error:
            connection.collect()
            raise IrrecoverableConnectionError(f"RabbitMQ did not confirm the publish in time: {error}") from error
        except OSError as error:
            connection.collect()
            raise RecoverableConnectionError(f"the connection was lost during a publish: {error}") from error
        except AMQPError:  # a channel that RabbitMQ closed leaves the connection open
            raise
        except BaseException:  # a time limit may have interrupted it in the middle of a frame
            connection.collect()
            raise
        finally:
            self._publishing = None

    def _write(self, publishing: Publishing, messages: Iterable[tuple[str, bytes]], seconds: float) -> None:
        buffer: list[bytes] = []
        size = 0
        for id_, frames in messages:
            if id_ in publishing.waiting:  # the same message again
                self._send(buffer, seconds)
                self._wait(0, seconds)
                buffer, size = [], 0
            self._tag += 1
            self._waiting[self._tag] = publishing, id_, len(frames)
            self._bytes += len(frames)
            publishing.waiting.add(id_)
            buffer.append(frames)
            size += len(frames)
            if size >= WRITE_BYTES:
                self._send(buffer, seconds)
                self._wait(MAX_UNCONFIRMED_BYTES, seconds)
                buffer, size = [], 0
        self._send(buffer, seconds)

    def _send(self, buffer: list[bytes], seconds: float) -> None:
        if not buffer:
            return
        transport = self._open_connection().transport
        with transport.having_timeout(seconds):
            transport.write(b"".join(buffer))
        while is_readable(transport):
            self._open_connection().drain_events(timeout=seconds)

    def _wait(self, max_bytes: int, seconds: float) -> None:
        """Wait until at most so many bytes are unconfirmed. Each confirm extends the time."""
        deadline, waiting = time.monotonic() + seconds, len(self._waiting)
        while self._bytes > max_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{len(self._waiting)} confirms are missing after {seconds:g} s")
            self._open_connection().drain_events(timeout=left)
            if len(self._waiting) < waiting:
                deadline, waiting = time.monotonic() + seconds, len(self._waiting)

    def _open_connection(self) -> Any:
        connection = self._channel.connection
        if connection is None:
            raise RecoverableConnectionError("the channel was closed during a publish")
        return connection

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple, None)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple, MessageNacked("RabbitMQ refused the message, as of a queue that is full"))

    def _settle(self, tag: int, multiple: bool, refusal: Exception | None) -> None:
        tags = [tag]
        if multiple:
            tags = []
            for each in self._waiting:
                if each > tag:
                    break
                tags.append(each)
        for each in tags:
            publishing, id_, size = self._waiting.pop(each, (None, "", 0))
            self._bytes -= size
            if publishing is not None:
                publishing.settle(id_, refusal)

    def _on_return(self, reason: Exception, exchange: str, routing_key: str, message: Any) -> None:
        id_ = message.properties.get("correlation_id")
        if self._publishing is None or not self._publishing.return_(id_, reason):
            logger.error(
                "RabbitMQ returned a message that this process does not wait for: %s",
                reason,
                extra={"action": "returned"},
            )


def is_readable(transport: Any) -> bool:
    """Return whether something has arrived on a connection: data, or its end."""
    sock = transport.sock
    if sock is None:
        return False
    if transport._read_buffer or (hasattr(sock, "pending") and sock.pending()):
        return True
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])


def check_connection(connection: Any) -> None:
    """Close a connection that the server has closed while it was not used.

    Before anything is written, a new connection costs nothing. Afterwards it is unknown what the server has read.

    Args:
        connection: py-amqp's connection.
    """
    try:
        while connection.transport is not None and is_readable(connection.transport):
            connection.drain_events(timeout=connection.read_timeout or CONFIRM_SECONDS)
    except (OSError, AMQPError) as error:
        logger.info(
            "the connection was lost while it was not used: %s", error, extra={"action": "connection_lost"}
        )
        connection.collect()
