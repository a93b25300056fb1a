"""What a consumer looks at before a message is expanded and Celery sees it: no message may kill or wedge a worker.

Celery trusts what arrives: an identifier that is a list, a body that is no triple or 400 KB that unpack to 300 MB
end its worker, and then the next one that meets them. Whatever breaks a rule here becomes a dead letter instead.
"""

from __future__ import annotations

import binascii
import bz2
import json
import lzma
import math
import sys
import zlib
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import loads
from kombu.utils.json import loads as kombu_json_loads

try:
    zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
except ImportError:  # then Kombu does not pack with it either
    zstd = None

MIB = 1024 * 1024
_TEXT_OR_NONE = (str, type(None))
_MAPPING_OR_NONE = (dict, type(None))
#: Longest identifier of a task, in characters.
_MAX_ID = 255
#: Headers of a task's message that are text, where they are there.
_TEXTS = ("root_id", "parent_id", "group", "shadow", "origin", "eta", "expires")
#: The same, with line breaks and all: Celery copies texts among the arguments as they are, and logs show neither.
_FREE_TEXTS = ("argsrepr", "kwargsrepr")
#: Kombu takes this for bytes that need no decoding, whatever a consumer accepts; a task's arguments never are.
_UNDECODED = "application/data"


class Unreadable(Exception):
    """What arrived is no message that a worker may see; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a consumer accepts.

    Attributes:
        max_bytes: largest message, as it travels.
        max_expanded_bytes: largest body, unpacked.
        content_types: formats of the bodies of tasks; None: whatever Kombu has not disabled.
    """

    max_bytes: int = 16 * MIB
    max_expanded_bytes: int = 16 * MIB
    content_types: frozenset[str] | None = None


class Delivery(dict[str, Any]):
    """A message as it travels, with its body unpacked and, for a task, decoded.

    Attributes:
        body: the unpacked body.
        decoded: a task's arguments; None for anything else.
        claim: where it came from, for the channel that claimed it.
    """

    __slots__ = ("body", "claim", "decoded")

    body: Any
    decoded: Any
    claim: Any


def read(raw: bytes, limits: Limits) -> Delivery:
    """Return what an item of a queue says.

    Args:
        raw: the item.
        limits: what is accepted.

    Raises:
        Unreadable: it breaks a rule.
    """
    if len(raw) > limits.max_bytes:
        raise Unreadable(f"it has {len(raw)} bytes, more than {limits.max_bytes}")
    return examine(_parse(raw), limits)


def examine(message: Any, limits: Limits) -> Delivery:
    """Return a message, as it travels, unpacked.

    Args:
        message: what an item of a queue, or a broadcast, says.
        limits: what is accepted.

    Raises:
        Unreadable: it breaks a rule.
    """
    _need(isinstance(message, dict), "it is no mapping")
    delivery = Delivery(message)
    if delivery.get("headers") is None:
        delivery["headers"] = {}
    headers: Any = delivery["headers"]
    properties: Any = delivery.get("properties")
    _need(isinstance(headers, dict), "its headers are no mapping")
    _need(isinstance(properties, dict), "it has no properties")
    _need(isinstance(properties.get("delivery_info"), dict), "it has no delivery_info")
    _need(isinstance(delivery.get("content-type"), _TEXT_OR_NONE), "its content type is no text")
    _need(isinstance(delivery.get("content-encoding"), _TEXT_OR_NONE), "its content encoding is no text")
    is_task = "task" in headers
    if is_task:
        check_task_headers(headers)
    delivery.body = _expand(delivery.get("body"), properties.get("body_encoding"), headers, limits)
    delivery.decoded = _decode_task(delivery, limits) if is_task else None
    return delivery


def check_task_headers(headers: Mapping[str, Any]) -> None:
    """Check the headers that Celery takes for granted in a task's message.

    Raises:
        Unreadable: one is missing or of a wrong type.
    """
    for name in ("task", "id"):
        value: Any = headers.get(name)
        if not _is_text(value) or len(value) > _MAX_ID:
            raise Unreadable(f"its header {name!r} is no printable text of at most {_MAX_ID} characters")
    for name in _TEXTS:
        value = headers.get(name)
        if value is not None and not _is_text(value):
            raise Unreadable(f"its header {name!r} is no printable text")
    for name in _FREE_TEXTS:
        _need(isinstance(headers.get(name), _TEXT_OR_NONE), f"its header {name!r} is no text")
    eta = headers.get("eta")
    # Celery drops such a message, and tells only its log.
    _need(not (eta and eta.startswith(("0001", "9999"))), "its header 'eta' is at the end of all calendars")
    limits = headers.get("timelimit")
    if limits is not None and not (
        isinstance(limits, list) and len(limits) == 2 and all(map(_is_seconds, limits))
    ):
        raise Unreadable("its header 'timelimit' is no pair of seconds")
    retries = headers.get("retries")
    if retries is not None and not (_is_number(retries) and retries >= 0):
        raise Unreadable("its header 'retries' is no count")
    _need(isinstance(headers.get("stamps"), _MAPPING_OR_NONE), "its header 'stamps' is no mapping")
    names = headers.get("stamped_headers")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise Unreadable("its header 'stamped_headers' is no list of names")


def check_task_body(body: Any) -> None:
    """Check a task's decoded body: its arguments, and what Celery shall do afterwards.

    Raises:
        Unreadable: it is not that.
    """
    _need(isinstance(body, list | tuple) and len(body) == 3, "its body is no list of arguments, options and more")
    args, kwargs, embed = body
    _need(isinstance(args, list | tuple), "its positional arguments are no list")
    _need(isinstance(kwargs, dict), "its keyword arguments are no mapping")
    _need(isinstance(embed, _MAPPING_OR_NONE), "the third part of its body is no mapping")


def _parse(raw: bytes) -> Any:
    try:
        # Kombu's own reader looks at every mapping for values that it wrapped; few messages have any.
        parsed = kombu_json_loads(raw) if b"__type__" in raw else json.loads(raw)
    except Exception as error:  # a value that Kombu wrapped, and cannot unwrap, raises anything
        raise Unreadable(f"it is no JSON that can be read: {error!r:.200}") from error
    return parsed


def _expand(body: Any, encoding: Any, headers: Mapping[str, Any], limits: Limits) -> Any:
    """Return a body as Kombu's message has it: decoded for the way, decompressed within bounds."""
    if encoding not in (None, "base64") and not (isinstance(encoding, str) and encoding.lower() == "utf-8"):
        raise Unreadable(f"its body_encoding is {encoding!r:.80}")
    _need(isinstance(body, _TEXT_OR_NONE), "its body is no text")
    if body and encoding == "base64":
        try:
            body = b64decode(body)
        except (binascii.Error, ValueError) as error:
            raise Unreadable(f"its body is no base64: {error}") from error
    codec = headers.get("compression")
    if codec is not None:
        _need(isinstance(codec, str), "its header 'compression' is no text")
        body = decompress(body.encode() if isinstance(body, str) else body, codec, limits.max_expanded_bytes)
    if isinstance(body, str):
        try:
            body = body.encode()
        except UnicodeEncodeError as error:
            raise Unreadable(f"its body is no text that can be written: {error}") from error
    if body and len(body) > limits.max_expanded_bytes:
        raise Unreadable(f"its body has {len(body)} bytes, more than {limits.max_expanded_bytes}")
    return body


def decompress(body: bytes | None, codec: str, limit: int) -> bytes:
    """Unpack a body, and stop as soon as it is too large.

    Args:
        body: what was packed.
        codec: name of the format, as Kombu's header ``compression`` gives it.
        limit: most bytes to unpack.

    Raises:
        Unreadable: the codec is not one that can be stopped, what it packed is damaged or ends too early, or is
            larger.
    """
    opened = _DECOMPRESSORS.get(codec)
    if opened is None:
        raise Unreadable(f"it is packed with {codec!r:.80}, which is not accepted")
    try:
        decompressor = opened()
        expanded = decompressor.decompress(body or b"", limit + 1)
        whole: bool = decompressor.eof
    except _DAMAGE as error:
        raise Unreadable(f"what {codec} packed is damaged: {error}") from error
    if len(expanded) > limit:
        raise Unreadable(f"it unpacks to more than {limit} bytes")
    if not whole:
        raise Unreadable(f"what {codec} packed ends too early")
    return bytes(expanded)


def _decode_task(delivery: Delivery, limits: Limits) -> Any:
    content_type = delivery.get("content-type")
    if content_type in (None, _UNDECODED) or (limits.content_types and content_type not in limits.content_types):
        raise Unreadable(f"its content type is {content_type!r:.80}, which is not accepted")
    encoding = delivery.get("content-encoding") or "utf-8"
    try:
        decoded = loads(delivery.body, content_type, encoding, accept=limits.content_types)
    except (ContentDisallowed, DecodeError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise Unreadable(f"its body cannot be decoded: {error!r:.200}") from error
    check_task_body(decoded)
    return decoded


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be printed on one line: a log that shows it cannot be forged."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_seconds(value: Any) -> bool:
    return value is None or _is_number(value)


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Unreadable(otherwise)


def _decompressors() -> dict[str, Callable[[], Any]]:
    """Return what unpacks each format within bounds, by the names that Kombu gives it."""
    found: dict[str, Callable[[], Any]] = {}
    # Kombu's gzip is zlib's format; both are read.
    found |= dict.fromkeys(("application/x-gzip", "gzip", "zlib"), _Zlib)
    found |= dict.fromkeys(("application/x-bz2", "application/x-bzip2", "bzip2", "bzip"), bz2.BZ2Decompressor)
    found |= dict.fromkeys(("application/x-lzma", "lzma", "xz"), lzma.LZMADecompressor)
    if zstd is not None:
        found |= dict.fromkeys(("application/zstd", "zstd", "zstandard"), zstd.ZstdDecompressor)
    return found


class _Zlib:
    """zlib's or gzip's format, with the interface of the others."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(data, max_length)

    @property
    def eof(self) -> bool:
        return self._object.eof


_DECOMPRESSORS = _decompressors()
#: What they raise for what is no archive.
_DAMAGE: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError)
if zstd is not None:
    _DAMAGE += (zstd.ZstdError,)
