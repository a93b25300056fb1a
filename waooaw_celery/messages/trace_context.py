"""The trace context of a message: the headers with which tracing systems join the spans of several processes.

``traceparent`` and ``tracestate`` are W3C Trace Context (https://www.w3.org/TR/trace-context/), ``baggage`` is W3C
Baggage (https://www.w3.org/TR/baggage/), ``sentry-trace`` is Sentry's. Each is a header of the Celery message
under its own name, because other libraries look for it there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from waooaw_celery.errors import InvalidMessage

#: Trace headers and their values.
TraceContext: TypeAlias = dict[str, str]

TRACEPARENT = "traceparent"
#: The headers that travel with a message.
TRACE_HEADERS = (TRACEPARENT, "tracestate", "baggage", "sentry-trace")
#: The most characters of one header: W3C Baggage names 8192 as what must be passed on.
MAX_CHARACTERS = 8192
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def check_trace(trace: object) -> TraceContext:
    """Return a copy of a trace context.

    Args:
        trace: a mapping from the names in ``TRACE_HEADERS`` to texts of printable ASCII.

    Raises:
        InvalidMessage: it is something else; the error names what.
    """
    if not isinstance(trace, Mapping):
        raise InvalidMessage(f"trace must be a mapping of trace headers or None, not {trace!r:.80}")
    for name, value in trace.items():
        if name not in TRACE_HEADERS:
            raise InvalidMessage(f"trace has the header {name!r:.80}; known: {', '.join(TRACE_HEADERS)}")
        if not _is_valid(value):
            raise InvalidMessage(
                f"trace: {name} must be 1 to {MAX_CHARACTERS} printable ASCII characters, not {value!r:.80}"
            )
    return dict(trace)


def trace_of(headers: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the trace context among the headers of a message, or None.

    An invalid header is left out, as W3C Trace Context asks for: it must not make a message unreadable.
    """
    trace = {name: headers[name] for name in TRACE_HEADERS if name in headers and _is_valid(headers[name])}
    return trace or None


def trace_id(trace: TraceContext | None) -> str | None:
    """Return the trace id, 32 hexadecimal digits, or None.

    Example:
        >>> trace_id({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
        '0af7651916cd43dd8448eb211c80319c'
    """
    found = _TRACEPARENT.fullmatch((trace or {}).get(TRACEPARENT, ""))
    return found.group(1) if found else None


def _is_valid(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_CHARACTERS and value.isascii() and value.isprintable()
