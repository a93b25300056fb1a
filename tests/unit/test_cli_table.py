"""The tables of the command line: every value can be copied whole, at every width of the terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from rich.cells import cell_len

from waooaw_celery.cli.output.table import fact_lines, table_lines
from waooaw_celery.cli.output.times import UTC_KEY
from waooaw_celery.ledger.read.records import AuditEvent, AuditRecord
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.wording import counted, with_article

ID = "4f5c2a9e-8f0e-4a7f-8a3e-0b6f6f0d5a11"
REASON = "ValueError: the invoice 8812 has no customer number, and the archive does not answer either"
COLUMNS = ("dead letter", "died", "from", "to handler", "message", "reason")
ROWS = [
    ("1795908851841-0", "42 s ago", "customer-support-assistant", "market-researcher-1.command", ID, REASON),
    ("1795908851842-0", "3 s ago", "boss", "worker-1.command", ID[::-1], None),
]


@pytest.mark.parametrize("width", [20, 80, 100, 120, 200, None])
def test_no_value_is_lost_or_broken_inside_a_word(width: int | None) -> None:
    """Ids, names and every word of a reason are whole at each width."""
    text = "\n".join(table_lines(COLUMNS, ROWS, width))
    words = [word for row in ROWS for cell in row if cell for word in cell.split()]
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_lines_fit_into_the_terminal(width: int) -> None:
    """No line is longer than the terminal is wide."""
    assert max(map(cell_len, table_lines(COLUMNS, ROWS, width))) <= width


def test_what_does_not_fit_follows_below_its_row_with_its_name() -> None:
    """The first columns stay on the row's line; an empty cell takes no line below it."""
    assert table_lines(
        ("id", "state", "reason"), [("1", "failed", "it is too large to be sent"), ("2", "ok", "")], 20
    ) == [
        "id  state",
        "--  ------",
        "1   failed",
        "    reason  it is too large to be",
        "            sent",
        "2   ok",
    ]


def test_the_last_column_of_a_line_is_wrapped_where_there_is_room() -> None:
    """With 24 characters or more for it, it stays on the line of its row."""
    assert table_lines(("id", "reason"), [("1", "the archive does not answer, and nobody knows")], 32) == [
        "id  reason",
        f"--  {'-' * 28}",
        "1   the archive does not answer,",
        "    and nobody knows",
    ]


def test_a_wide_table_has_one_line_for_each_row() -> None:
    """Without a width, a row is one line. A line break in a cell is escaped, so that it forges no row."""
    lines = table_lines(("id", "reason"), [("1", "first\nsecond " + 300 * "x")], None)
    assert lines[2:] == ["1   first\\nsecond " + 300 * "x"]


def test_numbers_are_aligned_to_the_right() -> None:
    """Empty cells do not matter."""
    assert table_lines(("topic", "published"), [("a", 5), ("b", None), ("c", 12)], 80)[2:] == [
        f"a      {5:9}",
        "b",
        f"c      {12:9}",
    ]


def test_characters_of_double_width_are_counted_as_two() -> None:
    """Columns stay aligned."""
    lines = table_lines(("name", "state"), [("東京", "ok"), ("ab", "ok")], 80)
    assert [cell_len(line[: line.index("ok")]) for line in lines[2:]] == [6, 6]


def test_nothing_in_a_cell_controls_the_terminal() -> None:
    """Escape characters are shown, not sent."""
    [*_, row] = table_lines(("reason",), [("it is \x1b[31mred\x07",)], 80)
    assert row == "it is \\x1b[31mred\\x07"


def test_facts_are_aligned_and_wrapped() -> None:
    """With --utc, times are in UTC; statuses are words, and structures are JSON."""
    at = datetime(2026, 11, 28, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    facts = [("at", at), ("status", MessageStatus.DEAD), ("payload", {"a": [1, "ü"]}), ("why", REASON)]
    with click.Context(click.Command("any")) as context:
        context.meta[UTC_KEY] = True
        lines = fact_lines(facts, 62)
    assert lines == [
        "at       2026-11-28 12:00:00.123 UTC",
        "status   dead",
        'payload  {"a": [1, "ü"]}',
        "why      ValueError: the invoice 8812 has no customer number,",
        "         and the archive does not answer either",
    ]


def test_receipts_and_records_have_a_short_repr() -> None:
    """It names the id, the route and the status, and leaves out the payload."""
    now = datetime.now(UTC)
    receipt = DeliveryReceipt(
        message_id=ID,
        from_agent="boss",
        to_agent="worker-1",
        handler="command",
        message_type=MessageType.COMMAND,
        priority=Priority.HIGH,
        status=MessageStatus.HANDLED,
        attempts=1,
        sent_at=now,
        delivered_at=now,
        finished_at=now,
        correlation_id=ID,
        error=None,
    )
    assert repr(receipt) == f"<DeliveryReceipt {ID}: boss to worker-1.command, handled>"
    event = AuditEvent(event="sent", attempt=0, at=now, worker=None, seconds=None, error=None)
    record = AuditRecord(
        receipt=receipt,
        payload={"secret": 1},
        payload_digest="",
        conversation_id=ID,
        causation_id=None,
        expires_at=None,
        retain_until=now,
        erased_at=None,
        events=(event,),
    )
    assert repr(record) == f"<AuditRecord {ID}: boss to worker-1.command, handled, 1 event>"


def test_a_number_and_an_article_agree_with_their_noun() -> None:
    """One message, two messages; a set, an object."""
    assert [counted(number, "message") for number in (0, 1, 2)] == ["0 messages", "1 message", "2 messages"]
    assert [with_article(noun) for noun in ("set", "object")] == ["a set", "an object"]
