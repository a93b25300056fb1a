"""Values as A2A carries them: JSON, whose numbers are floats in the protocol's data parts."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from a2a.types import Part
from google.protobuf.json_format import MessageToDict, ParseDict, SerializeToJsonError
from google.protobuf.message import Message as ProtocolMessage
from google.protobuf.struct_pb2 import Value

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.validation import JSON

#: The media types of parts that an agent reads and writes.
TEXT, DATA = "text/plain", "application/json"
#: Whole numbers from here on are not exact as floats.
_EXACT = 2**53


def part_of(value: JSON) -> Part:
    """Return a part with a value: a text as text, every other value as data.

    A whole number that a data part cannot carry exactly makes the part a text of the type ``application/json``.

    Args:
        value: a value that a message can carry.
    """
    if isinstance(value, str):
        return Part(text=value, media_type=TEXT)
    plain, exact = _plain(value)
    if not exact:
        return Part(text=json.dumps(plain, ensure_ascii=False), media_type=DATA)
    return Part(data=ParseDict(plain, Value()), media_type=DATA)


def parts_of(value: JSON) -> list[Part]:
    """Return the parts with a result: one for each text of a list of texts, else one; none for None."""
    if value is None:
        return []
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return [part_of(each) for each in value]
    return [part_of(value)]


def data_of(part: Part) -> JSON:
    """Return the value of a data part; its whole numbers are integers.

    Raises:
        InvalidMessage: a whole number is so large that the protocol may have changed it, or is none.
    """
    return _whole(plain_of(part.data))


def plain_of(value: ProtocolMessage) -> Any:
    """Return a value or structure of the protocol in the types of JSON.

    Raises:
        InvalidMessage: it has a number that JSON does not have.
    """
    try:
        return MessageToDict(value)
    except (SerializeToJsonError, ValueError) as error:
        raise InvalidMessage(f"the message has a number that JSON does not have, such as NaN: {error}") from error


def value_of(parts: Sequence[Part]) -> JSON:
    """Return what the parts of another agent's answer carry.

    Args:
        parts: the parts. One gives its value, several texts give one text, and others a list. A file gives an
            object with its ``url`` or its ``base64``, its ``name`` and its ``media_type``.
    """
    values = [_value(each) for each in parts]
    if len(values) == 1:
        return values[0]
    if values and all(isinstance(each, str) for each in values):
        return "".join(values)
    return values or None


def _value(part: Part) -> JSON:
    kind = part.WhichOneof("content")
    if kind == "text":
        return part.text
    if kind == "data":
        return _whole(plain_of(part.data), refuse=False)
    file = {"url": part.url} if kind == "url" else {"base64": base64.b64encode(part.raw).decode()}
    return {**file, "name": part.filename or None, "media_type": part.media_type or None}


def _plain(value: Any) -> tuple[Any, bool]:
    """Return a value in the types of JSON, and whether a data part carries it exactly."""
    if isinstance(value, dict):
        pairs = {key: _plain(each) for key, each in value.items()}
        return {key: each[0] for key, each in pairs.items()}, all(each[1] for each in pairs.values())
    if isinstance(value, list | tuple):
        items = [_plain(each) for each in value]
        return [each[0] for each in items], all(each[1] for each in items)
    if isinstance(value, int) and not isinstance(value, bool):
        return value, -_EXACT < value < _EXACT
    if isinstance(value, datetime | date | time):
        return value.isoformat(), True
    if isinstance(value, UUID | Decimal):
        return str(value), True
    if isinstance(value, bytes):
        return base64.b64encode(value).decode(), True
    return value, True


def _whole(value: Any, *, refuse: bool = True) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each, refuse=refuse) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each, refuse=refuse) for each in value]
    if isinstance(value, float) and value.is_integer():
        if refuse and not -_EXACT < value < _EXACT:
            raise InvalidMessage(
                f"the number {value:.0f} is too large for a data part, which carries numbers as floats: send it "
                "as a text"
            )
        return int(value)
    return value
