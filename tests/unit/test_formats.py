"""What is written in any format, packed with any codec, is read as what it was; nothing larger is read at all."""

from __future__ import annotations

import enum
import gzip
import json
import subprocess
import sys
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import compression, serialization
from kombu.exceptions import DecodeError
from pydantic import BaseModel
from wire_values import texts, values

from waooaw_celery import Message
from waooaw_celery.agents import InvalidMessage
from waooaw_celery.errors import ConfigurationError, DecodingFailed, EncodingFailed
from waooaw_celery.messages.validation import json_copy, restored, tagged
from waooaw_celery.wire import formats, protobuf
from waooaw_celery.wire.caps import MIB, ActiveCaps, Caps, check_json_nodes
from waooaw_celery.wire.codecs import codec_names, expand, find_codec, install_codecs
from waooaw_celery.wire.formats import decode, encode, find_format
from waooaw_celery.wire.packer import Packer

FORMATS = ("json", "msgpack", "protobuf")
CODECS = ("none", "zlib", "real-gzip", "zstd", "bzip2", "lzma")


def written(value: Any, name: str) -> bytes:
    said = encode(value, find_format(name))
    return said.encode() if isinstance(said, str) else said


def read(body: bytes, name: str, **caps: Any) -> Any:
    return decode(body, find_format(name).content_type, None, Caps(**caps))


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types all through."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@settings(max_examples=300, deadline=None)
@given(value=values, name=st.sampled_from(FORMATS), codec=st.sampled_from(CODECS))
def test_every_value_survives_every_format_and_codec(value: Any, name: str, codec: str) -> None:
    """Types and values are the same on the other side, whatever carried them."""
    packed = Packer(Caps(), compress_above=0).pack(value, name, codec)
    body = packed.body.encode() if isinstance(packed.body, str) else packed.body
    if packed.codec is not None:
        body = expand(body, packed.codec, Caps())
    assert same(decode(body, packed.content_type, packed.content_encoding, Caps()), value)


@settings(max_examples=200, deadline=None)
@given(value=values)
def test_the_ledger_keeps_what_was_said(value: Any) -> None:
    """A value that is written as bare JSON is restored to what it was."""
    assert same(restored(json.loads(json.dumps(value, default=tagged))), value)


@settings(max_examples=200, deadline=None)
@given(value=values)
def test_any_program_with_kombu_reads_our_json(value: Any) -> None:
    """Kombu's own decoder brings the same values, and ours reads what Kombu's own encoder writes."""
    from kombu.utils import json as kombu_json

    assert same(kombu_json.loads(written(value, "json")), value)
    assert same(read(kombu_json.dumps(value).encode(), "json"), value)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: int
    at: datetime


class Order(BaseModel):
    id: UUID
    price: Decimal
    points: list[Any]


AT = datetime(2026, 11, 25, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize("name", FORMATS)
def test_enums_dataclasses_and_models_travel_as_what_they_are_made_of(name: str) -> None:
    """A message made of them brings dicts and values, alike in every format."""
    order = Order(id=UUID(int=5), price=Decimal("1.10"), points=[Point(1, AT), Colour.RED, Level.HIGH, (1, 2)])
    payload = Message(from_agent="a", to_agent="b", payload={"order": order, "level": Level.HIGH}).payload
    points = [{"x": 1, "at": AT}, "red", 3, [1, 2]]
    expected = {"order": {"id": UUID(int=5), "price": Decimal("1.10"), "points": points}, "level": 3}
    assert payload == expected
    assert read(written(payload, name), name) == expected
    # A handler's answer is not copied first.
    assert read(written({"order": order, "level": Level.HIGH}, name), name) == expected


def test_binary_formats_carry_bytes_as_bytes() -> None:
    """A MessagePack reader of any kind finds bytes, and tags for what MessagePack lacks."""
    value = {"raw": b"\x00\xff", "at": AT, "large": 2**70}
    assert msgpack.unpackb(written(value, "msgpack")) == {
        "raw": b"\x00\xff",
        "at": {"__type__": "datetime", "__value__": AT.isoformat()},
        "large": {"__type__": "int", "__value__": str(2**70)},
    }


def test_other_languages_datetimes_are_read() -> None:
    """MessagePack's own timestamp is a datetime; an extension that nobody knows is refused."""
    assert read(msgpack.packb({"at": AT}, datetime=True), "msgpack") == {"at": AT}
    with pytest.raises(DecodingFailed, match="no extension 5"):
        read(msgpack.packb(msgpack.ExtType(5, b"x")), "msgpack")


def test_the_proto_file_is_what_is_written() -> None:
    """The schema for other languages has the fields, numbers and kinds of the one that is used."""
    import re

    text = (Path(protobuf.__file__).parent / "value.proto").read_text()
    fields = {name: int(number) for name, number in re.findall(r"^  [\w ]+ ([a-z]+) = (\d+);", text, re.MULTILINE)}
    assert fields == {field.name: field.number for field in protobuf.Value.DESCRIPTOR.fields}
    kinds = dict(re.findall(r"^    ([A-Z]+) = (\d);", text, re.MULTILINE))
    assert list(kinds) == list(protobuf.KINDS)
    assert [int(number) for number in kinds.values()] == list(range(len(kinds)))


# --- bad input


def deep(name: str, levels: int) -> bytes:
    if name == "json":
        return b"[" * levels + b"]" * levels
    if name == "msgpack":
        return b"\x91" * (levels - 1) + b"\x90"
    body = b"\x08\x07"  # an empty list
    for _ in range(levels - 1):
        length, size = len(body), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        body = b"\x08\x07\x3a" + size + bytes([length]) + body
    return body


@pytest.mark.parametrize("name", FORMATS)
def test_nesting_is_bounded_exactly(name: str) -> None:
    """As many levels as are accepted are read, and one more is refused; so are 2,000."""
    read(deep(name, 80), name)
    for levels in (81, 2000):
        with pytest.raises(DecodingFailed):
            read(deep(name, levels), name)


def test_two_hundred_thousand_levels_are_refused() -> None:
    """What would overflow the stack is an error like any other."""
    for name in ("json", "msgpack"):
        with pytest.raises(DecodingFailed):
            read(deep(name, 200_000), name)


@pytest.mark.parametrize("name", FORMATS)
def test_the_number_of_values_is_bounded(name: str) -> None:
    """As many values as are accepted are read, and one more is refused."""
    value = [[1, 2], {"a": None}, 'text, with [commas], {braces} and "quotes"']
    body = written(value, name)
    assert read(body, name, max_nodes=7) == value
    with pytest.raises(DecodingFailed, match="values"):
        read(body, name, max_nodes=6, max_depth=1)


@pytest.mark.parametrize("name", FORMATS)
def test_many_values_are_refused_before_they_are_made(name: str) -> None:
    """Millions of empty lists cost no memory."""
    import tracemalloc

    one = {"json": b"[],", "msgpack": b"\x90", "protobuf": b"\x3a\x02\x08\x07"}[name]
    count = 3_000_000
    body = {
        "json": lambda: b"[" + one * count + b"[]]",
        "msgpack": lambda: b"\xdd" + count.to_bytes(4, "big") + one * count,
        "protobuf": lambda: b"\x08\x07" + one * count,
    }[name]()
    tracemalloc.start()
    try:
        with pytest.raises(DecodingFailed, match="values"):
            read(body, name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * MIB


def test_lists_that_say_that_they_are_long_are_not_made_so_long() -> None:
    """MessagePack's lists of a million items within each other, with nothing in them, are refused at once."""
    body = b"\xdd\x00\x0f\x42\x40" * 900 + b"\x01" * 200_000
    with pytest.raises(DecodingFailed):
        read(body, "msgpack")


def test_texts_do_not_count_as_values() -> None:
    """A long text full of commas and brackets is one value; one without an end takes no long time to refuse."""
    text = json.dumps(['[{,"' * 100_000]).encode()
    check_json_nodes(text, Caps(max_nodes=3))
    with pytest.raises(DecodingFailed):
        check_json_nodes(b'["' + b'\\",' * 3_000_000 + b'",[],[],[]', Caps(max_nodes=3))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("json", b'{"a": 1, "a": 2}'),
        ("json", b'[{"b": {"a": 1, "a": 1}}]'),
        ("msgpack", b"\x82\xa1a\x01\xa1a\x02"),
        ("protobuf", b"\x08\x08\x32\x01a\x32\x01a\x3a\x00\x3a\x00"),
    ],
)
def test_keys_that_are_there_twice_are_refused(name: str, body: bytes) -> None:
    """Two readers could take different ones."""
    with pytest.raises(DecodingFailed, match="twice"):
        read(body, name)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("json", b"NaN"),
        ("json", b"[Infinity]"),
        ("json", b"[-Infinity]"),
        ("json", b""),
        ("json", b"\xff"),
        ("json", b"[1"),
        ("json", b"[1] [2]"),
        ("json", b'{"__type__": "datetime", "__value__": "soon"}'),
        ("json", b'{"__type__": "uuid", "__value__": {"hex": 5}}'),
        ("json", b'{"__type__": ["x"], "__value__": 1}'),
        ("json", b'{"__type__": "nonsense", "__value__": 1}'),
        ("json", b'{"__type__": "int", "__value__": 1.5}'),
        ("json", b"9" * 5000),
        ("msgpack", b""),
        ("msgpack", b"\xc1"),
        ("msgpack", b"\x01\x01"),
        ("msgpack", b"\x92\x01"),
        ("msgpack", b"\x81\x01\x01"),
        ("msgpack", b"\x81\xc4\x01a\x01"),
        ("msgpack", b"\xa1\xff"),
        ("msgpack", b"\x82\xa8__type__\xa3int\xa9__value__\x01"),
        ("protobuf", b"\xff"),
        ("protobuf", b"\x08\x63"),
        ("protobuf", b"\x08\x08\x32\x01a"),
        ("protobuf", b"\x08\x05\x22\x01\xff"),
    ],
)
def test_what_is_not_in_its_format_is_refused(name: str, body: bytes) -> None:
    """Truncated, corrupt and impossible bodies are one error, with a sentence that can be printed."""
    with pytest.raises(DecodingFailed) as refused:
        read(body, name)
    assert str(refused.value).isprintable()


def test_formats_that_are_not_accepted_are_refused() -> None:
    """Neither what a consumer does not accept, nor pickle, nor a name that nobody knows is decoded."""
    for content_type, caps in (
        ("application/x-msgpack", Caps(content_types=("application/json",))),
        ("application/x-python-serialize", Caps()),
        ("application/x-yaml", Caps()),
    ):
        with pytest.raises(DecodingFailed):
            decode(b"\x80\x04N.", content_type, None, caps)


def test_kombu_decodes_within_the_bounds_of_this_process() -> None:
    """What Kombu decodes and unpacks by itself is read by the same decoders, once there is an application."""
    formats.install_formats()
    install_codecs()
    with pytest.raises(DecodeError, match="twice"):
        serialization.loads(b'{"a": 1, "a": 1}', "application/json", "utf-8", accept={"application/json"})
    bomb = zlib.compress(bytes(17 * MIB))
    with pytest.raises(DecodingFailed, match="more than 16777216 bytes"):
        compression.decompress(bomb, "application/x-gzip")
    assert compression.decompress(gzip.compress(b"x"), "application/x-gzip") == b"x"


_BYSTANDER = """
import sys
from kombu import compression, serialization
assert not [name for name in sys.modules if name.startswith("waooaw_celery")]
body = serialization.dumps({"a": [1, b"x"]}, "protobuf")
assert serialization.loads(body[2], body[0], body[1], accept={"application/x-protobuf"}) == {"a": [1, b"x"]}
import waooaw_celery.cli
twice = b'{"a": 1, "a": 2}'
assert serialization.loads(twice, "application/json", "utf-8", accept={"application/json"}) == {"a": 2}
assert compression.decompress(compression.compress("x", "gzip")[0], "gzip") == b"x"
"""


def test_a_program_that_does_not_use_the_package_keeps_its_own_decoders() -> None:
    """Installed, it brings Kombu a format; imported, as by the ``celery`` command, it changes nothing else."""
    subprocess.run([sys.executable, "-c", _BYSTANDER], check=True, timeout=60)


def test_a_process_accepts_what_the_most_generous_of_its_applications_accepts() -> None:
    """The first application's caps replace the defaults; each one's widen them."""
    process = ActiveCaps()
    process.widen(Caps(max_nodes=10, max_depth=50))
    assert (process.caps.max_nodes, process.caps.max_depth) == (10, 50)
    process.widen(Caps(max_nodes=5, max_depth=60))
    assert (process.caps.max_nodes, process.caps.max_depth) == (10, 60)


# --- sending


@pytest.mark.parametrize(
    ("value", "name", "sentence"),
    [
        (float("nan"), "json", "cannot be written as json"),
        ({1, 2}, "msgpack", "cannot be written as msgpack"),
        (object(), "protobuf", "cannot be written as protobuf"),
        ("\ud800", "msgpack", "cannot be written as msgpack.*surrogates"),
        ("\ud800", "protobuf", "cannot be written as protobuf"),
        ([[[]]], "json", "nested deeper than 2 levels"),
        (list(range(50)), "msgpack", "more than 40 values"),
        ("x" * 200, "json", r"202 bytes, more than waooaw_max_expanded_bytes = 150"),
    ],
)
def test_what_would_be_refused_is_not_sent(value: Any, name: str, sentence: str) -> None:
    """One sentence says what is wrong, before anything is published."""
    packer = Packer(Caps(max_depth=2, max_nodes=40, max_expanded_bytes=150))
    for refuse in (packer.pack, packer.check):
        with pytest.raises(EncodingFailed, match=sentence):
            refuse(value, name, None)


def test_a_body_may_be_larger_unpacked_than_as_it_travels() -> None:
    """What packs well is sent although it is larger than what may travel; what does not is refused."""
    packer = Packer(Caps(max_body_bytes=2000))
    packer.check("x" * 10_000, "json", None)
    assert len(packer.pack("x" * 10_000, "json", None).body) < 100
    with pytest.raises(EncodingFailed, match="more than waooaw_max_body_bytes = 2000"):
        packer.check("x" * 10_000, "json", "none")


def test_small_bodies_and_those_that_do_not_become_smaller_are_not_packed() -> None:
    """Above the threshold, and when a tenth is saved: then the codec is named, and otherwise nothing is."""
    import random

    packer = Packer(Caps(), compress_above=1024)
    assert packer.pack("x" * 1022, "json", None).codec is None
    assert packer.pack("x" * 1023, "json", None).codec == "application/x-gzip"
    noise = random.Random(1).randbytes(3000)  # noqa: S311 - to be packed, not a secret
    assert packer.pack(noise, "msgpack", "zstd").codec is None
    assert packer.pack("x" * 5000, "json", "none").codec is None


@pytest.mark.parametrize(("name", "codec"), list(product(FORMATS, CODECS)))
def test_the_choice_is_heeded(name: str, codec: str) -> None:
    """A message names its format and its codec, by Kombu's names."""
    packed = Packer(Caps()).pack("again and " * 500, name, codec)
    assert serialization.registry.type_to_name[packed.content_type] == name
    assert packed.codec == (None if codec == "none" else find_codec(codec).content_type)


@pytest.mark.parametrize(("serializer", "codec"), [("jsn", None), ("json", "gzap"), ("pickle5", "none")])
def test_a_choice_that_there_is_not_is_told(serializer: str, codec: str | None) -> None:
    """The sentence names those that there are."""
    with pytest.raises(ConfigurationError, match="choose one of"):
        Packer(Caps()).check("x", serializer, codec)


def test_codecs_that_are_not_accepted_are_not_unpacked() -> None:
    """A codec beyond the allow-list is refused by name, and one that nobody knows always."""
    packed = zlib.compress(b"x")
    assert expand(packed, "gzip", Caps(codecs=("application/x-gzip",))) == b"x"
    for codec, caps in (("application/x-gzip", Caps(codecs=())), ("application/x-br", Caps())):
        with pytest.raises(DecodingFailed, match="not accepted"):
            expand(packed, codec, caps)


@given(name=texts)
@settings(max_examples=50)
def test_a_payload_is_never_taken_for_a_tag(name: str) -> None:
    """A mapping that looks like a tag is refused, whatever it says of its type."""
    with pytest.raises(InvalidMessage, match="rename one"):
        json_copy({"__type__": name, "__value__": 1}, "payload")


def test_the_bounded_formats_and_codecs_are_known_by_name() -> None:
    """Those that this package brings are all there where they are installed."""
    assert set(FORMATS) <= set(formats.format_names())
    assert set(CODECS) - {"none"} <= set(codec_names())
