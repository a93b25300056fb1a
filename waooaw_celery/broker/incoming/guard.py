"""The guard: checks a message before it is unpacked and before Celery sees it.

Celery trusts what arrives. An id that is a list, a body of the wrong shape, or 400 KB that unpack to 300 MB end
its worker, and then each worker that receives the message after it. A message that breaks a rule here becomes a
dead letter instead.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kombu.utils.json import loads as kombu_json_loads

from waooaw_celery.broker.incoming.embed import check_embed
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import Caps, check_json_nodes, check_size, header_bytes
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.formats import decode

_TEXT_OR_NONE = (str, type(None))
_MAPPING_OR_NONE = (dict, type(None))
#: The longest id and name of a task, in characters.
_MAX_ID = 255
#: The largest count of retries: the ledger can store one attempt more than that.
_MAX_RETRIES = 2**31 - 2
#: The longest time limit in seconds, about 31 years: Python's timers cannot wait for the largest float.
_MAX_SECONDS = 10**9
#: Headers of a task's message that are text, if present.
_TEXTS = ("root_id", "parent_id", "group", "shadow", "origin", "eta", "expires")
#: Those of them that are dates and times.
_DATETIMES = ("eta", "expires")
#: Headers that are text with any characters: Celery copies the arguments' texts unchanged, and logs show neither.
_FREE_TEXTS = ("argsrepr", "kwargsrepr")
#: Kombu returns a body of this content type without decoding, whatever a consumer accepts. No task uses it.
_UNDECODED = "application/data"


class Delivery(dict[str, Any]):
    """A message as it travels, with its body unpacked and, for a task, decoded.

    Attributes:
        body: The unpacked body.
        decoded: A task's arguments; None for any other message.
        claim: The claim of the channel that it came from.
    """

    __slots__ = ("body", "claim", "decoded")

    body: Any
    decoded: Any
    claim: Any


def read_item(raw: bytes, caps: Caps) -> Delivery:
    """Return the checked message that an item of a queue holds.

    Args:
        raw: The item's bytes.
        caps: The limits and formats that are accepted.

    Raises:
        DecodingFailed: The message breaks a rule, or a check of it failed.
    """
    try:
        return _read_item(raw, caps)
    except DecodingFailed:
        raise
    except Exception as error:  # no check may end the worker, so a failed check refuses the message
        raise check_failed(error) from error


def check_failed(error: Exception) -> DecodingFailed:
    """Return the error for a message whose check itself failed."""
    return DecodingFailed(f"it cannot be checked: {error!r:.200}")


def _read_item(raw: bytes, caps: Caps) -> Delivery:
    if len(raw) > caps.max_item_bytes:
        raise DecodingFailed(f"it has {len(raw)} bytes, more than {caps.max_item_bytes}")
    check_json_nodes(raw, caps)
    message = _parse(raw)
    body = message.get("body") if isinstance(message, dict) else None
    # The headers cannot be larger than everything but the body, which is mostly small: then do not measure them.
    if len(raw) - (len(body) if isinstance(body, str) else 0) > caps.max_header_bytes:
        _check_headers(message, caps)
    return _check_message(message, caps)


def check_message(message: Any, caps: Caps) -> Delivery:
    """Return a parsed message, checked and unpacked.

    Args:
        message: The parsed JSON of an item of a queue, or of a broadcast.
        caps: The limits and formats that are accepted.

    Raises:
        DecodingFailed: The message breaks a rule, or a check of it failed.
    """
    try:
        return _check_message(message, caps)
    except DecodingFailed:
        raise
    except Exception as error:
        raise check_failed(error) from error


def _check_message(message: Any, caps: Caps) -> Delivery:
    _require(isinstance(message, dict), "it is not a mapping")
    delivery = Delivery(message)
    if delivery.get("headers") is None:
        delivery["headers"] = {}
    headers: Any = delivery["headers"]
    properties: Any = delivery.get("properties")
    content_type, content_encoding = delivery.get("content-type"), delivery.get("content-encoding")
    _require(isinstance(headers, dict), "its headers are not a mapping")
    _require(isinstance(properties, dict), "it has no properties")
    _require(isinstance(properties.get("delivery_info"), dict), "it has no delivery_info")
    _require(isinstance(content_type, _TEXT_OR_NONE), "its content type is not text")
    _require(isinstance(content_encoding, _TEXT_OR_NONE), "its content encoding is not text")
    is_task = "task" in headers
    if is_task:
        check_task_headers(headers)
    delivery.body = _unpack(delivery.get("body"), properties.get("body_encoding"), headers, caps)
    delivery.decoded = decode_task(delivery.body, content_type, content_encoding, caps) if is_task else None
    return delivery


def check_task_headers(headers: Mapping[str, Any]) -> None:
    """Check the headers that Celery relies on in a task's message.

    Raises:
        DecodingFailed: A header is missing or has a wrong type or value.
    """
    for name in ("task", "id"):
        value: Any = headers.get(name)
        if not _is_printable_text(value) or len(value) > _MAX_ID:
            raise DecodingFailed(f"its header {name!r} is not printable text of at most {_MAX_ID} characters")
    for name in _TEXTS:
        value = headers.get(name)
        if value is not None and not _is_printable_text(value):
            raise DecodingFailed(f"its header {name!r} is not printable text")
    for name in _FREE_TEXTS:
        _require(isinstance(headers.get(name), _TEXT_OR_NONE), f"its header {name!r} is not text")
    for name in _DATETIMES:
        value = headers.get(name)
        _require(value is None or _is_datetime(value), f"its header {name!r} is not an ISO 8601 date and time")
    eta = headers.get("eta")
    # Celery would drop such a message, and report it in its log only.
    _require(not (eta and eta.startswith(("0001", "9999"))), "its header 'eta' is in the year 1 or 9999")
    limits = headers.get("timelimit")
    if limits is not None and not (
        isinstance(limits, list) and len(limits) == 2 and all(map(_is_seconds, limits))
    ):
        raise DecodingFailed(f"its header 'timelimit' is not a pair of seconds from 0 to {_MAX_SECONDS}")
    retries = headers.get("retries")
    if retries is not None and not (_is_number(retries, _MAX_RETRIES) and retries == int(retries)):
        raise DecodingFailed(f"its header 'retries' is not a count from 0 to {_MAX_RETRIES}")
    _require(isinstance(headers.get("stamps"), _MAPPING_OR_NONE), "its header 'stamps' is not a mapping")
    names = headers.get("stamped_headers")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DecodingFailed("its header 'stamped_headers' is not a list of names")


def decode_task(body: Any, content_type: Any, content_encoding: Any, caps: Caps) -> Any:
    """Return the decoded and checked body of a task's message.

    Args:
        body: The unpacked body, text or bytes.
        content_type: The content type.
        content_encoding: The content encoding, for formats that only Kombu knows.
        caps: The limits and formats that are accepted.

    Raises:
        DecodingFailed: The format is not accepted, the body cannot be read, or it is not the body of a task.
    """
    if content_type in (None, _UNDECODED):
        raise DecodingFailed(f"its content type is {content_type!r:.80}, which is not accepted")
    decoded = decode(body or b"", content_type, content_encoding, caps)
    check_task_body(decoded)
    return decoded


def check_protocol_1_task(fields: Any) -> None:
    """Check the decoded body of a task of Celery's protocol 1, which has headers and arguments in one mapping.

    Raises:
        DecodingFailed: It is not a valid task.
    """
    _require(isinstance(fields, dict) and "task" in fields, "it is not a task")
    check_task_headers({**fields, "timelimit": _as_list(fields.get("timelimit"))})
    _require(isinstance(fields.get("args", []), list | tuple), "its positional arguments are not a list")
    _require(isinstance(fields.get("kwargs", {}), dict), "its keyword arguments are not a mapping")
    check_embed(fields)


def check_task_body(body: Any) -> None:
    """Check a task's decoded body: its arguments, and the tasks to call after it.

    Raises:
        DecodingFailed: It is not the body of a task.
    """
    is_triple = isinstance(body, list | tuple) and len(body) == 3
    _require(is_triple, "its body is not a list of arguments, keyword arguments and options")
    args, kwargs, embed = body
    _require(isinstance(args, list | tuple), "its positional arguments are not a list")
    _require(isinstance(kwargs, dict), "its keyword arguments are not a mapping")
    _require(isinstance(embed, _MAPPING_OR_NONE), "the third part of its body is not a mapping")
    check_embed(embed)


def _parse(raw: bytes) -> Any:
    try:
        # Kombu's parser looks in every mapping for values that Kombu wrapped. Few messages have any.
        parsed = kombu_json_loads(raw) if b"__type__" in raw else json.loads(raw)
    except Exception as error:  # unwrapping a damaged value may raise anything
        raise DecodingFailed(f"it is not readable JSON: {error!r:.200}") from error
    return parsed


def _unpack(body: Any, encoding: Any, headers: Mapping[str, Any], caps: Caps) -> Any:
    """Return the body without its body_encoding and its compression, within the limits."""
    if encoding not in (None, "base64") and not (isinstance(encoding, str) and encoding.lower() == "utf-8"):
        raise DecodingFailed(f"its body_encoding is {encoding!r:.80}")
    _require(isinstance(body, _TEXT_OR_NONE), "its body is not text")
    if body and encoding == "base64":
        try:
            body = b64decode(body)
        except (binascii.Error, ValueError) as error:
            raise DecodingFailed(f"its body is not base64: {error}") from error
    if body and len(body) > caps.max_body_bytes:
        raise DecodingFailed(f"its body has {len(body)} bytes, more than {caps.max_body_bytes}")
    if isinstance(body, str):
        try:
            body = body.encode()
        except UnicodeEncodeError as error:
            raise DecodingFailed(f"its body cannot be written as UTF-8: {error}") from error
    codec = headers.get("compression")
    if codec is not None:
        _require(isinstance(codec, str), "its header 'compression' is not text")
        body = expand(body, codec, caps)
    if body:
        check_size(body, caps)
    return body


def _check_headers(message: Any, caps: Caps) -> None:
    headers = message.get("headers") if isinstance(message, dict) else None
    size = header_bytes(headers) if isinstance(headers, dict) else 0
    if size > caps.max_header_bytes:
        raise DecodingFailed(f"its headers have about {size} bytes, more than {caps.max_header_bytes}")


def _is_printable_text(value: Any) -> bool:
    """Whether a value is text without line breaks or control characters, so that it cannot forge a log line."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_datetime(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_number(value: Any, maximum: int) -> bool:
    """Whether a value is a number from 0 to a maximum.

    Python compares integers of any size with floats exactly, and every comparison with NaN is false. To convert an
    integer beyond 1e308 to a float would raise OverflowError.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= maximum


def _is_seconds(value: Any) -> bool:
    return value is None or _is_number(value, _MAX_SECONDS)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise DecodingFailed(reason)
