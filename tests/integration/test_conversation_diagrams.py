"""Pictures of conversations that real agents had: retries, requests, events, an expired message, a workflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from xml.etree import ElementTree

import pytest
from support import Broker, settled, until
from test_events import Probes
from test_workflows import Probe

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, MessageStatus
from waooaw_celery.maintenance.diagrams.building import diagram_of
from waooaw_celery.maintenance.diagrams.mermaid import mermaid
from waooaw_celery.maintenance.diagrams.model import Arrow, ArrowKind, ConversationDiagram
from waooaw_celery.maintenance.diagrams.page import html_page
from waooaw_celery.maintenance.diagrams.svg.sequence import sequence_svg
from waooaw_celery.maintenance.diagrams.svg.timeline import timeline_svg
from waooaw_celery.maintenance.diagrams.tree import tree
from waooaw_celery.maintenance.diagrams.workflow_ids import workflow_ids
from waooaw_celery.testing.embedded import end, end_all


@pytest.fixture
def broker(ledger_broker: Broker) -> Broker:
    """The broker with a ledger: without one there is no conversation to draw."""
    return ledger_broker


def drawn(app: AgentApp, id_: str, until_messages: int = 1) -> ConversationDiagram:
    """Read a conversation when it has so many messages, check that everything can draw it, and return it."""
    trail = MessageAuditTrail(app.ledger)

    def is_whole() -> bool:
        records = trail.conversation(id_, payloads=False)
        return len(records) >= until_messages and all(each.receipt.status.final for each in records)

    until(is_whole, "the end of the conversation")
    records = trail.conversation(id_)
    workflows = workflow_ids(app.database, {each.conversation_id for each in records})
    diagram = diagram_of(records, workflows=workflows)
    for draw in (sequence_svg, timeline_svg):
        ElementTree.fromstring(draw(diagram))  # noqa: S314  # this package has written it
    assert mermaid(diagram).count("\n") == 1 + len(diagram.participants) + len(diagram.arrows)
    assert id_ in html_page(records, payloads=True, workflows=workflows)
    return diagram


def route(diagram: ConversationDiagram, arrow: Arrow) -> tuple[str, str]:
    return diagram.participants[arrow.source].name, diagram.participants[arrow.target].name


def test_retries_and_a_request_with_its_answer(app: AgentApp, start: Callable[..., str]) -> None:
    """A handler is tried twice and asks another agent: attempts, waiting, durations and the answer are drawn."""
    first, second = start(), start()
    message = Message(from_agent="tests", to_agent=first, payload={"fail_times": 1, "then_ask": second})
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    diagram = drawn(app, message.message_id, 5)
    command, *others = diagram.arrows
    assert [each.name for each in diagram.participants] == ["tests", first, second]
    assert [attempt.outcome for attempt in command.attempts] == ["retried", "handled"]
    assert "TimeoutError('not yet')" in str(command.attempts[0].error)
    assert command.waiting_seconds is not None
    assert command.waiting_seconds >= 0
    assert command.handling_seconds is not None
    requests = [each for each in others if each.kind is ArrowKind.REQUEST]
    answers = {each.message_id: each for each in others if each.kind is ArrowKind.ANSWER}
    assert {route(diagram, each) for each in requests} == {(first, second)}
    assert len(requests) == 2  # one of each attempt
    for request in requests:
        answer = answers[str(request.answer_id)]
        assert route(diagram, answer) == (second, first)
        assert answer.sent_at >= request.sent_at
    lines = list(tree(diagram))
    assert len(lines) == 1 + 1 + 2
    assert all("handled, answered" in line for line in lines[2:])


def test_an_expired_message(app: AgentApp, start: Callable[..., str]) -> None:
    """It has no attempt; its end is the time at which it expired."""
    agent = start()
    bus = MessageBus(app)
    busy = Message(from_agent="tests", to_agent=agent, payload={"sleep": 1.5})
    bus.send(busy)
    until(lambda: bus.receipt(busy.message_id).status is MessageStatus.DELIVERED, "the first message")
    message = Message(from_agent="tests", to_agent=agent, ttl_seconds=0.2)
    bus.send(message)
    assert settled(app, message.message_id) is MessageStatus.EXPIRED
    diagram = drawn(app, message.message_id)
    [arrow] = diagram.arrows
    assert (arrow.status, arrow.attempts, arrow.went_wrong) == (MessageStatus.EXPIRED, (), True)
    assert arrow.finished_at is not None
    assert diagram.failures == 1


@pytest.fixture
def probes(broker: Broker, app: AgentApp) -> Iterator[Probes]:
    probes = Probes(broker, app)
    yield probes
    end_all(probes.processes.values())


def test_an_event_is_fanned_out_by_its_topic(probes: Probes) -> None:
    """The event goes to its topic, and from there to each subscriber, with the end of each."""
    name = probes.start()
    published = probes.publish("retry.it", {"x": 1})
    for receipt in published.receipts.values():
        settled(probes.app, receipt.message_id)
    diagram = drawn(probes.app, published.event_id, 3)
    topic = f"{probes.topics}.retry.it"
    assert route(diagram, diagram.arrows[0]) == ("tests", topic)
    ends = {each.label: each.status for each in diagram.arrows if route(diagram, each) == (topic, name)}
    assert ends == {"event.retried": MessageStatus.HANDLED, "event.failing": MessageStatus.FAILED}
    assert {each.retries for each in diagram.arrows if each.label == "event.retried"} == {1}


@pytest.fixture
def workflows(broker: Broker, tmp_path_factory: Any) -> Iterator[Probe]:
    """A worker with workflows."""
    with closing(broker.app()) as app:
        found = Probe(broker, app, tmp_path_factory.mktemp("workflows") / "effects", "-P", "solo")
        try:
            yield found
        finally:
            end(found.process)


def test_a_workflow_is_told_from_a_request(workflows: Probe) -> None:
    """Its start is marked as a workflow, and the requests of its steps stand below it with their answers."""
    id_ = workflows.begin("adds", start=1, rounds=2)
    assert workflows.workflows.result(id_, 30) == 5
    diagram = drawn(workflows.app, id_, 5)
    kinds = [each.kind for each in diagram.arrows]
    assert kinds.count(ArrowKind.WORKFLOW) == 1
    assert kinds.count(ArrowKind.REQUEST) == 2
    [started] = [each for each in diagram.arrows if each.kind is ArrowKind.WORKFLOW]
    assert started.message_id == id_
    steps = [each for each in diagram.arrows if each.kind is ArrowKind.REQUEST]
    assert {each.cause_id for each in steps} == {id_}
    assert all(each.answer_id is not None for each in steps)
    assert [line for line in tree(diagram) if f"workflow tests \N{RIGHTWARDS ARROW} {workflows.name}.adds" in line]
