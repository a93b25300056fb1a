"""The JSON form of the error of a response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from waooaw_celery.errors import (
    BackendUnavailable,
    Cancelled,
    Expired,
    InvalidArguments,
    InvalidMessage,
    RemoteError,
    RequestTimeout,
    UnknownMethod,
    WaooawError,
)
from waooaw_celery.messages.json_form import Codec
from waooaw_celery.messages.validation import JSON
from waooaw_celery.messages.wording import with_article

#: The errors of responses that are made from a text alone, by name.
_PLAIN: dict[Any, type[WaooawError]] = {
    cls.__name__: cls
    for cls in (BackendUnavailable, Cancelled, Expired, InvalidArguments, RequestTimeout, UnknownMethod)
}


def _write(error: WaooawError) -> JSON:
    """Return an error as its class and its text; of a RemoteError, also what the other agent raised."""
    remote = None
    if isinstance(error, RemoteError):
        remote = {name: getattr(error, name) for name in ("agent", "type", "message", "traceback")}
    elif type(error) not in _PLAIN.values():
        raise InvalidMessage(f"{with_article(type(error).__name__)} is no error of a response")
    return {"type": type(error).__name__, "message": str(error), "remote": remote}


def _read(value: Any, where: str) -> WaooawError:
    names = ("type", "message", "remote")
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise InvalidMessage(f"{where} must be a JSON object of {', '.join(names)}, not {value!r:.80}")
    name, message = value["type"], value["message"]
    if name == RemoteError.__name__:
        return RemoteError(**_remote(value["remote"], f"{where}.remote"))
    if not isinstance(name, str) or name not in _PLAIN:
        raise InvalidMessage(f"{where}.type must be the name of an error of a response, not {name!r:.80}")
    if not isinstance(message, str):
        raise InvalidMessage(f"{where}.message must be text, not {message!r:.80}")
    return _PLAIN[name](message)


def _remote(value: Any, where: str) -> dict[str, Any]:
    """Return the arguments of a RemoteError."""
    arguments = {"agent": "agent", "type": "type_", "message": "message", "traceback": "traceback"}
    if not isinstance(value, Mapping) or set(value) != set(arguments):
        raise InvalidMessage(f"{where} must be a JSON object of {', '.join(arguments)}, not {value!r:.80}")
    for name, text in value.items():
        if not isinstance(text, str) and not (name == "traceback" and text is None):
            raise InvalidMessage(f"{where}.{name} must be text, not {text!r:.80}")
    return {arguments[name]: text for name, text in value.items()}


def _write_optional(error: WaooawError | None) -> JSON:
    return None if error is None else _write(error)


def _read_optional(value: Any, where: str) -> WaooawError | None:
    return None if value is None else _read(value, where)


#: The codec of the field ``Response.error``.
ERROR_CODEC = Codec(_write_optional, _read_optional)
