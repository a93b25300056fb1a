"""Mutates real messages, as an attacker might."""

from __future__ import annotations

import base64
import json
import random
from copy import deepcopy
from typing import Any

#: Values to put in place of others.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**63 - 1, 10**400, -(10**400), 0.5, 1e300, 1e999),
    *("", "x", "a\nb", "\x00", "é\u202e", "x" * 300, "0", "tomorrow", "9999-12-31T23:59:59-14:00", "2026-01-01"),
    *(
        "gzip",
        "application/x-gzip",
        "application/json",
        "application/x-msgpack",
        "application/data",
        "utf-16",
        "unicode_escape",
    ),
    *([], [None], [[[[[]]]]], ["x"] * 40, {}, {"a": {"b": []}}, {"__type__": "uuid", "__value__": 1}),
)
#: Headers that Celery or this package reads and few messages have.
RARE_HEADERS = (
    *("stamps", "stamped_headers", "group", "group_index", "shadow", "chord", "callbacks", "compression", "eta"),
    *("expires", "timelimit", "ignore_result", "replaced_task_nesting", "properties", "delivery_info", "args"),
    *(
        "reply_to",
        "correlation_id",
        "hostname",
        "waooaw_reply_to",
        "waooaw_attempt",
        "_",
        "headers",
    ),
)
BYTES = (b"[", b"]", b"{", b'"', b"\\", b",", b"NaN", b"\xff", b"\x00", b"null", b"1e999", b'{"a":1}', b"\x1f\x8b")


def mutate_fields(message: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a message with some of its parts replaced, removed or added."""
    changed: dict[str, Any] = deepcopy(message)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        headers = changed.get("headers")
        part = rng.choice((changed, headers, headers, headers, changed.get("properties")))
        if not isinstance(part, dict):
            continue
        envelope = part.get("waooaw")
        if isinstance(envelope, dict) and rng.random() < 0.3:
            part = envelope
        kind = rng.random()
        if part and kind < 0.6:
            name = rng.choice([name for name in part if name not in ("headers", "properties")] or ["x"])
            part[name] = rng.choice(ODD_VALUES)
        elif part and kind < 0.75:
            part.pop(rng.choice([name for name in part if name not in ("headers", "properties")] or ["x"]), None)
        else:
            part[rng.choice(RARE_HEADERS)] = rng.choice(ODD_VALUES)
    if rng.random() < 0.4 and isinstance(changed.get("properties"), dict):
        changed["body"] = _mutated_body(changed.get("body"), rng)
        changed["properties"]["body_encoding"] = "base64"
    return changed


def _mutated_body(body: Any, rng: random.Random) -> str:
    if rng.random() < 0.5:
        parts: list[Any] = [[{"number": 1}], {}, {"callbacks": None, "chain": None}]
        parts[rng.randrange(3)] = rng.choice(ODD_VALUES)
        raw = json.dumps(rng.choice((parts, parts[:2], [*parts, 1], {"args": parts}))).encode()
    else:
        raw = mutate_bytes(body.encode() if isinstance(body, str) else b"[[], {}, {}]", rng)
    return base64.b64encode(raw).decode()


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Return bytes with some of them changed."""
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 4, 50)))
        changed[at:end] = rng.choice((b"", rng.choice(BYTES), rng.randbytes(end - at), changed[at:end] * 3))
    return bytes(changed)
