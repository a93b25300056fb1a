"""Every value survives every format and codec, and a format is used only if it is accepted."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed
from pydantic import BaseModel
from wire_values import CODECS, FORMATS, decoded, encoded, texts, values

from waooaw_celery import Message
from waooaw_celery.agents import InvalidMessage
from waooaw_celery.errors import ConfigurationError, DecodingFailed
from waooaw_celery.messages.validation import json_copy, restored, tagged
from waooaw_celery.wire import formats, protobuf
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import codec_names, expand
from waooaw_celery.wire.formats import decode, decode_accepted, decode_again, encode, find_format, format_names
from waooaw_celery.wire.packer import Packer


def equal_with_types(one: Any, other: Any) -> bool:
    """Whether two values are equal and have the same types at every level."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal_with_types, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_with_types(one[key], other[key]) for key in one)
    return bool(one == other)


@settings(max_examples=150, deadline=None)
@given(value=values, name=st.sampled_from(FORMATS), codec=st.sampled_from(CODECS))
def test_every_value_survives_every_format_and_codec(value: Any, name: str, codec: str) -> None:
    """The decoded value is equal to the encoded one and has the same types."""
    packed = Packer(Caps(), compress_above=0).pack(value, name, codec)
    body = packed.body.encode() if isinstance(packed.body, str) else packed.body
    if packed.codec is not None:
        body = expand(body, packed.codec, Caps())
    assert equal_with_types(decode(body, packed.content_type, packed.content_encoding, Caps()), value)


@settings(max_examples=100, deadline=None)
@given(value=values)
def test_a_value_is_restored_from_tagged_json(value: Any) -> None:
    """A value that the ledger stores as JSON with tags is restored with its types."""
    assert equal_with_types(restored(json.loads(json.dumps(value, default=tagged))), value)


@settings(max_examples=100, deadline=None)
@given(value=values)
def test_json_is_compatible_with_kombu(value: Any) -> None:
    """Kombu decodes what this package encodes, and the other way round."""
    from kombu.utils import json as kombu_json

    assert equal_with_types(kombu_json.loads(encoded(value, "json")), value)
    assert equal_with_types(decoded(kombu_json.dumps(value).encode(), "json"), value)


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
def test_enums_dataclasses_and_models_become_plain_values(name: str) -> None:
    """They are decoded as dicts and values, the same in every format."""
    order = Order(id=UUID(int=5), price=Decimal("1.10"), points=[Point(1, AT), Colour.RED, Level.HIGH, (1, 2)])
    payload = Message(from_agent="a", to_agent="b", payload={"order": order, "level": Level.HIGH}).payload
    points = [{"x": 1, "at": AT}, "red", 3, [1, 2]]
    expected = {"order": {"id": UUID(int=5), "price": Decimal("1.10"), "points": points}, "level": 3}
    assert payload == expected
    assert decoded(encoded(payload, name), name) == expected
    # The result of a handler is encoded without a copy.
    assert decoded(encoded({"order": order, "level": Level.HIGH}, name), name) == expected


def test_messagepack_is_readable_without_this_package() -> None:
    """Bytes are MessagePack's own, and types that MessagePack lacks are tagged mappings."""
    value = {"raw": b"\x00\xff", "at": AT, "large": 2**70}
    assert msgpack.unpackb(encoded(value, "msgpack")) == {
        "raw": b"\x00\xff",
        "at": {"__type__": "datetime", "__value__": AT.isoformat()},
        "large": {"__type__": "int", "__value__": str(2**70)},
    }


def test_a_messagepack_timestamp_becomes_a_datetime() -> None:
    """MessagePack's own timestamp is decoded; an unknown extension is refused."""
    assert decoded(msgpack.packb({"at": AT}, datetime=True), "msgpack") == {"at": AT}
    with pytest.raises(DecodingFailed, match="no extension 5"):
        decoded(msgpack.packb(msgpack.ExtType(5, b"x")), "msgpack")


def test_the_proto_file_matches_the_schema_in_use() -> None:
    """The schema for other languages has the same fields, numbers and kinds."""
    import re

    text = (Path(protobuf.__file__).parent / "value.proto").read_text()
    fields = {name: int(number) for name, number in re.findall(r"^  [\w ]+ ([a-z]+) = (\d+);", text, re.MULTILINE)}
    assert fields == {field.name: field.number for field in protobuf.Value.DESCRIPTOR.fields}
    kinds = dict(re.findall(r"^    ([A-Z]+) = (\d);", text, re.MULTILINE))
    assert list(kinds) == list(protobuf.KINDS)
    assert [int(number) for number in kinds.values()] == list(range(len(kinds)))


def test_a_format_that_is_not_accepted_is_refused() -> None:
    """A format outside ``content_types``, pickle, and an unknown format are not decoded."""
    for content_type, caps in (
        ("application/x-msgpack", Caps(content_types=("application/json",))),
        ("application/x-python-serialize", Caps()),
        ("application/x-yaml", Caps()),
    ):
        with pytest.raises(DecodingFailed):
            decode(b"\x80\x04N.", content_type, None, caps)


def test_a_message_is_decoded_as_kombu_does_and_within_the_caps() -> None:
    """A format that is not accepted is refused; an empty body and Kombu's own formats are left to Kombu."""
    json_type, yaml_type = "application/json", "application/x-yaml"
    caps = Caps(max_nodes=3, content_types=())
    assert decode_accepted(b"[1, 2]", json_type, "utf-8", None, caps) == [1, 2]
    assert decode_accepted(b"[1, 2]", json_type, "utf-8", {json_type}, caps) == [1, 2]
    assert decode_accepted(b"", json_type, "utf-8", {json_type}, caps) == b""
    assert decode_accepted(b"- 1", yaml_type, "utf-8", {yaml_type}, caps) == [1]
    assert decode_accepted(b"text", "application/data", "binary", {json_type}, caps) == b"text"
    with pytest.raises(DecodingFailed, match="more than 3 values"):
        decode_accepted(b"[1, 2, 3]", json_type, "utf-8", {json_type}, caps)
    for content_type, accept in ((json_type, {yaml_type}), (yaml_type, {json_type})):
        with pytest.raises(ContentDisallowed):
            decode_accepted(b"[1]", content_type, "utf-8", accept, caps)


_PLAIN_PROGRAM = """
import sys
from kombu import compression, serialization
loaded = {name for name in sys.modules if name.startswith("waooaw_celery")}
assert loaded == {"waooaw_celery", "waooaw_celery.wire", "waooaw_celery.wire.entry_points"}, loaded
body = serialization.dumps({"a": [1, b"x"]}, "protobuf")
assert serialization.loads(body[2], body[0], body[1], accept={"application/x-protobuf"}) == {"a": [1, b"x"]}
import waooaw_celery.cli
twice = b'{"a": 1, "a": 2}'
assert serialization.loads(twice, "application/json", "utf-8", accept={"application/json"}) == {"a": 2}
assert compression.decompress(compression.compress("x", "gzip")[0], "gzip") == b"x"
"""


def test_a_program_that_makes_no_application_keeps_kombus_decoders() -> None:
    """Installed, the package adds Protobuf to Kombu; imported, as by the ``celery`` command, it adds nothing."""
    subprocess.run([sys.executable, "-c", _PLAIN_PROGRAM], check=True, timeout=60)


@given(name=texts)
@settings(max_examples=50)
def test_a_payload_cannot_look_like_a_tagged_value(name: str) -> None:
    """A mapping with both tag keys is refused, whatever type it names."""
    with pytest.raises(InvalidMessage, match="rename one"):
        json_copy({"__type__": name, "__value__": 1}, "payload")


def test_all_formats_and_codecs_are_registered() -> None:
    """With the optional dependencies installed, none is missing."""
    assert set(FORMATS) <= set(formats.format_names())
    assert set(CODECS) - {"none"} <= set(codec_names())


def test_a_format_is_found_by_name_and_content_type() -> None:
    """Other formats come from Kombu; an unknown name lists the bounded ones."""
    assert find_format("msgpack") is find_format("application/x-msgpack") is formats.MSGPACK_FORMAT
    assert {"json", "msgpack", "protobuf"} <= set(format_names())
    yaml = find_format("yaml")
    assert (yaml.name, yaml.content_type, yaml.content_encoding) == ("yaml", "application/x-yaml", "utf-8")
    assert find_format("application/x-yaml").name == "yaml"
    assert yaml.decode(b"[1, 2]", Caps()) == [1, 2]
    assert encode([1], yaml) == "- 1\n"
    with pytest.raises(ConfigurationError, match=r"there is no format 'x': choose one of json, msgpack, protobuf"):
        find_format("x")


def test_a_format_of_kombu_is_decoded_with_its_encoding_and_checked() -> None:
    """A format that only Kombu knows is decoded if it is accepted, and its result is checked against the caps."""
    accepted = Caps(content_types=("application/x-yaml",), max_depth=1)
    assert decode(b"- 1\n", "application/x-yaml", None, accepted) == [1]
    text = Caps(content_types=("text/x-unknown",))
    assert decode("\u00fc".encode("latin-1"), "text/x-unknown", "latin-1", text) == "\u00fc"
    assert decode("\u00fc".encode(), "text/x-unknown", None, text) == "\u00fc"
    with pytest.raises(DecodingFailed, match="deeper than 1"):
        decode(b"- [1]\n", "application/x-yaml", None, accepted)


def test_the_depth_of_a_body_is_checked_only_if_it_may_be_too_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body with as many containers as levels are allowed cannot be too deep."""
    body = b"[[1], [2]]"
    checked = []
    monkeypatch.setattr(formats, "check_shape", lambda value, caps: checked.append(value))
    decode(body, "application/json", None, Caps(max_depth=3))
    decode(memoryview(body), "application/json", None, Caps(max_depth=3))
    decode(body.decode(), "application/json", None, Caps(max_depth=3))
    assert checked == []
    decode(body, "application/json", None, Caps(max_depth=2))
    assert checked == [[[1], [2]]]


def test_containers_in_json_are_counted_in_text_and_bytes() -> None:
    """Lists and mappings alike."""
    text = '{"a": [1, [], []]}'
    assert formats._count_json_containers(text) == formats._count_json_containers(text.encode()) == 4


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, "x"]}, {"at": datetime(2026, 11, 29, tzinfo=UTC)}, {"ü": "\\u005f"}, [], 10**40]
)
def test_a_body_that_was_accepted_is_decoded_to_the_same_value_again(value: Any) -> None:
    """The second time, without the checks, gives what the first one gives."""
    body = encode(value, find_format("json"))
    assert decode_again(body, "application/json", None, Caps()) == value
    assert decode(body, "application/json", None, Caps()) == value


def test_a_tagged_value_with_escapes_is_restored_again() -> None:
    """A sender may write any character as an escape, also those of the key."""
    body = rb'{"\u005f_type__": "uuid", "__value\u005f_": {"hex": "00000000000000000000000000000001"}}'
    assert decode_again(body, "application/json", None, Caps()) == decode(body, "application/json", None, Caps())
    assert isinstance(decode_again(body, "application/json", None, Caps()), UUID)
