"""The trace context of a message: checked, carried, and left out where it is invalid."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from waooaw_celery import Message
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.publish_options import PublishOptions, options_of_messages
from waooaw_celery.messages.trace_context import MAX_CHARACTERS, trace_id, trace_of
from waooaw_celery.monitoring.tracing.nested_headers import with_nested_headers
from waooaw_celery.monitoring.tracing.opentelemetry_api import current_trace

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def message(**fields: Any) -> Message:
    """Return a message."""
    return Message(from_agent="a", to_agent="b", **fields)


def test_a_message_has_a_copy_of_its_trace_context() -> None:
    """What its maker changes afterwards does not change it."""
    own = dict(TRACE)
    sent = message(trace=own)
    own.clear()
    assert sent.trace == TRACE
    assert message().trace is None


@pytest.mark.parametrize(
    ("trace", "match"),
    [
        ("00-1", "trace must be a mapping"),
        ({"uber-trace-id": "1"}, "trace has the header 'uber-trace-id'"),
        ({"traceparent": 1}, "traceparent must be 1 to 8192 printable"),
        ({"traceparent": ""}, "traceparent must be"),
        ({"baggage": "ü"}, "baggage must be"),
        ({"baggage": "a\nb"}, "baggage must be"),
        ({"baggage": "a" * (MAX_CHARACTERS + 1)}, "baggage must be"),
    ],
)
def test_a_wrong_trace_context_is_refused(trace: Any, match: str) -> None:
    """The error names the header."""
    with pytest.raises(InvalidMessage, match=match):
        message(trace=trace)


def test_an_invalid_header_that_arrives_is_left_out() -> None:
    """The message can still be read."""
    headers = {"id": "m-1", **TRACE, "baggage": "a\x00", "tracestate": 7}
    arrived = Message.from_headers(headers, "b", {})
    assert arrived.trace == TRACE
    assert trace_of({"baggage": ["x"]}) is None


@pytest.mark.parametrize(
    ("trace", "found"),
    [
        (TRACE, "0af7651916cd43dd8448eb211c80319c"),
        ({"traceparent": "00-1"}, None),
        ({"baggage": "a=b"}, None),
        (None, None),
    ],
)
def test_the_id_of_a_trace_is_read_from_its_header(trace: dict[str, str] | None, found: str | None) -> None:
    """An invalid header has none."""
    assert trace_id(trace) == found


def test_the_ledger_keeps_the_trace_context_with_the_publish_options() -> None:
    """So a recovered message has it again."""
    sent = message(trace=TRACE)
    [options] = options_of_messages([sent, message()], None).values()
    assert PublishOptions.from_json(options.to_json()).trace == TRACE
    assert PublishOptions.from_json({}).trace is None


def test_the_nested_headers_have_all_custom_headers() -> None:
    """Celery takes the nested copy for all of them: without the envelope in it, the sender would be unknown."""
    headers = {"id": "m-1", "task": "b.command", "waooaw": {"from": "a"}, **TRACE}
    nested = with_nested_headers({**headers, "headers": {"sentry-trace": "1"}})["headers"]
    assert nested == {"sentry-trace": "1", "waooaw": {"from": "a"}, **TRACE}


def test_a_trace_context_that_a_receiver_would_refuse_is_not_sent() -> None:
    """Baggage that is too long is left out: the message can be read again from the ledger, and is recovered."""

    def inject(headers: dict[str, str]) -> None:
        headers |= {**TRACE, "baggage": "a" * (MAX_CHARACTERS + 1)}

    found: Any = SimpleNamespace(propagate=SimpleNamespace(inject=inject))
    assert current_trace(found) == TRACE
