"""The buffer of a stream gives each part once and in order, and detects what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from waooaw_celery.agents.requests import stream_buffer
from waooaw_celery.agents.requests.stream_buffer import StreamBuffer
from waooaw_celery.errors import StreamBroken


def part(number: int, run: str = "a") -> dict[str, Any]:
    return {"run": run, "number": number, "chunk": number}


def drain(buffer: StreamBuffer) -> list[Any]:
    chunks = []
    while (chunk := buffer.take()) is not None:
        chunks.append(chunk[0])
    return chunks


def test_a_part_that_arrives_twice_is_read_once() -> None:
    """After a reconnection, the newest part is received again."""
    buffer = StreamBuffer(lambda: None)
    for number in (0, 1, 1, 0, 2):
        buffer.put(part(number))
    assert (drain(buffer), buffer.broken) == ([0, 1, 2], None)


def test_a_missing_part_breaks_the_stream() -> None:
    """The parts before the gap are read, those after it are dropped, and the error names the missing ones."""
    buffer = StreamBuffer(lambda: None)
    for number in (0, 1, 4, 5):
        buffer.put(part(number))
    assert drain(buffer) == [0, 1]
    assert "parts 2 to 3 were lost" in (buffer.broken or "")


def test_another_run_breaks_the_stream() -> None:
    """Parts of a second attempt are not mixed with those of the first."""
    buffer = StreamBuffer(lambda: None)
    buffer.put(part(0))
    buffer.put(part(0, "b"))
    assert drain(buffer) == [0]
    assert "its handler was started again" in (buffer.broken or "")


def test_too_many_unread_parts_break_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer is bounded."""
    monkeypatch.setattr(stream_buffer, "MAX_BUFFERED_PARTS", 3)
    buffer = StreamBuffer(lambda: None)
    for number in range(5):
        buffer.put(part(number))
    assert drain(buffer) == [0, 1, 2]
    assert "3 parts are unread" in (buffer.broken or "")


def test_an_answer_without_its_last_part_is_incomplete() -> None:
    """The final result states the number of parts."""
    buffer = StreamBuffer(lambda: None)
    buffer.put(part(0))
    assert buffer.check_complete({"run": "a", "chunks": 1, "result": 7}) == 7
    with pytest.raises(StreamBroken, match="1 of 2 parts"):
        buffer.check_complete({"run": "a", "chunks": 2, "result": 7})
