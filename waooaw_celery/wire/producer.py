"""The producer: Kombu's, with bodies of tasks written by the packer."""

from __future__ import annotations

from typing import Any

from kombu import Producer
from kombu.pools import ProducerPool

from waooaw_celery.message import ENVELOPE_HEADER
from waooaw_celery.wire.codecs import AUTO, NONE
from waooaw_celery.wire.packing import Packer


class PackingProducer(Producer):
    """Publishes tasks packed when that pays, and refuses what their receivers would refuse.

    What is no task, such as remote control, goes as Kombu sends it.

    Attributes:
        packer: writes the bodies; of a subclass for each application.
    """

    packer: Packer

    def _prepare(
        self,
        body: Any,
        serializer: str | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        compression: str | None = None,
        headers: dict[str, Any] | None = None,
    ) -> tuple[Any, str, str]:
        """Write a body, and say in the headers how it is packed."""
        if content_type or headers is None or "task" not in headers:
            named = None if compression in (NONE, AUTO) else compression
            prepared: tuple[Any, str, str] = super()._prepare(
                body, serializer, content_type, content_encoding, named, headers
            )
            return prepared
        self.packer.check_headers(headers)
        of_message = ENVELOPE_HEADER in headers
        packed = self.packer.pack(body, serializer or self.serializer, compression, of_message=of_message)
        if packed.codec is not None:
            headers["compression"] = packed.codec
        return packed.body, packed.content_type, packed.content_encoding


def producer_class(packer: Packer) -> type[PackingProducer]:
    """Return the class of the producers of an application."""
    return type("Producer", (PackingProducer,), {"packer": packer})


def producer_pool(connections: Any, packer: Packer) -> ProducerPool:
    """Return a pool of producers over a pool of connections."""
    return ProducerPool(connections, limit=connections.limit, Producer=producer_class(packer))
