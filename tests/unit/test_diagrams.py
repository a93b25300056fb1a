"""The diagram of a conversation: participants, arrows, attempts, and how a large one is folded."""

from __future__ import annotations

from collections import Counter

import pytest
from conversation_records import at, event, every_kind, handled, large, record

from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.maintenance.diagrams.building import diagram_of
from waooaw_celery.maintenance.diagrams.folding import MAX_PARTICIPANTS
from waooaw_celery.maintenance.diagrams.model import (
    WORST_FIRST,
    Arrow,
    ArrowKind,
    ConversationDiagram,
    ParticipantKind,
)
from waooaw_celery.maintenance.diagrams.svg.time_scale import TimeScale
from waooaw_celery.maintenance.diagrams.text import duration, offset, shortened
from waooaw_celery.maintenance.diagrams.thread import thread_of
from waooaw_celery.messages.enums import MessageStatus, MessageType


def arrows_by_id(diagram: ConversationDiagram) -> dict[str, Arrow]:
    return {arrow.message_id: arrow for arrow in diagram.arrows}


def ends(diagram: ConversationDiagram, id_: str) -> tuple[str, str]:
    """Return the names of the participants between which a message goes."""
    arrow = arrows_by_id(diagram)[id_]
    return diagram.participants[arrow.source].name, diagram.participants[arrow.target].name


def test_participants_are_in_order_of_their_first_appearance() -> None:
    """Agents and topics stand in the order in which messages name them, each once."""
    diagram = diagram_of(every_kind())
    assert [each.name for each in diagram.participants] == [
        *("shop", "orders", "stock", "support", "order.shipped", "billing", "mailer", "ada", "courier")
    ]
    assert [each.kind for each in diagram.participants].count(ParticipantKind.TOPIC) == 1
    assert diagram.agents == 8


def test_an_event_goes_to_its_topic_and_from_there_to_the_subscribers() -> None:
    """The record of an event ends at its topic, and the deliveries begin there."""
    diagram = diagram_of(every_kind())
    assert ends(diagram, "event") == ("orders", "order.shipped")
    assert ends(diagram, "billed") == ("order.shipped", "billing")
    assert ends(diagram, "expired") == ("order.shipped", "mailer")
    assert arrows_by_id(diagram)["billed"].kind is ArrowKind.DELIVERY


def test_a_delivery_without_its_record_begins_at_the_publisher() -> None:
    """If the ledger has the record of the event no more, the arrow comes from the agent."""
    lone = record("one", "boss", "worker", handler="event.x", type_=MessageType.EVENT, cause="purged")
    assert ends(diagram_of([lone]), "one") == ("boss", "worker")


def test_a_request_has_its_answer_and_its_attempts() -> None:
    """The answer is tied to the request; each attempt has its times, its outcome and its error."""
    ask = arrows_by_id(diagram_of(every_kind()))["ask"]
    assert ask.answer_id == "answer"
    assert ask.retries == 1
    assert ask.waiting_seconds == 0.05
    assert ask.handling_seconds == 0.25
    first, second = ask.attempts
    assert (first.number, first.outcome, first.began_at, first.ended_at) == (1, "retried", at(0.25), at(0.5))
    assert first.error == "TimeoutError: the warehouse does not answer"
    assert (second.number, second.outcome, second.seconds) == (2, "handled", 0.25)


def test_an_attempt_whose_worker_died_is_lost() -> None:
    """An attempt without an end ends when the next one begins."""
    dead = arrows_by_id(diagram_of(every_kind()))["dead"]
    assert dead.is_dead_letter
    assert [(each.outcome, each.ended_at) for each in dead.attempts] == [("lost", at(2.6)), ("dead", at(2.8))]


def test_kinds_and_ends_are_told_apart() -> None:
    """Workflows, answers, open messages and those that went wrong are known; a running attempt has no end."""
    arrows = arrows_by_id(diagram_of(every_kind(), workflows={"order-7"}))
    assert arrows["order-7"].kind is arrows["input"].kind is ArrowKind.WORKFLOW
    assert arrows["ask"].kind is ArrowKind.REQUEST
    assert arrows["answer"].kind is ArrowKind.ANSWER
    assert arrows["running"].attempts[0].ended_at is None
    wrong = {id_ for id_, arrow in arrows.items() if arrow.went_wrong}
    assert wrong == {"failed", "dead", "expired"}
    diagram = diagram_of(every_kind())
    assert (diagram.failures, diagram.open, diagram.retries, diagram.messages) == (3, 2, 2, 12)
    assert arrows["dead"].depth == 3


def test_no_message_precedes_its_cause() -> None:
    """If the clock of a computer is behind, its messages stand after their causes all the same."""
    first = record("one", sent=10.0, events=handled(10.0))
    late = record("two", "worker", "other", sent=4.0, cause="one", events=handled(4.0))
    assert [arrow.message_id for arrow in diagram_of([first, late]).arrows] == ["one", "two"]


def test_a_thread_has_the_causes_and_the_consequences_of_a_message() -> None:
    """And nothing of its siblings; the order stays."""
    records = [
        record("first", sent=0),
        record("asked", sent=1, cause="first"),
        record("sibling", sent=2, cause="first"),
        record("deeper", sent=3, cause="asked"),
        record("deepest", sent=4, cause="deeper"),
        record("of-sibling", sent=5, cause="sibling"),
    ]
    found = [each.receipt.message_id for each in thread_of(records, "asked")]
    assert found == ["first", "asked", "deeper", "deepest"]
    with pytest.raises(UnknownMessage, match="'lost'"):
        thread_of(records, "lost")


def test_nothing_to_draw_is_refused() -> None:
    """A diagram needs a record and room for an arrow."""
    with pytest.raises(InvalidMessage, match="at least one record"):
        diagram_of([])
    with pytest.raises(InvalidMessage, match="1 or more, not 0"):
        diagram_of(every_kind(), max_arrows=0)


@pytest.mark.parametrize("max_arrows", [500, 100, 50, 20, 5, 1])
def test_folding_keeps_the_count_of_every_status(max_arrows: int) -> None:
    """Ten thousand messages become at most the asked number of arrows, which together count each message once."""
    diagram = diagram_of(large(10_000), max_arrows=max_arrows)
    assert len(diagram.arrows) <= max_arrows
    assert diagram.is_folded
    assert sum(arrow.count for arrow in diagram.arrows) == diagram.messages == 10_000
    statuses: Counter[MessageStatus] = Counter()
    for arrow in diagram.arrows:
        statuses.update(dict(arrow.by_status) if arrow.is_folded else {arrow.status: 1})
        worst = min(dict(arrow.by_status) or [arrow.status], key=WORST_FIRST.index)
        assert arrow.status is worst
    assert statuses == {MessageStatus.FAILED: 11, MessageStatus.HANDLED: 9_989} == dict(diagram.by_status)


def test_a_folded_arrow_leads_to_a_message_that_went_wrong() -> None:
    """It has the id of the first message with the worst status, and the longest times."""
    [arrow] = diagram_of(
        [
            record("good", events=handled(0.0, waited=0.5)),
            record("bad", sent=1.0, events=(event("delivered", 1.1, 1), event("failed", 1.2, 1, error="no"))),
            record("open", sent=1.5),
        ],
        max_arrows=1,
    ).arrows
    assert (arrow.message_id, arrow.status, arrow.error, arrow.count) == ("bad", MessageStatus.FAILED, "no", 3)
    assert arrow.waiting_seconds == 0.5
    assert arrow.finished_at is None  # one has not ended
    assert [status.value for status, _ in arrow.by_status] == ["failed", "sent", "handled"]


def test_the_slices_are_as_short_as_the_number_of_arrows_allows() -> None:
    """With room for more arrows, fewer messages share one."""
    few, many = (diagram_of(large(2_000), max_arrows=number).arrows for number in (60, 500))
    assert max(arrow.count for arrow in many) < max(arrow.count for arrow in few)
    assert len(many) > 100


def test_a_fan_out_to_many_agents_has_few_lifelines() -> None:
    """The busiest participants keep their lifelines; all others share one, which says how many they are."""
    records = [record(f"m{number}", to=f"worker-{number}", sent=number / 100) for number in range(300)]
    records += [record(f"again-{number}", to="worker-299", sent=4.0) for number in range(5)]
    diagram = diagram_of(records)
    assert len(diagram.participants) == MAX_PARTICIPANTS
    assert diagram.participants[0].name == "boss"
    assert "worker-299" in [each.name for each in diagram.participants]
    assert diagram.participants[-1].kind is ParticipantKind.OTHERS
    assert diagram.participants[-1].name == f"{301 - MAX_PARTICIPANTS + 1} others"
    assert diagram.agents == 301
    assert sum(arrow.count for arrow in diagram.arrows) == 305


def test_long_pauses_are_cut_out_of_the_time_scale() -> None:
    """A pause takes few pixels, order stays, and both ends of the scale are used."""
    scale = TimeScale([(0.0, 1.0), (100_000.0, 100_001.0), (0.5, 0.75)], 400)
    assert scale.cuts == [(1.0, 100_000.0)]
    places = [scale.place(seconds) for seconds in (-1.0, 0.0, 0.5, 1.0, 50_000.0, 100_000.0, 100_001.0, 1e9)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, pytest.approx(400))
    assert places[5] - places[3] < 30
    ticks = scale.ticks(40)
    assert not [tick for tick in ticks if 1.0 < tick < 100_000.0]
    assert 100_000.0 in ticks


def test_a_moment_has_a_scale_too() -> None:
    """Messages at one time do not divide by zero."""
    assert TimeScale([(0.0, 0.0)], 400).place(0.0) == 0.0


def test_durations_have_fitting_units() -> None:
    """From less than a millisecond to days; offsets after a minute are told apart by tenths of a second."""
    shown = [duration(seconds) for seconds in (0, 0.0001, 0.0123, 0.9999, 2.5, 59.99, 75, 3600, 90_000)]
    assert shown == ["0 ms", "<1 ms", "12 ms", "1.00 s", "2.50 s", "1 min", "1 min 15 s", "1 h", "1 d 1 h"]
    assert [offset(seconds) for seconds in (0, 0.06, 75, 90_061.5)] == [
        "0",
        "+60 ms",
        "+1:15.0",
        "+1 d 01:01:01.5",
    ]


def test_wide_characters_take_two_columns() -> None:
    """A text of wide characters is cut so that it fits."""
    assert shortened("\u4e2d\u6587\u4e2d\u6587", 5) == "\u4e2d\u6587\N{HORIZONTAL ELLIPSIS}"
    assert shortened("plain", 5) == "plain"
    assert shortened("plainly", 5) == "plai\N{HORIZONTAL ELLIPSIS}"
