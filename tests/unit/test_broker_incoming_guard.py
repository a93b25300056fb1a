"""The guard: checks before a message is unpacked, so that no message can end or block a worker."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from celery.exceptions import InvalidTaskError
from celery.utils.time import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import compression
from kombu.asynchronous.timer import to_timestamp
from kombu.utils.json import dumps as kombu_dumps
from malformed_messages import CASES, FORGED, ODD_ZONE, Case, End, body, bomb, packed, real, zstd

from waooaw_celery import AgentApp, create_app
from waooaw_celery.broker.incoming.guard import check_message, check_task_body, read_item
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.messages.message import Message
from waooaw_celery.wire.caps import MIB, Caps
from waooaw_celery.wire.codecs import expand
from waooaw_celery.worker.request import AgentRequest
from waooaw_celery.worker.task import AgentTask

JSON = Caps(content_types=frozenset({"application/json"}))
CODECS = ("application/x-gzip", "application/x-bz2", "application/x-lzma", "application/zstd")


def _zstd(data: bytes) -> bytes:
    """Compress with a checksum: without one, a damaged archive may unpack to something else."""
    return bytes(zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}))


PACKERS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("application/x-gzip", zlib.compress),
    ("gzip", gzip.compress),
    ("zlib", zlib.compress),
    ("application/x-bz2", bz2.compress),
    ("bzip2", bz2.compress),
    ("application/x-lzma", lzma.compress),
    ("xz", lzma.compress),
    ("application/zstd", _zstd),
    ("zstd", _zstd),
)


def message(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return a task's message as Celery makes it and Kombu sends it."""
    app = Celery("guard", set_as_current=False)
    task = app.amqp.as_task_v2("a-b-c", "agent.work", args, kwargs)
    return {
        "body": json.dumps(task.body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": json.loads(kombu_dumps(task.headers)),
        "properties": {
            **task.properties,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "agent.worker"},
            "priority": 6,
            "body_encoding": None,
            "delivery_tag": "d41d8cd9-8f00-b204-e980-0998ecf8427e",
        },
    }


def reason_for_refusal(item: bytes, caps: Caps = JSON) -> str:
    """Return why an item is refused."""
    with pytest.raises(DecodingFailed) as refused:
        read_item(item, caps)
    return str(refused.value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_malformed_messages_are_refused_with_a_printable_reason(case: Case) -> None:
    """Messages that would end or block a worker are refused, and no others."""
    item = case.make(message({"a": 1}, b=2))
    if case.end is End.DEAD:
        assert reason_for_refusal(item).isprintable()
    else:
        read_item(item, JSON)


def test_large_headers_are_refused_and_a_large_body_is_read() -> None:
    """The limit of the headers counts the headers alone."""
    caps = Caps(content_types=JSON.content_types, max_header_bytes=4000)
    large = message("x" * 5000)
    assert read_item(real(large), caps).decoded[0] == ["x" * 5000]
    large["headers"]["note"] = "x" * 4000
    assert "its headers have about" in reason_for_refusal(real(large), caps)


def test_valid_message_is_read_as_it_was_sent() -> None:
    """The delivery has all fields of the message, its unpacked body and its decoded arguments."""
    sent = message({"a": [1, "ü", None]}, b=2.5)
    delivery = read_item(real(sent), JSON)
    assert dict(delivery) == sent
    assert delivery.body == sent["body"].encode()
    assert delivery.decoded[0] == [{"a": [1, "ü", None]}]
    assert delivery.decoded[1] == {"b": 2.5}


@pytest.mark.parametrize("encoding", [None, "utf-8", "UTF-8", "base64"])
def test_every_body_encoding_brings_the_same_arguments(encoding: str | None) -> None:
    """Kombu's encodings of a body bring the same arguments."""
    sent = message("ü")
    text = base64.b64encode(sent["body"].encode()).decode() if encoding == "base64" else sent["body"]
    assert read_item(body(sent, text, body_encoding=encoding), JSON).decoded[0] == ["ü"]


def test_values_that_kombu_wraps_are_unwrapped() -> None:
    """A UUID among the arguments or in a header arrives as a UUID."""
    id_ = UUID(int=7)
    sent = message()
    sent["headers"]["x"] = {"__type__": "uuid", "__value__": {"hex": id_.hex, "version": None}}
    text = kombu_dumps([[id_], {}, {}])
    delivery = read_item(body(sent, text), JSON)
    assert (delivery["headers"]["x"], delivery.decoded[0]) == (id_, [id_])


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "\u200b", "é\xa0", "\u2028"])
def test_argsrepr_may_have_any_character(text: str) -> None:
    """Celery copies texts into ``argsrepr`` and ``kwargsrepr`` unchanged, so they may have line breaks."""
    sent = message(text, key=text)
    assert text in sent["headers"]["argsrepr"] + sent["headers"]["kwargsrepr"]
    assert read_item(real(sent), JSON).decoded[0] == [text]


def test_message_without_task_headers_is_not_decoded() -> None:
    """An event or a result has no task headers, and its body is not decoded."""
    for headers in (None, {}, {"hostname": "a\nb"}):
        other = message() | {"headers": headers, "body": "not JSON", "content-type": "text/plain"}
        delivery = read_item(real(other), JSON)
        assert (delivery["headers"], delivery.body, delivery.decoded) == (headers or {}, b"not JSON", None)


@pytest.mark.parametrize(
    "name", ["task", "id", "origin", "root_id", "parent_id", "group", "shadow", "eta", "expires"]
)
def test_headers_cannot_forge_log_lines(name: str) -> None:
    """A header that logs show is refused if it has a line break, and the reason has none."""
    sent = message()
    sent["headers"][name] = FORGED
    reason = reason_for_refusal(real(sent))
    assert name in reason
    assert reason.isprintable()


@pytest.mark.parametrize(
    "name", ["origin", "root_id", "parent_id", "group", "shadow", "timelimit", "retries", "stamps"]
)
def test_optional_headers_may_be_missing_or_null(name: str) -> None:
    """Headers that other producers do not write may be missing or null."""
    sent = message()
    sent["headers"].pop(name, None)
    read_item(real(sent), JSON)
    sent["headers"][name] = None
    read_item(real(sent), JSON)


def test_id_has_at_most_255_characters() -> None:
    """An id of 255 characters is accepted, and one of 256 is not."""
    sent = message()
    sent["headers"]["id"] = "x" * 255
    read_item(real(sent), JSON)
    sent["headers"]["id"] += "x"
    assert "255" in reason_for_refusal(real(sent))


@pytest.mark.parametrize("limits", [[None, None], [1, 2], [1.5, None]])
def test_valid_time_limits_are_accepted(limits: list[Any]) -> None:
    """A time limit is a pair of seconds, each of which may be null."""
    sent = message()
    sent["headers"]["timelimit"] = limits
    read_item(real(sent), JSON)


@pytest.mark.parametrize(
    "limits",
    [
        *("xyz", 5, [1], [1, 2, 3], ["1", 2], [True, 2], [float("nan"), 1], [1, float("inf")]),
        *([10**400, 1], [1, -(10**400)], [-1, None], [1e300, None]),
    ],
)
def test_invalid_time_limits_are_refused(limits: Any) -> None:
    """Anything but a pair of finite numbers would end the worker."""
    sent = message()
    sent["headers"]["timelimit"] = limits
    assert "timelimit" in reason_for_refusal(real(sent))


@pytest.mark.parametrize(
    "wrong", [None, "text", 5, {}, [], [[], {}], [[], {}, {}, {}], [{}, {}, {}], [[], [], {}], [[], {}, []]]
)
def test_body_of_a_wrong_shape_is_refused(wrong: Any) -> None:
    """Only a triple of list, mapping and mapping is the body of a task."""
    check_task_body([[], {}, None])
    check_task_body(((), {}, {"chain": None}))
    with pytest.raises(DecodingFailed):
        check_task_body(wrong)


def test_only_accepted_formats_are_decoded() -> None:
    """A format that is not accepted is refused by name. Pickle is always refused."""
    sent = message()
    sent["content-type"] = "application/x-yaml"
    assert "application/x-yaml" in reason_for_refusal(real(sent))
    sent["content-type"] = "application/x-python-serialize"
    assert "not" in reason_for_refusal(real(sent), Caps())
    sent["content-type"] = "application/data"
    assert "application/data" in reason_for_refusal(real(sent), Caps())


def test_size_limits_are_exact() -> None:
    """A message and its body may be as large as the limits, and not a byte larger."""
    sent = message("x" * 1000)
    item, size = real(sent), len(sent["body"])
    read_item(item, Caps(max_body_bytes=size, max_expanded_bytes=size))
    assert str(size - 1) in reason_for_refusal(item, Caps(max_body_bytes=size - 1))
    assert str(size) in reason_for_refusal(item, Caps(max_expanded_bytes=size - 1))
    item = packed(sent, zlib.compress(sent["body"].encode()), "application/x-gzip")
    read_item(item, Caps(max_expanded_bytes=size))
    assert f"more than {size - 1}" in reason_for_refusal(item, Caps(max_expanded_bytes=size - 1))


@pytest.mark.parametrize(("codec", "pack"), PACKERS)
def test_archives_are_unpacked_up_to_the_limit(codec: str, pack: Callable[[bytes], bytes]) -> None:
    """Each codec, by each of its names, unpacks up to the limit, and not beyond it."""
    data = random.Random(7).randbytes(10_000)  # noqa: S311 - test data, not a secret
    assert expand(pack(data), codec, Caps(max_expanded_bytes=len(data))) == data
    with pytest.raises(DecodingFailed, match="more than 9999 bytes"):
        expand(pack(data), codec, Caps(max_expanded_bytes=len(data) - 1))


@pytest.mark.parametrize(("codec", "pack"), PACKERS)
def test_damaged_archives_are_refused(codec: str, pack: Callable[[bytes], bytes]) -> None:
    """A truncated archive is refused. One with a changed byte is refused or unpacks to the same data."""
    data = b"messages " * 50
    whole = pack(data)
    for length in range(len(whole)):
        with pytest.raises(DecodingFailed):
            expand(whole[:length], codec, Caps(max_expanded_bytes=1000))
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        with suppress(DecodingFailed):
            # The byte has no meaning, such as a time stamp.
            assert expand(bytes(damaged), codec, Caps(max_expanded_bytes=1000)) == data


def test_empty_archive_is_refused() -> None:
    """A message with a compression header and no body is refused."""
    for empty in (None, b""):
        with pytest.raises(DecodingFailed, match="is truncated"):
            expand(empty, "gzip", Caps())


def test_every_codec_of_kombu_is_accepted() -> None:
    """No codec that Kombu can unpack is refused for its name."""
    for codec in {*compression._decoders, *compression._aliases}:
        with pytest.raises(DecodingFailed) as refused:
            expand(b"no archive", codec, Caps())
        assert "not accepted" not in str(refused.value)


@pytest.mark.parametrize("codec", CODECS)
def test_decompression_bomb_is_refused(codec: str) -> None:
    """300 MB in a message of a few hundred KB are refused with less than 50 MB of memory."""
    item = packed(message(), bomb(codec), codec)
    assert len(item) < MIB
    tracemalloc.start()
    try:
        assert "more than 16777216 bytes" in reason_for_refusal(item)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * MIB


_PEAK = """
import resource, sys
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.broker.incoming.guard import read_item
from waooaw_celery.wire.caps import Caps
item = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_item(item, Caps())
except DecodingFailed:
    pass
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) // (1024 if sys.platform == "linux" else 1024 * 1024))
"""


def lzma_with_a_huge_dictionary() -> bytes:
    """Return a few bytes of LZMA that ask for a dictionary of 1.5 GB."""
    archive = bytearray(lzma.compress(b"[[], {}, {}]", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 8 * MIB}]))
    archive[archive.index(b"\x21\x01") + 2] = 37  # the format's code for 1.5 GB
    end = 12 + (archive[12] + 1) * 4  # of the block header: its last four bytes are the checksum
    archive[end - 4 : end] = zlib.crc32(bytes(archive[12 : end - 4])).to_bytes(4, "little")
    return bytes(archive)


@pytest.mark.parametrize("codec", [*CODECS, "xz"])
def test_decompression_bomb_takes_no_native_memory(codec: str, tmp_path: Path) -> None:
    """The C libraries too take less than 50 MB, also for an archive that asks for a huge dictionary."""
    path = tmp_path / "bomb"
    path.write_bytes(packed(message(), lzma_with_a_huge_dictionary() if codec == "xz" else bomb(codec), codec))
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, path], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(result.stdout) < 50


#: Values for each header and property that Celery's strategy and Request read.
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31 - 1, 2**63, 10**400, -(10**400), 0.5, 1e300, -1e300, 1e999, float("nan")),
    *("", "x", "a\nb", "\ud800", ODD_ZONE, "0001-01-01", "9999-12-31T23:59:59-14:00", "2026-W01-1", "20260101"),
    *([], [10**400], [10**400, None], [None, -5], [1e300, 1e300], [None, None], ["x"], ["a", 1], [[]]),
    *({}, {"a": 10**400}, {"__type__": "decimal", "__value__": "1e999999"}, {"a": [{}]}),
)
_READ_BY_CELERY: tuple[tuple[str, str], ...] = (
    *(("headers", name) for name in ("lang", "task", "id", "root_id", "parent_id", "group", "group_index")),
    *(("headers", name) for name in ("shadow", "meth", "eta", "expires", "retries", "timelimit", "origin")),
    *(("headers", name) for name in ("argsrepr", "kwargsrepr", "ignore_result", "replaced_task_nesting")),
    *(("headers", name) for name in ("stamps", "stamped_headers", "properties", "delivery_info", "hostname")),
    *(("headers", name) for name in ("reply_to", "correlation_id", "chord", "args", "kwargs", "compression")),
    *(("headers", name) for name in ("waooaw", "waooaw_reply_to", "waooaw_recovered", "x-delivery-count")),
    *(("properties", name) for name in ("priority", "reply_to", "correlation_id", "delivery_mode")),
    *(("delivery_info", name) for name in ("exchange", "routing_key", "redelivered", "priority")),
)


class _Received:
    """What Celery's Request reads of a message."""

    def __init__(self, delivery: Any) -> None:
        self.headers, self.body, self.payload = delivery["headers"], delivery.body, delivery.decoded
        self.properties = delivery["properties"]
        self.delivery_info = self.properties["delivery_info"]
        self.content_type, self.content_encoding = delivery["content-type"], delivery["content-encoding"]


@pytest.fixture(scope="module")
def worker_app() -> AgentApp:
    """An application with the task of the messages in these tests."""
    app = create_app("guard", broker_url="redis://localhost:1")

    def work(*args: Any, **kwargs: Any) -> None:
        pass

    app.task(work, name="agent.work", base=AgentTask)
    return app


@pytest.mark.parametrize(("part", "name"), _READ_BY_CELERY, ids=str)
def test_celery_accepts_whatever_passes_the_guard(part: str, name: str, worker_app: AgentApp) -> None:
    """An odd value of a header is refused, or Celery makes a request of it: nothing else is raised."""
    request_count = 0
    for odd in _ODD_VALUES:
        sent = message({"a": 1})
        (sent["properties"]["delivery_info"] if part == "delivery_info" else sent[part])[name] = odd
        try:
            delivery = read_item(real(sent), JSON)
        except DecodingFailed:
            continue
        task: Any = worker_app.tasks.get(delivery["headers"]["task"])
        if task is None:
            continue  # the consumer makes a dead letter of it
        try:
            request = AgentRequest(
                _Received(delivery),
                app=worker_app,
                task=task,
                headers=delivery["headers"],
                body=delivery.body,
            )
        except InvalidTaskError:
            continue  # the consumer makes a dead letter of it
        assert all(isinstance(text, str) for text in (str(request), repr(request)))
        assert isinstance(request.info(), dict)
        assert isinstance(request.stamps, dict)
        for limit in request.time_limits:
            assert limit is None or limit <= threading.TIMEOUT_MAX
        if request.eta:
            to_timestamp(timezone.to_system(request.eta))
        assert 0 <= (request._context.as_execution_options()["retries"] or 0) < 2**31 - 1
        with suppress(ValueError, TypeError):  # the worker's errors for an unreadable envelope
            Message.from_headers(delivery["headers"], "agent", {})
        request_count += 1
    # Of each header some odd value is accepted. Only a task with an odd name does not exist.
    assert (request_count > 0) is (name != "task")


def test_error_in_a_check_refuses_the_message() -> None:
    """If a check itself fails, its error is the reason: here a limit that cannot be compared."""
    broken: Any = "no number"
    with pytest.raises(DecodingFailed, match="it cannot be checked: TypeError") as refused:
        read_item(real(message()), Caps(max_body_bytes=broken))
    assert isinstance(refused.value.__cause__, TypeError)
    with pytest.raises(DecodingFailed, match="it cannot be checked: TypeError"):
        check_message(message(), Caps(max_body_bytes=broken))


_PARTS = ("", "headers", "properties", "delivery_info")
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["base64", "utf-8", "gzip", "application/data", "application/json", "zstd", "latin-1", "hex"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.fixed_dictionaries(
            {
                "__type__": st.sampled_from(
                    ["date", "datetime", "uuid", "decimal", "time", "bytes", "base64", "x"]
                )
                | inner,
                "__value__": inner,
            }
        )
    ),
    max_leaves=6,
)


@st.composite
def mutated_items(draw: Any) -> bytes:
    """Return a real message with some fields and perhaps some bytes changed."""
    sent = deepcopy(_REAL)
    for _ in range(draw(st.integers(0, 3))):
        part = draw(st.sampled_from(_PARTS))
        target: Any = {
            "": sent,
            "headers": sent.get("headers"),
            "properties": sent.get("properties"),
            "delivery_info": isinstance(sent.get("properties"), dict) and sent["properties"].get("delivery_info"),
        }[part]
        if isinstance(target, dict):
            name = draw(st.sampled_from([*target, "compression", "stamps", "eta"]))
            if draw(st.booleans()):
                target[name] = draw(_VALUES)
            else:
                target.pop(name, None)
    if draw(st.booleans()):
        sent["body"] = json.dumps(draw(st.lists(_VALUES, min_size=2, max_size=4) | _VALUES))
    item = bytearray(real(sent))
    for _ in range(draw(st.integers(0, 2))):
        position = draw(st.integers(0, len(item)))
        item[position : position + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(item)


_REAL = message({"a": 1}, b=2)


def test_mutated_messages_are_read_or_refused() -> None:
    """At least fifty of a thousand become a delivery that Celery can handle, and at least fifty are refused."""
    read, refused = [], []

    @settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(item=mutated_items())
    def check(item: bytes) -> None:
        try:
            delivery = read_item(item, JSON)
        except DecodingFailed as error:
            refused.append(str(error))
            return
        if delivery.decoded is not None:
            args, kwargs, _ = delivery.decoded
            assert isinstance(args, list | tuple)
            assert isinstance(kwargs, dict)
            assert delivery["headers"]["id"].isprintable()
            read.append(item)

    check()
    assert all(reason.isprintable() and len(reason) < 400 for reason in refused)
    assert min(len(read), len(refused)) >= 50


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(item=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_read_or_refused(item: bytes) -> None:
    """Bytes that never were a message are refused, and nothing else is raised."""
    with pytest.raises(DecodingFailed):
        read_item(b"\x00" + item, JSON)
    with suppress(DecodingFailed):  # hardly any of these is a message; nothing else may be raised
        read_item(item, JSON)
