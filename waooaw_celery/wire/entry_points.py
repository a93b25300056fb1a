"""Kombu's entry points: the formats that every program with Kombu gets when this package is installed.

Kombu loads the group ``kombu.serializers`` while it is itself being imported. So this module must not import Kombu
or Celery at the top, nor a module that imports them: the functions import what they need when they are called.

An application made by ``create_app()`` decodes Protobuf within its own caps. Kombu knows no application, and
decodes it within the default caps.
"""

from __future__ import annotations

from typing import Any


def _encode(value: Any) -> bytes:
    from waooaw_celery.wire.protobuf import encode

    return encode(value)


def _decode(body: Any) -> Any:
    from waooaw_celery.wire.caps import Caps
    from waooaw_celery.wire.formats import decode

    return decode(body, "application/x-protobuf", None, Caps())


def register_protobuf() -> None:
    """Register Protobuf with Kombu if that has no such format: Celery looks up ``accept_content`` there.

    When this package is installed, Kombu has registered it already.
    """
    from kombu.serialization import registry  # type: ignore[attr-defined]  # missing from its stubs

    if "protobuf" not in registry.name_to_type:
        registry.register("protobuf", *protobuf)


#: Encoder, decoder, content type and content encoding: the arguments of ``kombu.serialization.register``.
protobuf = (_encode, _decode, "application/x-protobuf", "binary")
