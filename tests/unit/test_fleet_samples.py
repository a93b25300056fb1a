"""What keeps the fleet's metrics few and valid: bounds, names of agents, kinds of reasons."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.dead_letters import OTHER_REASON, REASONS, reason_of
from waooaw_celery.maintenance.fleet.ledger import days_ahead
from waooaw_celery.maintenance.fleet.samples import (
    INVALID,
    OTHER,
    Samples,
    agent_labels,
    largest,
    sender_label,
)
from waooaw_celery.messages.validation import AGENT_NAME


def test_the_largest_keep_their_names() -> None:
    """All others are added up, and nothing is lost."""
    values = {f"a{n}": float(n) for n in range(100)}
    found = largest(values, 20)
    assert len(found) == 21
    assert sum(found.values()) == sum(values.values())
    assert found["a99"] == 99
    assert largest({"a": 1}, 20) == {"a": 1}


def test_the_first_agents_keep_their_names_in_all_metrics() -> None:
    """The choice does not depend on a value that changes, so that a series lasts."""
    label = agent_labels(["c", "a", "b"], limit=2)
    assert [label(name) for name in ("a", "b", "c", "unheard-of")] == ["a", "b", OTHER, OTHER]


def test_what_stands_for_others_is_no_name_of_an_agent() -> None:
    """So it never meets the series of an agent."""
    assert not AGENT_NAME.fullmatch(OTHER)
    assert not AGENT_NAME.fullmatch(INVALID)


@pytest.mark.parametrize("name", [None, "", "Ada Lovelace", "a\nb", 'x"y', "\ud800", "a" * 64, "ü"])
def test_a_sender_that_is_no_agent_is_no_label(name: str | None) -> None:
    """A message in a queue may name anything as its sender, also a person."""
    assert sender_label(name) == INVALID
    assert sender_label("planner-1") == "planner-1"


def test_a_label_is_one_short_printable_line() -> None:
    """Whatever a worker is called."""
    samples = Samples()
    samples.set(metrics.CLOCK_AHEAD, 1, 'w"\n\ud800\x1b@' + "h" * 1000)
    [[label]] = samples.values[metrics.CLOCK_AHEAD]
    assert label.isprintable()
    assert len(label) == 200
    label.encode()


def test_a_series_has_all_labels_of_its_metric() -> None:
    """A forgotten label is an error of the exporter, not a series without it."""
    with pytest.raises(ValueError, match="has the labels"):
        Samples().set(metrics.QUEUE_MESSAGES, 1, "writer")


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("ValueError: no such document", "handler_error"),
        ("my_agents.errors.NotFound: x", "handler_error"),
        ("KeyError", "handler_error"),
        ("WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL)", "worker_lost"),
        ("its consumer died 6 times", "worker_lost"),
        ("TimeLimitExceeded: 300", "time_limit"),
        ("SoftTimeLimitExceeded()", "time_limit"),
        ("UnknownMethod: agent 'a' has no method 'b'", "no_handler"),
        ("no queue is bound to '' any more", "undeliverable"),
        ("it could not be sent: too large", "undeliverable"),
        ("Reject: not mine", "rejected"),
        ("dropped from the queue by ada: too many", "dropped"),
        ("its header 'id' is not printable text", "unreadable"),
        ("it is not a task", "unreadable"),
        ("", OTHER_REASON),
        ("42 is the answer", OTHER_REASON),
    ],
)
def test_a_reason_is_one_of_a_fixed_set(sentence: str, reason: str) -> None:
    """The sentence itself, which may quote a message, is no label."""
    assert reason_of(sentence) == reason
    assert reason in {name for name, _ in REASONS} | {OTHER_REASON}


def test_days_ahead_ends_at_the_first_missing_month() -> None:
    """Rows that are kept beyond it go to the default partition."""
    now = datetime(2026, 11, 21, tzinfo=UTC)
    months = [Month(2026, 10), Month(2026, 11), Month(2026, 12), Month(2027, 2)]
    assert days_ahead(months, now) == 10 + 31
    assert days_ahead([Month(2026, 12)], now) == 0


def test_names_end_with_their_unit_and_have_a_text() -> None:
    """Each metric says what it means, and is declared once."""
    names = [metric.name for metric in metrics.ALL]
    assert len(set(names)) == len(names) > 25
    for metric in metrics.ALL:
        assert metric.name.startswith("waooaw_")
        assert metric.text.endswith(".")
        assert not metric.name.endswith("_total"), "a gauge is no counter"


def test_the_page_has_each_metric_with_its_labels() -> None:
    """`docs/reference/metrics.md` lists them all, and no other metric of the exporter."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    table = page.partition("## Metrics of the fleet")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(waooaw_\w+)` \|([^|]*)\|", table, flags=re.MULTILINE)
    assert {name: labels.strip() for name, labels in rows} == {
        metric.name: ", ".join(metric.labels) for metric in metrics.ALL
    }
