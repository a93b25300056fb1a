"""The service and its agent, in the process of the test and without servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from assistant import app
from fastapi.testclient import TestClient
from service import create_service

from waooaw_celery import create_app
from waooaw_celery.testing import Harness, harness


class Site(NamedTuple):
    """What a test uses: a client of the service, and the agents behind it."""

    http: TestClient
    agents: Harness


@pytest.fixture
def site() -> Iterator[Site]:
    """The service in front of its agent, for one test."""
    client = create_app("service", waooaw_rate_limit="2/minute")
    with harness(client, app) as agents, TestClient(create_service(client)) as http:
        yield Site(http, agents)


def test_a_question_is_answered(site: Site) -> None:
    """The answer of the agent is the answer of the service."""
    response = site.http.post("/answers", json={"question": "Is it late?"})
    assert response.status_code == 200
    assert response.json() == {"answer": "It depends. (Is it late?)"}


def test_an_agent_that_fails_is_a_bad_gateway(site: Site) -> None:
    """The error of the agent is told with its type."""
    response = site.http.post("/answers", json={"question": "No."})
    assert response.status_code == 502
    assert response.json() == {"error": "that is no question", "type": "ValueError"}


def test_an_agent_that_does_not_answer_is_a_gateway_timeout(site: Site) -> None:
    """A caller waits no longer than the timeout."""
    hurried = create_service(site.agents.app, timeout=0.2)  # the timeout of a coroutine takes real time
    with site.agents.stopped("assistant"), TestClient(hurried) as http:
        response = http.post("/answers", json={"question": "Are you there?"})
    assert response.status_code == 504


def test_too_many_requests_are_refused(site: Site) -> None:
    """The third request in a minute is refused, with the seconds after which it succeeds."""
    codes = [site.http.post("/answers", json={"question": "Why?"}).status_code for _ in range(2)]
    assert codes == [200, 200]
    refused = site.http.post("/answers", json={"question": "Why?"})
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    site.agents.clock.advance(minutes=1)
    assert site.http.post("/answers", json={"question": "Why?"}).status_code == 200


def test_an_answer_is_streamed_as_server_sent_events(site: Site) -> None:
    """Each part is an event, and the last event says that the answer has ended."""
    with site.http.stream("GET", "/answers/stream", params={"question": "Why?"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = "".join(response.iter_text()).split("\n\n")
    assert events[0] == 'data: "Let"'
    assert events[-3:] == ['data: "Why?"', "event: end\ndata:", ""]


def test_a_stream_that_fails_says_so(site: Site) -> None:
    """The headers are sent already, so the error is an event."""
    site.agents.fail_next("assistant.explain", ValueError("no idea"))
    body = site.http.get("/answers/stream", params={"question": "Why?"}).text
    assert "event: error" in body
    assert "no idea" in body


def test_a_document_has_a_receipt(site: Site) -> None:
    """The service answers before the agent has worked; the receipt says what has become of it."""
    posted = site.http.post("/documents", json={"text": "All about queues"})
    assert posted.status_code == 202
    url = f"/receipts/{posted.json()['receipt']}"
    assert site.http.get(url).json()["status"] == "sent"
    site.agents.run()
    assert site.http.get(url).json()["status"] == "handled"
    assert site.http.get("/receipts/nothing").status_code == 404
