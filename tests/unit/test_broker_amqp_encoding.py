"""The frames of a publish are the bytes that py-amqp would write."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import Message, spec
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from hypothesis import given
from hypothesis import strategies as st

from waooaw_celery.broker.amqp.encoding import encode_properties, publish_frames

_NAMES = st.text(max_size=30)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=50)
    | st.binary(max_size=50)
    | st.just(datetime(2026, 1, 1, tzinfo=UTC))
    | st.just(Decimal("1.5"))
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=8
)


@given(headers=st.dictionaries(_NAMES, _VALUES, max_size=6), id_=st.text(max_size=60), priority=st.integers(0, 9))
def test_properties_are_those_of_py_amqp(headers: dict[str, Any], id_: str, priority: int) -> None:
    """For all types that AMQP has."""
    message = Message(
        b"",
        application_headers=headers,
        correlation_id=id_,
        priority=priority,
        delivery_mode=2,
        content_type="application/json",
        content_encoding="utf-8",
        reply_to="q",
        expiration="5",
    )
    assert encode_properties(message) == message._serialize_properties()


def test_rare_properties_are_written_by_py_amqp() -> None:
    """Such as the time stamp."""
    message = Message(b"", timestamp=5, app_id="a", correlation_id="c")
    assert encode_properties(message) == message._serialize_properties()


@pytest.mark.parametrize("body", [b"", b"x", "text with ü", b"y" * 5000, b"z" * 4088, b"z" * 4089])
@pytest.mark.parametrize("mandatory", [True, False])
def test_frames_are_those_of_py_amqp(body: Any, mandatory: bool) -> None:
    """Also where the body needs several frames."""
    written: list[bytes] = []
    connection: Any = SimpleNamespace(frame_max=4096, bytes_sent=0)
    transport: Any = SimpleNamespace(write=lambda data: written.append(bytes(data)))
    message = Message(body, application_headers={"task": "a.b", "n": {"x": [1]}}, correlation_id="id")

    arguments = dumps("Bssbb", (0, "", "agent.a", mandatory, False))
    frame_writer(connection, transport)(1, 7, spec.Basic.Publish, arguments, message)
    assert publish_frames(7, message, "", "agent.a", mandatory, 4096) == b"".join(written)


def test_headers_beyond_a_frame_are_refused() -> None:
    """RabbitMQ would close the connection."""
    message = Message(b"", application_headers={"large": "x" * 5000})
    with pytest.raises(ValueError, match="put large values in the payload"):
        publish_frames(1, message, "", "q", False, 4096)
