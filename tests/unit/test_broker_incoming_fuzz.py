"""Mutated bodies are decoded or refused.

WAOOAW_TEST_FUZZ is the number of bodies, WAOOAW_TEST_SEED the seed.
"""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from waooaw_celery.broker.incoming.guard import read_item
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire import encryption
from waooaw_celery.wire.caps import Caps, check_shape
from waooaw_celery.wire.codecs import codec_names, expand, find_codec
from waooaw_celery.wire.formats import decode, encode, find_format

COUNT = int(os.environ.get("WAOOAW_TEST_FUZZ", "30000"))
SEED = int(os.environ.get("WAOOAW_TEST_SEED", "7"))
CAPS = Caps(max_body_bytes=20_000, max_expanded_bytes=20_000, max_header_bytes=4000, max_depth=20, max_nodes=400)

CORPUS: tuple[Any, ...] = (
    [[], {}, None],
    [[{"id": UUID(int=3), "at": datetime(2026, 1, 1, tzinfo=UTC), "price": Decimal("1.5")}], {}, {}],
    [[], {"numbers": list(range(300)), "large": [2**64, -(2**70)], "none": None, "yes": True}, {}],
    [[{"text": "ü € 😀 " * 200, "raw": bytes(range(256)), "deep": [[[[[[[[[["x"]]]]]]]]]]}], {}, {}],
    [[[0.1, -1e300, 5e-324]], {"a" * 40: {"b": {"c": {}}}}, {"chain": None}],
)
#: Bytes with a meaning in one of the formats or codecs.
SPECIAL_BYTES = (
    *(b"[", b"]", b"{", b'"', b"\\", b",", b"NaN", b"1e999", b'{"__type__": "int", "__value__": "1"}'),
    *(b"\x91", b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc1"),
    *(b"\x3a", b"\x08\x08", b"\xff" * 5, b"\x00"),
    *(b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh9"),
)


def bodies(rng: random.Random) -> Iterator[tuple[str, str | None, bytes]]:
    """Yield format, codec and body without end, each mutated in another way."""
    encryption.enable([f"k={base64.b64encode(bytes(32)).decode()}"])
    made = [(find_format(name), value) for value in CORPUS for name in ("json", "msgpack", "protobuf")]
    written = [(format_.content_type, _raw(encode(value, format_))) for format_, value in made]
    codecs = [find_codec(name) for name in codec_names()]
    # The others are too slow to compress each time: their archives are mutated instead.
    fast = [codec for codec in codecs if codec.name not in ("bzip2", "lzma")]
    packed = [
        (content_type, codec.content_type, codec.compress(body))
        for content_type, body in written
        for codec in codecs
    ]
    while True:
        content_type, body = rng.choice(written)
        kind = rng.random()
        if kind < 0.5:
            yield content_type, None, mutated(body, rng)
        elif kind < 0.75:
            codec = rng.choice(fast)
            yield content_type, codec.content_type, codec.compress(mutated(body, rng))
        else:
            content_type, name, body = rng.choice(packed)
            yield content_type, name, mutated(body, rng)


def _raw(written: str | bytes) -> bytes:
    return written.encode() if isinstance(written, str) else written


def mutated(body: bytes, rng: random.Random) -> bytes:
    """Return a mutated body."""
    changed = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 4, 50)))
        kind = rng.randrange(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at:end]
        elif kind == 3:
            changed[at:at] = rng.choice(SPECIAL_BYTES) * rng.choice((1, 1, 30))
        elif kind == 4:
            changed[at:at] = changed[at:end] * rng.choice((1, 3, 100))
        else:
            changed[at:end] = rng.randbytes(end - at)
    return bytes(changed)


def test_mutated_bodies_are_read_or_refused() -> None:
    """Only DecodingFailed is raised, and no decoded value exceeds a limit."""
    rng = random.Random(SEED)  # noqa: S311 - nothing here is secret
    decoded_count = 0
    for _, (content_type, codec, body) in zip(range(COUNT), bodies(rng), strict=False):
        try:
            raw = body if codec is None else expand(body, codec, CAPS)
            assert len(raw) <= CAPS.max_expanded_bytes
            value = decode(raw, content_type, None, CAPS)
        except DecodingFailed as error:
            assert str(error).isprintable(), (codec, body)  # noqa: PT017
            continue
        check_shape(value, CAPS)
        decoded_count += 1
    assert 0 < decoded_count < COUNT


def test_mutated_bodies_within_messages_are_read_or_refused() -> None:
    """The same with complete messages, as items of a queue."""
    rng = random.Random(SEED + 1)  # noqa: S311
    headers = {"task": "a.command", "id": "1", "lang": "py"}
    for _, (content_type, codec, body) in zip(range(COUNT // 10), bodies(rng), strict=False):
        message = {
            "body": base64.b64encode(body).decode(),
            "content-type": content_type,
            "content-encoding": "binary",
            "headers": headers | ({"compression": codec} if codec else {}),
            "properties": {"delivery_info": {}, "body_encoding": "base64"},
        }
        item = json.dumps(message).encode()
        try:
            read_item(mutated(item, rng) if rng.random() < 0.3 else item, CAPS)
        except DecodingFailed as error:
            assert str(error).isprintable()  # noqa: PT017
