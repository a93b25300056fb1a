"""The research crew, in the process of the test and without servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import crew
import pytest
import researchers
from crew_app import app

from waooaw_celery import RequestResponseHandler
from waooaw_celery.agents import Workflows
from waooaw_celery.testing import Harness, harness

TOPICS = list(researchers.LIBRARY)


@pytest.fixture
def agents_app() -> Iterator[Harness]:
    """The whole crew, for one test."""
    with harness(app) as found:
        yield found


def study(agents_app: Harness, budget: int) -> dict[str, Any]:
    """Return the result of a study with so many tokens."""
    workflows = Workflows(agents_app.app)
    given = {"question": "What are queues?", "topics": TOPICS, "budget": budget}
    workflows.start("lead.study", given, workflow_id=f"study-{budget}")
    result: dict[str, Any] = agents_app.result(f"study-{budget}")
    return result


def test_all_topics_are_researched(agents_app: Harness) -> None:
    """With enough tokens the report has everything, in the order of the topics."""
    result = study(agents_app, budget=1000)
    assert result["left_out"] == result["cut"] == []
    assert result["tokens"] == sum(len(text.split()) for text in researchers.LIBRARY.values())
    places = [result["report"].index(researchers.LIBRARY[topic]) for topic in TOPICS]
    assert places == sorted(places)


def test_the_researchers_share_the_work(agents_app: Harness) -> None:
    """Both researchers are asked, by their capability."""
    study(agents_app, budget=1000)
    asked = {record.receipt.to_agent for record in agents_app.handled(handler="research")}
    assert asked <= {"researcher-1", "researcher-2"}
    assert len(agents_app.handled(handler="research")) == len(TOPICS)


def test_the_budget_ends_the_work_politely(agents_app: Harness) -> None:
    """A report is written from what was found; it says what was cut and what was left out."""
    result = study(agents_app, budget=20)
    assert result["tokens"] == 20
    assert result["cut"] == ["history", "theory"]
    assert result["left_out"] == ["practice", "future"]
    assert "calls in …" in result["report"]


@pytest.mark.parametrize("budget", [0, 9, 10, 23, 27, 40])
def test_no_more_than_the_budget_is_spent(agents_app: Harness, budget: int) -> None:
    """Whatever the budget is, the words that are paid are at most that many."""
    result = study(agents_app, budget)
    assert result["tokens"] <= budget
    assert result["left_out"] or budget > 2 * crew.SMALLEST_SHARE


def test_a_researcher_that_fails_is_asked_again(agents_app: Harness) -> None:
    """A failure in one branch does not end the study."""
    agents_app.fail_next("researcher-1", ConnectionError("the library is closed"))
    agents_app.fail_next("researcher-2", ConnectionError("the library is closed"))
    workflows = Workflows(agents_app.app)
    given = {"question": "What are queues?", "topics": TOPICS, "budget": 1000}
    workflows.start("lead.study", given, workflow_id="study-again")
    agents_app.clock.advance(minutes=1)
    assert agents_app.result("study-again")["left_out"] == []


def test_the_report_arrives_in_parts(agents_app: Harness) -> None:
    """A reader gets each paragraph by itself."""
    notes = [{"topic": "history", "text": "Long ago", "tokens": 2, "cut": True}]
    requests = RequestResponseHandler(agents_app.app)
    with requests.stream("writer", "write", {"question": "Why?", "notes": notes}) as parts:
        assert list(parts) == ["Why?", "On history: Long ago …"]
