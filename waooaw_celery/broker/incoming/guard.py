"""What a consumer looks at before a message is expanded and Celery sees it: no message may kill or wedge a worker.

Celery trusts what arrives: an identifier that is a list, a body that is no triple or 400 KB that unpack to 300 MB
end its worker, and then the next one that meets them. Whatever breaks a rule here becomes a dead letter instead.
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
#: Longest identifier of a task, in characters.
_MAX_ID = 255
#: Most retries that a message may have behind it: one more is the largest attempt that the ledger can write.
_MAX_RETRIES = 2**31 - 2
#: Longest time limit in seconds, some 31 years: no timer of Python counts to the largest float.
_MAX_SECONDS = 10**9
#: Headers of a task's message that are text, where they are there.
_TEXTS = ("root_id", "parent_id", "group", "shadow", "origin", "eta", "expires")
#: Those of them that are moments.
_MOMENTS = ("eta", "expires")
#: The same, with line breaks and all: Celery copies texts among the arguments as they are, and logs show neither.
_FREE_TEXTS = ("argsrepr", "kwargsrepr")
#: Kombu takes this for bytes that need no decoding, whatever a consumer accepts; a task's arguments never are.
_UNDECODED = "application/data"


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


def read(raw: bytes, caps: Caps) -> Delivery:
    """Return what an item of a queue says.

    Args:
        raw: the item.
        caps: what is accepted.

    Raises:
        DecodingFailed: it breaks a rule, or a check of it failed.
    """
    try:
        return _read(raw, caps)
    except DecodingFailed:
        raise
    except Exception as error:  # no check may end the worker: what fails on a message is the message's fault
        raise uncheckable(error) from error


def uncheckable(error: Exception) -> DecodingFailed:
    """Return the verdict on a message whose check raised an error that no rule provides for."""
    return DecodingFailed(f"it cannot be checked: {error!r:.200}")


def _read(raw: bytes, caps: Caps) -> Delivery:
    if len(raw) > caps.max_item_bytes:
        raise DecodingFailed(f"it has {len(raw)} bytes, more than {caps.max_item_bytes}")
    check_json_nodes(raw, caps)
    message = _parse(raw)
    body = message.get("body") if isinstance(message, dict) else None
    # Its headers are no larger than all that is not its body, which most often is little.
    if len(raw) - (len(body) if isinstance(body, str) else 0) > caps.max_header_bytes:
        _check_headers(message, caps)
    return _examine(message, caps)


def check_message(message: Any, caps: Caps) -> Delivery:
    """Return a message, as it travels, unpacked.

    Args:
        message: what an item of a queue, or a broadcast, says.
        caps: what is accepted.

    Raises:
        DecodingFailed: it breaks a rule, or a check of it failed.
    """
    try:
        return _examine(message, caps)
    except DecodingFailed:
        raise
    except Exception as error:
        raise uncheckable(error) from error


def _examine(message: Any, caps: Caps) -> Delivery:
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
    delivery.body = _expand(delivery.get("body"), properties.get("body_encoding"), headers, caps)
    delivery.decoded = None
    if is_task:
        way = delivery.get("content-type"), delivery.get("content-encoding")
        delivery.decoded = decode_task(delivery.body, *way, caps)
    return delivery


def check_task_headers(headers: Mapping[str, Any]) -> None:
    """Check the headers that Celery takes for granted in a task's message.

    Raises:
        DecodingFailed: one is missing or of a wrong type.
    """
    for name in ("task", "id"):
        value: Any = headers.get(name)
        if not _is_text(value) or len(value) > _MAX_ID:
            raise DecodingFailed(f"its header {name!r} is no printable text of at most {_MAX_ID} characters")
    for name in _TEXTS:
        value = headers.get(name)
        if value is not None and not _is_text(value):
            raise DecodingFailed(f"its header {name!r} is no printable text")
    for name in _FREE_TEXTS:
        _need(isinstance(headers.get(name), _TEXT_OR_NONE), f"its header {name!r} is no text")
    for name in _MOMENTS:
        value = headers.get(name)
        _need(value is None or _is_moment(value), f"its header {name!r} is no moment in ISO 8601")
    eta = headers.get("eta")
    # Celery drops such a message, and tells only its log.
    _need(not (eta and eta.startswith(("0001", "9999"))), "its header 'eta' is at the end of all calendars")
    limits = headers.get("timelimit")
    if limits is not None and not (
        isinstance(limits, list) and len(limits) == 2 and all(map(_is_seconds, limits))
    ):
        raise DecodingFailed(f"its header 'timelimit' is no pair of seconds from 0 to {_MAX_SECONDS}")
    retries = headers.get("retries")
    if retries is not None and not (_is_number(retries, _MAX_RETRIES) and retries == int(retries)):
        raise DecodingFailed(f"its header 'retries' is no count from 0 to {_MAX_RETRIES}")
    _need(isinstance(headers.get("stamps"), _MAPPING_OR_NONE), "its header 'stamps' is no mapping")
    names = headers.get("stamped_headers")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DecodingFailed("its header 'stamped_headers' is no list of names")


def decode_task(body: Any, content_type: Any, content_encoding: Any, caps: Caps) -> Any:
    """Return what the unpacked body of a task's message says.

    Args:
        body: text or bytes.
        content_type: its format.
        content_encoding: its content encoding, for formats that only Kombu knows.
        caps: what is accepted.

    Raises:
        DecodingFailed: the format is not accepted, or the body cannot be read, or is none of a task.
    """
    if content_type in (None, _UNDECODED):
        raise DecodingFailed(f"its content type is {content_type!r:.80}, which is not accepted")
    decoded = decode(body or b"", content_type, content_encoding, caps)
    check_task_body(decoded)
    return decoded


def check_old_task(said: Any) -> None:
    """Check the decoded body of a task of Celery's protocol 1, in which headers and arguments are one mapping.

    Raises:
        DecodingFailed: it is not that.
    """
    _need(isinstance(said, dict) and "task" in said, "it is no task")
    check_task_headers({**said, "timelimit": _as_list(said.get("timelimit"))})
    _need(isinstance(said.get("args", []), list | tuple), "its positional arguments are no list")
    _need(isinstance(said.get("kwargs", {}), dict), "its keyword arguments are no mapping")
    check_embed(said)


def check_task_body(body: Any) -> None:
    """Check a task's decoded body: its arguments, and what Celery shall do afterwards.

    Raises:
        DecodingFailed: it is not that.
    """
    _need(isinstance(body, list | tuple) and len(body) == 3, "its body is no list of arguments, options and more")
    args, kwargs, embed = body
    _need(isinstance(args, list | tuple), "its positional arguments are no list")
    _need(isinstance(kwargs, dict), "its keyword arguments are no mapping")
    _need(isinstance(embed, _MAPPING_OR_NONE), "the third part of its body is no mapping")
    check_embed(embed)


def _parse(raw: bytes) -> Any:
    try:
        # Kombu's own reader looks at every mapping for values that it wrapped; few messages have any.
        parsed = kombu_json_loads(raw) if b"__type__" in raw else json.loads(raw)
    except Exception as error:  # a value that Kombu wrapped, and cannot unwrap, raises anything
        raise DecodingFailed(f"it is no JSON that can be read: {error!r:.200}") from error
    return parsed


def _expand(body: Any, encoding: Any, headers: Mapping[str, Any], caps: Caps) -> Any:
    """Return a body as Kombu's message has it: decoded for the way, decompressed within bounds."""
    if encoding not in (None, "base64") and not (isinstance(encoding, str) and encoding.lower() == "utf-8"):
        raise DecodingFailed(f"its body_encoding is {encoding!r:.80}")
    _need(isinstance(body, _TEXT_OR_NONE), "its body is no text")
    if body and encoding == "base64":
        try:
            body = b64decode(body)
        except (binascii.Error, ValueError) as error:
            raise DecodingFailed(f"its body is no base64: {error}") from error
    if body and len(body) > caps.max_body_bytes:
        raise DecodingFailed(f"its body has {len(body)} bytes, more than {caps.max_body_bytes}")
    if isinstance(body, str):
        try:
            body = body.encode()
        except UnicodeEncodeError as error:
            raise DecodingFailed(f"its body is no text that can be written: {error}") from error
    codec = headers.get("compression")
    if codec is not None:
        _need(isinstance(codec, str), "its header 'compression' is no text")
        body = expand(body, codec, caps)
    if body:
        check_size(body, caps)
    return body


def _check_headers(message: Any, caps: Caps) -> None:
    headers = message.get("headers") if isinstance(message, dict) else None
    size = header_bytes(headers) if isinstance(headers, dict) else 0
    if size > caps.max_header_bytes:
        raise DecodingFailed(f"its headers have about {size} bytes, more than {caps.max_header_bytes}")


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be printed on one line: a log that shows it cannot be forged."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_moment(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_number(value: Any, most: int) -> bool:
    """Whether a value is a number from 0 to ``most``.

    Python compares integers of any size with floats exactly, and no comparison holds for what is not a number; as
    a float, an integer beyond 1e308 would be an OverflowError.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _is_seconds(value: Any) -> bool:
    return value is None or _is_number(value, _MAX_SECONDS)


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DecodingFailed(otherwise)
