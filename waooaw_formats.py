"""The entry point ``kombu.serializers``: adds Protobuf to every program that uses Kombu.

This module imports nothing of the package at the top, because Kombu loads it while Kombu itself is being imported,
and the package imports Kombu. An application of this package registers all formats, with its own caps.
"""

from __future__ import annotations

from typing import Any


def _encode(value: Any) -> bytes:
    from waooaw_celery.wire.protobuf import encode

    return encode(value)


def _decode(body: Any) -> Any:
    from waooaw_celery.wire.caps import active_caps
    from waooaw_celery.wire.formats import decode

    return decode(body, "application/x-protobuf", None, active_caps.caps)


#: Encoder, decoder, content type and content encoding.
protobuf = (_encode, _decode, "application/x-protobuf", "binary")
