"""The JSON form of messages, receipts, records and responses: a dict of JSON values, and back without a loss.

A class has the form that follows from its fields: ``docs/json.md`` shows it. Times are ISO 8601 texts, enums their
values, and values of a payload that JSON does not have are tagged, as on the wire.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.validation import JSON, restored, tagged
from waooaw_celery.messages.wording import with_article


class JsonForm:
    """A dataclass with a JSON form. Equal objects have equal forms, and a form makes an equal object."""

    __slots__ = ()

    def to_dict(self) -> dict[str, JSON]:
        """Return the JSON form: a dict of JSON values, with one key for each field, in their order.

        Raises:
            InvalidMessage: a field has a value that JSON cannot express, such as a set.

        Example:
            >>> message.to_dict()["sent_at"]
            '2026-11-29T09:30:00+00:00'
        """
        return _write_fields(self)

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the object of a JSON form. A field with a default may be left out.

        Args:
            form: what ``to_dict`` returns, or the same read from JSON.

        Raises:
            InvalidMessage: a field is missing, unknown or invalid; the error names its path.

        Example:
            >>> Message.from_dict(message.to_dict()) == message
            True
        """
        try:
            found: Self = _read_fields(cls, form, "")
        except RecursionError:
            raise InvalidMessage(f"{named(cls)} is nested too deeply") from None
        return found

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the JSON form as a text of ASCII characters.

        Args:
            indent: how many spaces to indent each level by; None: everything on one line.

        Raises:
            InvalidMessage: as ``to_dict``.
        """
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the object of a JSON text. The rest as ``from_dict``.

        Raises:
            InvalidMessage: the text is not JSON, or a field is missing, unknown or invalid.
        """
        try:
            form = json.loads(text, object_pairs_hook=_mapping, parse_constant=_refuse_constant)
        except RecursionError:
            raise InvalidMessage(f"{named(cls)} is nested too deeply") from None
        except (ValueError, TypeError) as error:
            raise InvalidMessage(f"the text of {named(cls)} is not valid JSON: {error}") from None
        return cls.from_dict(form)


#: The key of a field's metadata that names the codec of a type that this module does not know.
CODEC = "waooaw.codec"


class Codec(NamedTuple):
    """How the values of a type are written and read; ``read`` also takes the path of the value."""

    write: Callable[[Any], JSON]
    read: Callable[[Any, str], Any]


class _Field(NamedTuple):
    codec: Codec
    is_required: bool


@cache
def _fields_of(cls: Any) -> dict[str, _Field]:
    hints = get_type_hints(cls)
    return {
        field.name: _Field(
            field.metadata.get(CODEC) or _codec(hints[field.name]),
            field.default is field.default_factory is MISSING,
        )
        for field in fields(cls)
        if field.init
    }


def _write_fields(value: Any) -> dict[str, JSON]:
    cls: Any = type(value)
    return {name: field.codec.write(getattr(value, name)) for name, field in _fields_of(cls).items()}


def _read_fields(cls: Any, form: Any, where: str) -> Any:
    known = _fields_of(cls)
    if not isinstance(form, Mapping):
        raise InvalidMessage(f"{where or named(cls)} must be a JSON object, not {form!r:.80}")
    prefix = f"{where}." if where else ""
    for name in form:
        if name not in known:
            raise InvalidMessage(f"{prefix}{name!s:.80} is no field of {named(cls)}: it has {', '.join(known)}")
    for name, field in known.items():
        if field.is_required and name not in form:
            raise InvalidMessage(f"{prefix}{name} is missing: {named(cls)} needs it")
    values = {name: known[name].codec.read(value, f"{prefix}{name}") for name, value in form.items()}
    try:
        return cls(**values)
    except InvalidMessage as error:
        raise InvalidMessage(f"{where}: {error}" if where else str(error)) from None


def _codec(hint: Any) -> Codec:
    """Return how the values of a field are written and read.

    Args:
        hint: the type of the field.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return Codec(_write_payload, lambda value, where: restored(value))
    if origin in (Union, UnionType) and NoneType in arguments:
        return _optional(_codec(next(each for each in arguments if each is not NoneType)))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return _pair([_codec(each) for each in arguments])
    if origin in (list, tuple):
        return _sequence(_codec(arguments[0]), origin)
    if origin is dict:
        return _dict(*map(_codec, arguments))
    if hint in _SCALARS:
        return _scalar(*_SCALARS[hint])
    if hint is datetime:
        return Codec(datetime.isoformat, _read_time)
    kind: Any = hint
    if is_dataclass(kind):
        return Codec(_write_fields, lambda value, where: _read_fields(kind, value, where))
    if issubclass(kind, Enum):
        return Codec(lambda value: value.value, lambda value, where: _read_enum(kind, value, where))
    raise TypeError(f"{hint} has no JSON form")


# --- The values of fields

_SCALARS: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}


def _scalar(types: tuple[type, ...], noun: str) -> Codec:
    def read(value: Any, where: str) -> Any:
        if type(value) not in types or (type(value) is float and not math.isfinite(value)):
            raise InvalidMessage(f"{where} must be {noun}, not {value!r:.80}")
        return value

    return Codec(lambda value: value, read)


def _optional(codec: Codec) -> Codec:
    return Codec(
        lambda value: None if value is None else codec.write(value),
        lambda value, where: None if value is None else codec.read(value, where),
    )


def _sequence(codec: Codec, kind: type) -> Codec:
    def read(value: Any, where: str) -> Any:
        if not isinstance(value, list | tuple):
            raise InvalidMessage(f"{where} must be a list, not {value!r:.80}")
        return kind(codec.read(each, f"{where}[{number}]") for number, each in enumerate(value))

    return Codec(lambda value: [codec.write(each) for each in value], read)


def _pair(codecs: list[Codec]) -> Codec:
    def read(value: Any, where: str) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(codecs):
            raise InvalidMessage(f"{where} must be a list of {len(codecs)} values, not {value!r:.80}")
        found = zip(codecs, value, strict=True)
        return tuple(codec.read(each, f"{where}[{number}]") for number, (codec, each) in enumerate(found))

    return Codec(lambda value: [codec.write(each) for codec, each in zip(codecs, value, strict=True)], read)


def _dict(keys: Codec, codec: Codec) -> Codec:
    def read(value: Any, where: str) -> Any:
        if not isinstance(value, Mapping):
            raise InvalidMessage(f"{where} must be a JSON object, not {value!r:.80}")
        return {
            keys.read(key, f"the key of {where}"): codec.read(each, f"{where}.{key}")
            for key, each in value.items()
        }

    return Codec(lambda value: {keys.write(key): codec.write(each) for key, each in value.items()}, read)


def _read_time(value: Any, where: str) -> datetime:
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        at = None
    if at is None or at.tzinfo is None:
        raise InvalidMessage(
            f"{where} must be an ISO 8601 time with its offset, such as 2026-01-31T12:00:00+00:00, "
            f"not {value!r:.80}"
        )
    return at


def _read_enum(kind: type[Enum], value: Any, where: str) -> Enum:
    for member in kind:
        if member.value == value:
            return member
    raise InvalidMessage(f"{where} must be one of {', '.join(each.value for each in kind)}, not {value!r:.80}")


def _write_payload(value: Any) -> JSON:
    """Return a copy of a payload in which values that JSON does not have are tagged."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _write_payload(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_write_payload(each) for each in value]
    try:
        return tagged(value)
    except TypeError:
        raise InvalidMessage(f"{with_article(type(value).__name__)} has no JSON form") from None


def named(cls: Any) -> str:
    """Return the name of a class with its article."""
    return with_article(cls.__name__)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not valid JSON")
