"""Celery's result backend on Redis. Results are compressed like messages, and unpacked within limits."""

from __future__ import annotations

from typing import Any

from celery.backends import redis
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC  # type: ignore[attr-defined]  # its stubs are old
from kombu.exceptions import DecodeError

from waooaw_celery.errors import DecodingFailed, EncodingFailed
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.packer import Packer, find_codec_choice

#: The backend classes by Celery's names for its own.
BACKENDS = {
    "redis": f"{__name__}:RedisBackend",
    "rediss": f"{__name__}:RedisBackend",
    "sentinel": f"{__name__}:SentinelBackend",
}


class _PackedResults:
    """A result backend that stores bytes.

    ``result_compression`` compresses results as ``task_compression`` compresses messages. If it is not set,
    ``task_compression`` applies to both.
    """

    app: Any
    compression: str | None
    content_type: str
    content_encoding: str
    accept: Any

    @property
    def packer(self) -> Packer:
        """The application's packer."""
        packer: Packer = self.app.packer  # an AgentApp
        return packer

    def prepare_compression(self, compression: str | None) -> str | None:
        """Check that the codec exists, and return None, so that Celery itself compresses nothing.

        Raises:
            ConfigurationError: There is no such codec.
        """
        find_codec_choice(compression)
        return None

    def encode(self, data: Any) -> Any:
        """Return a result in the form in which it is stored.

        Raises:
            EncodingFailed: The result cannot be written, or is larger than the limit.
        """
        payload = super().encode(data)  # type: ignore[misc]
        caps = self.packer.caps
        raw = payload.encode() if isinstance(payload, str) else payload
        if len(raw) > caps.max_expanded_bytes:
            raise EncodingFailed(
                f"the answer has {len(raw)} bytes, more than waooaw_max_expanded_bytes = {caps.max_expanded_bytes}"
            )
        conf = self.app.conf
        codec = find_codec_choice(conf.result_compression or conf.task_compression)
        compressed = None if codec is None else self.packer.compress(raw, codec)
        if compressed is None or codec is None:
            return payload
        return b"".join([COMPRESSED_PAYLOAD_MAGIC, codec.content_type.encode(), b"\0", compressed])

    def decode(self, payload: Any) -> Any:
        """Return a stored result.

        Raises:
            DecodingFailed: The result cannot be read, or is larger than the limit.
        """
        if isinstance(payload, bytes) and payload.startswith(COMPRESSED_PAYLOAD_MAGIC):
            codec, _, compressed = payload[len(COMPRESSED_PAYLOAD_MAGIC) :].partition(b"\0")
            payload = expand(compressed, codec.decode("ascii", "replace"), self.packer.caps)
        try:
            return super().decode(payload)  # type: ignore[misc]
        except DecodeError as error:
            raise DecodingFailed(f"an answer cannot be read: {error}") from error


class RedisBackend(_PackedResults, redis.RedisBackend):
    """Celery's result backend on Redis."""


class SentinelBackend(_PackedResults, redis.SentinelBackend):
    """The same backend on the master that a Redis Sentinel names."""
