"""The document pipeline, in the process of the test and without servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline import app, example, packed

from waooaw_celery import MessageStatus
from waooaw_celery.testing import Harness, harness


@pytest.fixture
def agents_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """The three agents, for one test, with an empty archive."""
    monkeypatch.setenv("ARCHIVE_FOLDER", str(tmp_path / "archive"))
    with harness(app) as found:
        yield found


@pytest.fixture(scope="module")
def text() -> str:
    """A text of more than two megabytes."""
    return example()


def test_a_large_document_goes_through_the_pipeline(agents_app: Harness, text: str) -> None:
    """Two megabytes are read, counted and archived, and the event about it is small."""
    agents_app.send("reader", {"name": "large.txt", "content": packed(text)})
    agents_app.run()
    event = agents_app.assert_published("document.indexed", times=1)
    assert event.payload["words"] == 400_000
    assert agents_app.request("archivist", "find", {"name": "large.txt"})["bytes"] == len(text)
    assert len(text) > 2_000_000
    assert agents_app.assert_sent(to="indexer", where=lambda record: record.reference is not None)


def test_a_damaged_document_is_a_dead_letter_at_once(agents_app: Harness) -> None:
    """It is not tried again, and nothing is archived."""
    receipt = agents_app.send("reader", {"name": "bad.txt", "content": packed("good")[:-8]})
    agents_app.run()
    assert agents_app.receipt(receipt).status is MessageStatus.FAILED
    assert agents_app.sent(to="archivist") == agents_app.sent(to="indexer") == []


def test_an_index_that_is_away_gets_the_document_again(agents_app: Harness, text: str) -> None:
    """A retry has the whole document."""
    agents_app.fail_next("indexer", ConnectionError("the index restarts"), times=3)
    agents_app.send("reader", {"name": "large.txt", "content": packed(text)})
    agents_app.clock.advance(minutes=5)
    agents_app.assert_published("document.indexed", where={"words": 400_000}, times=1)


def test_a_worker_that_is_killed_loses_no_document(agents_app: Harness) -> None:
    """The document is delivered again, and is indexed."""
    agents_app.kill_between("deliver", "handle", "indexer")
    agents_app.send("reader", {"name": "small.txt", "content": packed("one two two")})
    agents_app.clock.advance(minutes=5)
    agents_app.assert_published("document.indexed", where={"words": 3, "top": ["two", "one"]}, times=1)
