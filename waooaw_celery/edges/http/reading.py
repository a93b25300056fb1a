"""Reads requests strictly: their JSON, their preferences (RFC 7240), their Idempotency-Key and their query."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.gateway import task_id_of
from waooaw_celery.edges.http.problems import Problem
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.validation import JSON, check_id, new_id

#: Longest Idempotency-Key, in characters.
MAX_KEY = 255
#: A preference: a token, and perhaps a value, which may be quoted.
_PREFERENCE = re.compile(r'\s*([A-Za-z0-9!#$%&\'*+.^_`|~-]+)\s*(?:=\s*("[^"]*"|[^\s;,"]*))?[^,]*')


@dataclass(frozen=True, slots=True)
class Preferences:
    """How a client prefers to be answered (RFC 7240).

    Attributes:
        respond_async: whether it rather gets a link at once, or after ``wait``.
        wait: seconds for which it waits; None: it does not say.
    """

    respond_async: bool = False
    wait: float | None = None

    @property
    def applied(self) -> str:
        """The header ``Preference-Applied``; empty: there was no preference."""
        told = ["respond-async"] if self.respond_async else []
        if self.wait is not None:
            told.append(f"wait={self.wait:g}")
        return ", ".join(told)


def principal_of(request: Request) -> Principal:
    """Return who makes a request, as the middleware has found out."""
    found: Principal = request.state.principal
    return found


async def json_of(request: Request, *, default: JSON = None) -> JSON:
    """Return the JSON of a request's body.

    Args:
        request: the request.
        default: what an empty body means.

    Raises:
        Problem: it is not JSON, or not said to be JSON.
    """
    body = await request.body()
    if not body:
        return default
    kind = media_type(request)
    if kind != "application/json" and not kind.endswith("+json"):
        raise Problem(415, f"the body must be application/json, not {kind or 'of no type'!s:.80}")
    return parse_json(body)


def parse_json(body: bytes) -> JSON:
    """Return the value of a JSON text.

    Raises:
        Problem: it is not JSON, or has a value that JSON does not have, or a key twice.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_refuse)
        if b"\\ud" in body.lower():  # an escape may be half a character, which no text has
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise Problem(400, "the body is not UTF-8") from None
    except UnicodeEncodeError:
        raise Problem(400, "the body has an unpaired surrogate: escape both halves of a character") from None
    except RecursionError:
        raise Problem(400, "the JSON is nested too deep") from None
    except ValueError as error:
        raise Problem(400, f"the body is not valid JSON: {error!s:.200}") from None
    return value


def media_type(request: Request) -> str:
    """Return the media type of a request's body, without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def preferences(request: Request) -> Preferences:
    """Return how a client prefers to be answered. What is unknown or invalid is ignored, as RFC 7240 has it."""
    found: dict[str, str] = {}
    for part in ",".join(request.headers.getlist("prefer")).split(","):
        match = _PREFERENCE.fullmatch(part)
        if match is not None:
            found.setdefault(match[1].lower(), (match[2] or "").strip('"'))
    wait = found.get("wait", "")
    is_number = wait.isascii() and wait.isdigit() and len(wait) < 10
    return Preferences("respond-async" in found, float(wait) if is_number else None)


def wants_events(request: Request) -> bool:
    """Whether a client accepts server-sent events rather than JSON."""
    kinds = [each.partition(";")[0].strip().lower() for each in request.headers.get("accept", "").split(",")]
    return "text/event-stream" in kinds


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key of a request, or None.

    Raises:
        Problem: it is empty, too long, or there are several.
    """
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':  # the draft has a quoted string; most clients send it plain
        key = key[1:-1]
    if len(keys) > 1 or not 0 < len(key) <= MAX_KEY or not key.isprintable():
        raise Problem(400, f"Idempotency-Key must be one text of 1 to {MAX_KEY} printable characters")
    return key


def id_for(principal: Principal, key: str | None) -> str:
    """Return the id for a request: that of its key, or a new one.

    Args:
        principal: who makes it.
        key: its Idempotency-Key, or None.
    """
    return new_id() if key is None else task_id_of(principal, key)


def priority_of(request: Request) -> Priority:
    """Return the priority of a call: the query's ``priority``.

    Raises:
        InvalidMessage: there is no such priority.
    """
    return Priority.of(request.query_params.get("priority", Priority.NORMAL))


def timeout_of(request: Request, longest: float) -> float:
    """Return the seconds that a task may take: the query's ``timeout``.

    Args:
        request: the request.
        longest: the longest time of this edge, and what holds if the query says nothing.

    Raises:
        Problem: it is no number of seconds, or too long.
    """
    text = request.query_params.get("timeout")
    if text is None:
        return longest
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= longest:
        raise Problem(400, f"timeout must be a number of seconds, more than 0 and at most {longest:g}")
    return seconds


def conversation_of(request: Request) -> str | None:
    """Return the id of the conversation of a call: the query's ``conversation``.

    Raises:
        InvalidMessage: it is no valid id.
    """
    found = request.query_params.get("conversation")
    return None if found is None else check_id(found, "conversation")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no value of JSON")
