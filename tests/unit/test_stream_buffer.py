"""The stream buffer: takes each part of a streamed answer once and in order, and notices missing parts."""

from __future__ import annotations

from typing import Any

import pytest

from waooaw_celery.agents.requests import stream as streams
from waooaw_celery.agents.requests.stream import StreamBuffer
from waooaw_celery.errors import StreamBroken


def part(number: int, run: str = "a") -> dict[str, Any]:
    return {"run": run, "number": number, "chunk": number}


def taken(incoming: StreamBuffer) -> list[Any]:
    chunks = []
    while (chunk := incoming.take()) is not None:
        chunks.append(chunk[0])
    return chunks


def test_repeated_part_is_taken_once() -> None:
    """After a reconnection the newest part is read again."""
    incoming = StreamBuffer(lambda: None)
    for number in (0, 1, 1, 0, 2):
        incoming.put(part(number))
    assert (taken(incoming), incoming.broken) == ([0, 1, 2], None)


def test_missing_part_breaks_the_stream() -> None:
    """The parts before it are taken, those after it are not, and the error names it."""
    incoming = StreamBuffer(lambda: None)
    for number in (0, 1, 4, 5):
        incoming.put(part(number))
    assert taken(incoming) == [0, 1]
    assert "parts 2 to 3 were lost" in (incoming.broken or "")


def test_part_of_another_attempt_breaks_the_stream() -> None:
    """Parts of a second attempt are not mixed with those of the first."""
    incoming = StreamBuffer(lambda: None)
    incoming.put(part(0))
    incoming.put(part(0, "b"))
    assert taken(incoming) == [0]
    assert "began its answer again" in (incoming.broken or "")


def test_full_buffer_breaks_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the caller is bounded."""
    monkeypatch.setattr(streams, "MAX_BUFFERED_PARTS", 3)
    incoming = StreamBuffer(lambda: None)
    for number in range(5):
        incoming.put(part(number))
    assert taken(incoming) == [0, 1, 2]
    assert "3 parts wait" in (incoming.broken or "")


def test_result_with_missing_parts_is_refused() -> None:
    """The final result contains the number of parts."""
    incoming = StreamBuffer(lambda: None)
    incoming.put(part(0))
    assert incoming.check_whole({"run": "a", "chunks": 1, "result": 7}) == 7
    with pytest.raises(StreamBroken, match="1 of 2 parts"):
        incoming.check_whole({"run": "a", "chunks": 2, "result": 7})
