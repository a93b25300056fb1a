"""Malformed messages, made from a real one: what broken and hostile publishers send."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import pickle
import sys
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class End(Enum):
    """What happens to a message."""

    DEAD = "dead"  #: a dead letter
    REFUSED = "refused"  #: a dead letter too, made by the worker and not by the transport
    EXPIRED = "expired"  #: it expired
    HANDLED = "handled"  #: its handler runs, and may fail


class Case(NamedTuple):
    """One kind of malformed message.

    Attributes:
        label: A few words.
        make: Makes the raw item of a queue from a real message.
        end: What happens to it.
        named: Whether the id of its task can still be read.
    """

    label: str
    make: Callable[[dict[str, Any]], bytes]
    end: End = End.DEAD
    named: bool = True


def real(message: dict[str, Any]) -> bytes:
    """Return a message as it travels."""
    return json.dumps(message).encode()


def body(message: dict[str, Any], text: Any, **properties: Any) -> bytes:
    """Return a message with another body."""
    message["body"] = text
    message["properties"].update(properties)
    return real(message)


def packed(message: dict[str, Any], data: bytes, codec: str) -> bytes:
    """Return a message whose headers say that its body is compressed."""
    message["headers"]["compression"] = codec
    return body(message, base64.b64encode(data).decode(), body_encoding="base64")


@cache
def bomb(codec: str, megabytes: int = 300) -> bytes:
    """Return so many megabytes of zeros, compressed."""
    zeros, parts = bytes(1024 * 1024), []
    packers: dict[str, Callable[[], Any]] = {
        "application/x-gzip": lambda: zlib.compressobj(9),
        "application/x-bz2": bz2.BZ2Compressor,
        "application/x-lzma": lambda: lzma.LZMACompressor(preset=0),
        "application/zstd": zstd.ZstdCompressor,
    }
    packer = packers[codec]()
    parts = [packer.compress(zeros) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])


def _set(part: str, name: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
    def make(message: dict[str, Any]) -> bytes:
        (message[part] if part else message)[name] = value
        return real(message)

    return make


def _without(part: str, name: str) -> Callable[[dict[str, Any]], bytes]:
    def make(message: dict[str, Any]) -> bytes:
        del (message[part] if part else message)[name]
        return real(message)

    return make


def _body(value: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda message: body(message, json.dumps(value), body_encoding=None)


def _text(text: Any, encoding: str | None = None) -> Callable[[dict[str, Any]], bytes]:
    return lambda message: body(message, text, body_encoding=encoding)


def _raw(item: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda message: item


def _header(name: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
    return _set("headers", name, value)


def _packed(data: bytes, codec: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda message: packed(message, data, codec)


def _bomb(codec: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda message: packed(message, bomb(codec), codec)


def _foreign(**after: Any) -> Callable[[dict[str, Any]], bytes]:
    """Return a message without an envelope that names tasks to call afterwards."""

    def make(message: dict[str, Any]) -> bytes:
        message["headers"].pop("waooaw", None)
        return body(message, json.dumps([[{"number": 0}], {}, after]), body_encoding=None)

    return make


def _protocol_1(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    """Return a task of Celery 3, which has no headers."""

    def make(message: dict[str, Any]) -> bytes:
        headers = message["headers"]
        task = {"task": headers["task"], "id": headers["id"], "args": [{"number": 0}], "kwargs": {}}
        message["headers"] = {}
        return body(message, json.dumps({**task, **fields}), body_encoding=None)

    return make


def _deep(message: dict[str, Any]) -> bytes:
    message["body"] = "@"
    return real(message).replace(b'"@"', b"[" * 200_000 + b"]" * 200_000)


def _pickled(message: dict[str, Any]) -> bytes:
    message["content-type"], message["content-encoding"] = "application/x-python-serialize", "binary"
    return body(message, base64.b64encode(pickle.dumps(([], {}, {}))).decode(), body_encoding="base64")


def _application_data(message: dict[str, Any]) -> bytes:
    message["content-type"] = "application/data"
    return real(message)


FORGED = "abc\n[2026-01-01 00:00:00,000: CRITICAL/MainProcess] FORGED"
#: A JSON integer beyond the range of floats: ``math.isfinite`` raises OverflowError.
BEYOND_FLOATS = 10**400
#: Valid ISO 8601 for Python, but not for Celery.
ODD_ZONE = "2026-01-01T00:00:00+23:59:59.999999"
_GZIP = zlib.compress(b'[[], {}, {"callbacks": null}]')
_TRIPLE: Any = [[], {}, {}]


def _group(tasks: Any) -> dict[str, Any]:
    return {"task": "celery.group", "args": [], "kwargs": {"tasks": tasks}, "subtask_type": "group"}


CASES = (
    # Items that are not messages.
    Case("garbage bytes", _raw(b"\x80\x04garbage\xff"), named=False),
    Case("a JSON number", _raw(b"42"), named=False),
    Case("a JSON list", _raw(b"[1, 2, 3]"), named=False),
    Case("nothing", _raw(b""), named=False),
    Case("braces around garbage", _raw(b"{garbage}"), named=False),
    Case("braces around invalid UTF-8", _raw(b'{"body": "\xff\xfe"}'), named=False),
    Case("an empty mapping", _raw(b"{}"), named=False),
    Case("a truncated message", lambda message: real(message)[: len(real(message)) // 2], named=False),
    Case("a truncated message with a closing brace", lambda message: real(message)[:-40] + b"}", named=False),
    # Envelopes.
    Case("no properties", _without("", "properties")),
    Case("properties are a list", _set("", "properties", [])),
    Case("no delivery_info", _without("properties", "delivery_info")),
    Case("delivery_info is text", _set("properties", "delivery_info", "agent")),
    Case("an unknown body_encoding", _set("properties", "body_encoding", "rot13")),
    Case("body_encoding is a number", _set("properties", "body_encoding", 7)),
    Case("headers are a list", _set("", "headers", [1]), named=False),
    Case("headers are text", _set("", "headers", "id"), named=False),
    Case("content type is a list", _set("", "content-type", ["application/json"])),
    Case("content encoding is a number", _set("", "content-encoding", 8)),
    Case("content encoding is unknown", _set("", "content-encoding", "utf-9"), End.HANDLED),
    # Headers of a task.
    Case("no id", _without("headers", "id"), named=False),
    Case("the id is null", _header("id", None), named=False),
    Case("the id is a mapping", _header("id", {"a": 1}), named=False),
    Case("the id is a list", _header("id", [1]), named=False),
    Case("the id is empty", _header("id", ""), named=False),
    Case("the id forges a log line", _header("id", FORGED), named=False),
    Case("the id is too long", _header("id", "x" * 256), named=False),
    Case("the task is a mapping", _header("task", {"a": 1})),
    Case("the task forges a log line", _header("task", FORGED)),
    Case("shadow forges a log line", _header("shadow", FORGED)),
    Case("origin is a mapping", _header("origin", {})),
    Case("root_id is a list", _header("root_id", [])),
    Case("timelimit is text", _header("timelimit", "xyz")),
    Case("timelimit holds texts", _header("timelimit", ["1", "2"])),
    Case("timelimit is not a number", _header("timelimit", [float("nan"), None])),
    Case("timelimit is infinite", _header("timelimit", [None, float("inf")])),
    Case("timelimit has three parts", _header("timelimit", [1, 2, 3])),
    Case("stamped_headers is a number", _header("stamped_headers", 5)),
    Case("stamps is a list", _header("stamps", [1])),
    Case("retries is text", _header("retries", "x")),
    Case("retries is negative", _header("retries", -1)),
    Case("retries is beyond the range of floats", _header("retries", BEYOND_FLOATS)),
    Case("retries is too large for the ledger", _header("retries", 2**31 - 1)),
    Case("retries is not an integer", _header("retries", 0.5)),
    Case("timelimit is beyond the range of floats", _header("timelimit", [BEYOND_FLOATS, None])),
    Case("timelimit is too long for a timer", _header("timelimit", [None, 1e300])),
    Case("timelimit is negative", _header("timelimit", [-1, None])),
    Case("eta has a fraction of a second in its time zone", _header("eta", ODD_ZONE), End.REFUSED),
    Case("eta is a number", _header("eta", 12)),
    Case("expires is a mapping", _header("expires", {})),
    Case("eta is not a date", _header("eta", "tomorrow")),
    Case("expires is not a date", _header("expires", "never")),
    Case("eta before the year 1", _header("eta", "0001-01-01T00:00:00+14:00")),
    Case("eta after the year 9999", _header("eta", "9999-12-31T23:59:59-14:00")),
    # Bodies.
    Case("the body is empty", _text("", "base64")),
    Case("the body is null", _text(None)),
    Case("the body is a list", _text([1])),
    Case("the body is not base64", _text("%%%", "base64")),
    Case("the body is not JSON", _text("{nonsense")),
    Case("the body has a lone surrogate", _text("\ud800")),
    Case("the body is not UTF-8", _text(base64.b64encode(b'["\xff"]').decode(), "base64")),
    Case("the body is a text", _body("text")),
    Case("the body is a pair", _body([[], {}])),
    Case("the body is a mapping", _body({"a": 1})),
    Case("arguments are a number", _body([5, {}, {}])),
    Case("keyword arguments are a list", _body([[], [], {}])),
    Case("the third part is a list", _body([[], {}, [1]])),
    Case("a chain of nothing", _body([[None], {}, {"chain": [{}]}])),
    Case("a chain of a number", _body([[None], {}, {"chain": [5]}])),
    Case("a chain that is a number", _body([[None], {}, {"chain": 5}])),
    Case("errbacks that are a number", _body([[None], {}, {"errbacks": 5}])),
    Case("errbacks of a text", _body([[None], {}, {"errbacks": ["x"]}])),
    Case("callbacks of a task without a name", _body([[None], {}, {"callbacks": [{"task": ""}]}])),
    Case(
        "callbacks with a number for arguments", _body([[None], {}, {"callbacks": [{"task": "x.y", "args": 5}]}])
    ),
    Case("a chord that is a text", _body([[None], {}, {"chord": "x"}])),
    Case("a group of a number", _body([[None], {}, {"chain": [_group([5])]}])),
    Case("no callbacks", _body([[None], {}, {"chain": None, "callbacks": [], "errbacks": None}]), End.HANDLED),
    Case("200,000 lists deep", _deep, named=False),
    Case("200,000 lists deep in the body", _text("[" * 200_000 + "]" * 200_000)),
    Case("an unknown wrapped type", _body([[{"__type__": "nonsense", "__value__": 1}], {}, {}])),
    Case("an invalid wrapped date", _body([[{"__type__": "datetime", "__value__": "x"}], {}, {}])),
    Case("a wrapped date of a wrong type", _body([[{"__type__": "datetime", "__value__": 5}], {}, {}])),
    Case("an invalid wrapped number", _header("x", {"__type__": "decimal", "__value__": "x"})),
    Case("an invalid wrapped uuid", _header("x", {"__type__": "uuid", "__value__": {"hex": []}})),
    Case("invalid wrapped bytes", _header("x", {"__type__": "bytes", "__value__": None})),
    Case("a wrapped value without a value", _header("x", {"__type__": "date"}), End.HANDLED),
    # Formats and archives that must not be unpacked or decoded.
    Case("pickle", _pickled),
    Case("application/data", _application_data),
    Case("an unknown content type", _set("", "content-type", "application/x-nonsense")),
    Case("no content type", _set("", "content-type", None)),
    Case("an unknown compression", _header("compression", "application/x-nonsense")),
    Case("compression is a list", _header("compression", ["gzip"])),
    Case("a damaged gzip", _packed(_GZIP[:8] + b"\0\0\0\0" + _GZIP[12:], "application/x-gzip")),
    Case("a truncated gzip", _packed(_GZIP[:-5], "application/x-gzip")),
    Case("bytes declared as bzip2", _packed(b"BZh9 not at all", "application/x-bz2")),
    Case("bytes declared as lzma", _packed(b"\xfd7zXZ\0 not at all", "application/x-lzma")),
    Case("a bomb of gzip", _bomb("application/x-gzip")),
    Case("a bomb of bzip2", _bomb("application/x-bz2")),
    Case("a bomb of lzma", _bomb("application/x-lzma")),
    Case("bytes declared as zstd", _packed(b"\x28\xb5\x2f\xfd not at all", "application/zstd")),
    Case("a bomb of zstd", _bomb("application/zstd")),
    # Messages that Celery itself handles.
    Case("an unknown task", _header("task", "nobody.nothing"), End.REFUSED),
    Case("no task", _without("headers", "task"), End.REFUSED),
    Case("a task of protocol 1", _protocol_1(), End.HANDLED),
    Case("an old task that is a list", _protocol_1(task=[1]), End.REFUSED, named=False),
    Case("an old task whose id is a mapping", _protocol_1(id={}), End.REFUSED, named=False),
    Case("an old task with retries beyond floats", _protocol_1(retries=BEYOND_FLOATS), End.REFUSED, named=False),
    Case(
        "an old task with a timelimit beyond floats",
        _protocol_1(timelimit=[BEYOND_FLOATS, None]),
        End.REFUSED,
        named=False,
    ),
    Case("an old task with an invalid eta", _protocol_1(eta="tomorrow"), End.REFUSED, named=False),
    Case(
        "an old task with callbacks",
        _protocol_1(callbacks=[{"task": "x.y"}]),
        End.REFUSED,
        named=False,
    ),
    Case("callbacks of no agent", _foreign(callbacks=[{"task": "x.y"}]), End.REFUSED),
    Case("errbacks of no agent", _foreign(errbacks=[{"task": "x.y"}]), End.REFUSED),
    Case("a chain of no agent", _foreign(chain=[{"task": "x.y"}]), End.REFUSED),
    Case("a chord of no agent", _foreign(chord={"task": "x.y"}), End.REFUSED),
    Case("a message of no agent", _foreign(callbacks=None), End.HANDLED),
    Case("expires before the year 1", _header("expires", "0001-01-01T00:00:00+14:00"), End.EXPIRED),
    Case("expires after the year 9999", _header("expires", "9999-12-31T23:59:59-14:00"), End.HANDLED),
    Case("the wrong arguments", _body([[1, 2, 3], {"a": 4}, {}]), End.HANDLED),
    Case(
        "a valid gzip",
        lambda message: packed(message, gzip.compress(message["body"].encode()), "gzip"),
        End.HANDLED,
    ),
    Case(
        "a valid zstd",
        lambda message: packed(message, zstd.compress(message["body"].encode()), "zstd"),
        End.HANDLED,
    ),
    Case("arguments with a line break in their text", _header("argsrepr", "('a\nb',)"), End.HANDLED),
    Case("control", real, End.HANDLED),
)


def items(messages: Iterator[dict[str, Any]]) -> Iterator[tuple[Case, bytes]]:
    """Yield each case with its raw item, each made from its own message."""
    for case, message in zip(CASES, messages, strict=False):
        yield case, case.make(deepcopy(message))
