"""Kombu's producer, with task bodies encoded by the packer."""

from __future__ import annotations

from typing import Any

from kombu import Producer
from kombu.pools import ProducerPool

from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.wire.codecs import AUTO, NONE
from waooaw_celery.wire.formats import has_format
from waooaw_celery.wire.packer import EncodedTask, Packer


class PackingProducer(Producer):
    """Publishes task bodies compressed when that saves space, and refuses what a receiver would refuse.

    Other messages, such as remote control commands, are compressed only if the caller says so.

    Attributes:
        packer: Encodes the bodies. Each application has a subclass with its own packer.
    """

    packer: Packer

    def _open_channel(self) -> Any:
        """Return the channel; a new one of the connection when the old one was closed.

        Kombu's ``maybe_declare`` reconnects when the connection turns out to be lost, and gives the new channel to
        what it declares only: the producer would go on with the closed one.

        Raises:
            OperationalError: the broker cannot be reached.
        """
        channel = self._get_channel()
        if channel is not None and channel.connection is None and self.__connection__ is not None:
            self.revive(self.__connection__.default_channel)
            channel = self._get_channel()
        return channel

    def _put_channel(self, channel: Any) -> None:
        self._set_channel(channel)

    channel = property(_open_channel, _put_channel)

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        """Declare an exchange or a queue, unless that was done over this connection."""
        declared = super().maybe_declare(entity, retry, **retry_policy)
        if entity:
            self._open_channel()  # what asks for the channel without the property would be given a closed one
        return declared

    def publish(self, body: Any, *args: Any, declare: Any = None, **options: Any) -> Any:
        """Publish a message, after what it needs was declared: that may replace the channel."""
        policy = (options.get("retry_policy") or {}) if options.get("retry") else {}
        for entity in declare or ():
            self.maybe_declare(entity, retry=bool(options.get("retry")), **policy)
        return super().publish(body, *args, **options)

    def _prepare(
        self,
        body: Any,
        serializer: str | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        compression: str | None = None,
        headers: dict[str, Any] | None = None,
    ) -> tuple[Any, str, str]:
        """Encode a body, and set the header ``compression`` if it is compressed."""
        name = serializer or self.serializer
        is_task = headers is not None and "task" in headers
        if headers is None or content_type or not (is_task or has_format(name)):
            codec = None if compression in (NONE, AUTO) else compression
            prepared: tuple[Any, str, str] = super()._prepare(
                body, serializer, content_type, content_encoding, codec, headers
            )
            return prepared
        self.packer.check_headers(headers)
        if not is_task and compression in (None, AUTO):
            compression = NONE
        if isinstance(body, EncodedTask):
            packed = body.encoded.packed
        else:
            packed = self.packer.pack(body, name, compression, of_message=ENVELOPE_HEADER in headers)
        if packed.codec is not None:
            headers["compression"] = packed.codec
        return packed.body, packed.content_type, packed.content_encoding


def producer_class(packer: Packer) -> type[PackingProducer]:
    """Return the producer class of an application."""
    return type("Producer", (PackingProducer,), {"packer": packer})


class PackingProducerPool(ProducerPool):
    """A pool whose producers have a connection while they are in use, and none while they wait in it.

    Kombu's leaves them the connection that they had. When it can get no other for one, it releases that one a
    second time, and two threads use the same connection.

    Args:
        connections: the pool of connections.
        timeout: seconds for which a producer waits for a connection; None: for ever.
    """

    def __init__(self, connections: Any, timeout: float | None, **options: Any) -> None:
        self._timeout = timeout
        super().__init__(connections, **options)

    def _acquire_connection(self) -> Any:
        return self.connections.acquire(block=True, timeout=self._timeout)

    def release(self, resource: Any) -> None:
        """Take a producer back, and then its connection: from then on it is another thread's."""
        connection, resource.__connection__ = resource.__connection__, None
        try:
            super().release(resource)
        finally:
            if connection is not None:
                connection.release()


def producer_pool(connections: Any, packer: Packer, timeout: float | None = None) -> ProducerPool:
    """Return a pool of producers over a pool of connections.

    Args:
        connections: the pool of connections.
        packer: writes the bodies.
        timeout: seconds for which a producer waits for a connection; None: for ever.
    """
    return PackingProducerPool(connections, timeout, limit=connections.limit, Producer=producer_class(packer))
