"""The support desk, in the process of the test and without servers."""

from __future__ import annotations

from collections.abc import Iterator

import desk
import pytest
import specialists
from desk_app import app

from waooaw_celery.agents import Workflows
from waooaw_celery.testing import Harness, harness

assert specialists.technician  # importing it registers its agents


@pytest.fixture
def agents_app() -> Iterator[Harness]:
    """All agents of the desk, for one test."""
    with harness(app) as found:
        yield found


def start(agents_app: Harness, text: str) -> Workflows:
    """Start the ticket ``t-1`` of Ada, and let the agents work."""
    workflows = Workflows(agents_app.app)
    workflows.start("desk.ticket", {"customer": "Ada", "text": text}, workflow_id="t-1")
    agents_app.run()
    return workflows


def test_a_specialist_is_found_by_its_capability(agents_app: Harness) -> None:
    """The technician answers a technical ticket; nobody is asked twice."""
    start(agents_app, "I see an error")
    answer = agents_app.result("t-1")
    assert answer["by"] == "technician"
    agents_app.assert_handled(to="technician", times=1)
    agents_app.assert_published("ticket.answered", where={"customer": "Ada"}, times=1)
    assert agents_app.sent(to="billing") == []


def test_a_ticket_is_escalated_when_the_specialist_fails(agents_app: Harness) -> None:
    """After two failures a person answers."""
    agents_app.fail_next("technician", ConnectionError("the manual is offline"), times=2)
    workflows = start(agents_app, "It crashes")
    agents_app.clock.advance(minutes=2)
    escalated = agents_app.assert_published("ticket.escalated", times=1)
    assert "the manual is offline" in escalated.payload["because"]
    workflows.signal("t-1", "answer", {"text": "We send you a new one."})
    assert agents_app.result("t-1") == {"text": "We send you a new one.", "by": "a person"}


def test_a_ticket_is_escalated_when_the_deadline_passes(agents_app: Harness) -> None:
    """A specialist whose worker does not run answers nobody: the ticket does not wait for it."""
    with agents_app.stopped("technician"):
        start(agents_app, "It crashes")
        agents_app.clock.advance(minutes=5)
    agents_app.assert_published("ticket.escalated", times=1)


def test_an_unknown_topic_goes_to_a_person(agents_app: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that talks instead of naming a topic does no harm."""

    class Chatterbox:
        def complete(self, prompt: str) -> str:
            return "As a language model, I …"

    monkeypatch.setattr(desk, "model", Chatterbox())
    start(agents_app, "It crashes")
    agents_app.assert_published("ticket.escalated", where={"because": "the topic is unknown"}, times=1)


@pytest.mark.parametrize(("approved", "text"), [(True, "500.00 euros back"), (False, "cannot refund")])
def test_a_person_decides_about_a_large_refund(agents_app: Harness, approved: bool, text: str) -> None:
    """The ticket waits a day for a person, and does what the person says."""
    workflows = start(agents_app, "I want a refund of 500 euros")
    agents_app.assert_published("approval.wanted", where={"ticket": "t-1", "refund": 500_00}, times=1)
    agents_app.clock.advance(days=1)
    assert agents_app.published("ticket.answered") == []
    workflows.signal("t-1", "approval", {"approved": approved, "by": "grace"})
    assert text in agents_app.result("t-1")["text"]


def test_a_large_refund_is_refused_when_nobody_decides(agents_app: Harness) -> None:
    """After two days without a decision the customer gets an answer all the same."""
    start(agents_app, "I want a refund of 500 euros")
    agents_app.clock.advance(days=3)
    assert "cannot refund" in agents_app.result("t-1")["text"]


def test_a_small_refund_needs_nobody(agents_app: Harness) -> None:
    """No person is asked about 20 euros."""
    start(agents_app, "Please refund 20 euros")
    assert agents_app.result("t-1")["refund"] == 20_00
    assert agents_app.published("approval.wanted") == []
