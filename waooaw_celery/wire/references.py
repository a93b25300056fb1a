"""Makes references to stored payloads, and gets the arguments back out of their bytes."""

from __future__ import annotations

import hashlib
from typing import Any

from waooaw_celery.errors import DecodingFailed, PayloadAltered
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.formats import decode
from waooaw_celery.wire.packer import PackedBody


def stored_bytes(packed: PackedBody) -> bytes:
    """Return the bytes of a body that are stored: what would have travelled."""
    return packed.body.encode() if isinstance(packed.body, str) else packed.body


def reference_to(packed: PackedBody, data: bytes, key: str) -> Reference:
    """Return the reference to a stored body.

    Args:
        packed: The body.
        data: Its bytes, from ``stored_bytes``.
        key: The key under which they are stored.
    """
    return Reference(
        key=key,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content_type=packed.content_type,
        content_encoding=packed.content_encoding,
        codec=packed.codec,
    )


def check_may_be_loaded(reference: Reference, caps: Caps) -> None:
    """Check the size of a stored payload before it is loaded.

    Raises:
        DecodingFailed: It is larger than ``max_expanded_bytes``.
    """
    if reference.size > caps.max_expanded_bytes:
        raise DecodingFailed(
            f"its payload has {reference.size} bytes, more than waooaw_max_expanded_bytes = "
            f"{caps.max_expanded_bytes}"
        )


def arguments_in(data: bytes, reference: Reference, caps: Caps) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the keyword arguments of a task from its stored bytes.

    Args:
        data: The bytes.
        reference: The reference to them.
        caps: The limits and formats that are accepted.

    Raises:
        PayloadAltered: They are not the bytes that were stored.
        DecodingFailed: They cannot be decoded.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != reference.sha256:
        raise PayloadAltered(
            f"the payload {reference.key} is not what was stored: it has {len(data)} bytes and the SHA-256 "
            f"{found}, not {reference.size} bytes and {reference.sha256}. Restore it, and retry the message"
        )
    raw = data if reference.codec is None else expand(data, reference.codec, caps)
    body = decode(raw, reference.content_type, reference.content_encoding, caps)
    is_body = isinstance(body, list | tuple) and len(body) == 3
    if not is_body or not isinstance(body[0], list | tuple) or not isinstance(body[1], dict):
        raise DecodingFailed(f"the payload {reference.key} is not the body of a task")
    return list(body[0]), body[1]
