"""The formats that Kombu does not have, for every program that uses Kombu: entry points ``kombu.serializers``.

A module of its own, beside the package: Kombu loads it while it is itself being imported, and whatever is in the
package imports Kombu. An application of the package has all of its formats registered, with its caps.
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


#: Encoder, decoder, content type and content encoding, as Kombu wants them.
protobuf = (_encode, _decode, "application/x-protobuf", "binary")
