"""Celery's result backend on Redis, with answers packed by the rule of messages, and unpacked within bounds."""

from __future__ import annotations

from typing import Any

from celery.backends import redis
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC  # type: ignore[attr-defined]  # its stubs are old
from kombu.exceptions import DecodeError

from waooaw_celery.errors import DecodingFailed, EncodingFailed
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.packer import Packer, find_codec_choice

#: The classes by the names that Celery has for its own.
BACKENDS = {
    "redis": f"{__name__}:RedisBackend",
    "rediss": f"{__name__}:RedisBackend",
    "sentinel": f"{__name__}:SentinelBackend",
}


class _Packed:
    """A result backend that keeps bytes.

    ``result_compression`` is what ``task_compression`` is for messages; not set: the same choice.
    """

    app: Any
    compression: str | None
    content_type: str
    content_encoding: str
    accept: Any

    @property
    def packer(self) -> Packer:
        """What packs the answers."""
        packer: Packer = self.app.packer  # an AgentApp
        return packer

    def prepare_compression(self, compression: str | None) -> str | None:
        """Return nothing for Celery to do by itself, once it is seen that there is such a codec."""
        find_codec_choice(compression)
        return None

    def encode(self, data: Any) -> Any:
        """Write an answer.

        Raises:
            EncodeError: it cannot be written, or is larger than what is accepted.
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
        packed = None if codec is None else self.packer.compress(raw, codec)
        if packed is None or codec is None:
            return payload
        return b"".join([COMPRESSED_PAYLOAD_MAGIC, codec.content_type.encode(), b"\0", packed])

    def decode(self, payload: Any) -> Any:
        """Read an answer.

        Raises:
            DecodingFailed: it cannot be read, or is larger than what is accepted.
        """
        if isinstance(payload, bytes) and payload.startswith(COMPRESSED_PAYLOAD_MAGIC):
            codec, _, packed = payload[len(COMPRESSED_PAYLOAD_MAGIC) :].partition(b"\0")
            payload = expand(packed, codec.decode("ascii", "replace"), self.packer.caps)
        try:
            return super().decode(payload)  # type: ignore[misc]
        except DecodeError as error:
            raise DecodingFailed(f"an answer cannot be read: {error}") from error


class RedisBackend(_Packed, redis.RedisBackend):
    """Celery's backend on Redis."""


class SentinelBackend(_Packed, redis.SentinelBackend):
    """The same, on the Redis that a sentinel names."""
