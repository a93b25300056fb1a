"""The ledger records what an agent answered, with the outcome of the request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, MessageStatus, MessageType
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.testing.embedded import end_all

KINDS = ["postgresql", "sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
PLAIN, ASYNC = ("probe", ()), ("async_probe", ("-P", "threads", "-c", "20"))


@pytest.fixture(scope="module", params=KINDS)
def answers_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker with a ledger of each kind."""
    ledger: Broker = request.getfixturevalue("ledger_broker")
    if request.param == "postgresql":
        yield ledger
        return
    folder = tmp_path_factory.mktemp("answers")
    url, database_url = ledger.url, f"sqlite:///{folder}/ledger.db"
    if request.param == "rabbitmq":
        url, database_url = request.getfixturevalue("amqp_url"), ledger.database_url or ""
    broker = Broker(url, ledger.redis_url, folder, database_url)
    app = broker.app()
    schema.upgrade(app.database)
    app.close()
    yield broker
    broker.clean()


@pytest.fixture
def broker(answers_broker: Broker) -> Broker:
    return answers_broker


@pytest.fixture(scope="module", params=[PLAIN, ASYNC], ids=lambda kind: kind[0])
def agent(answers_broker: Broker, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of an agent of plain or of async handlers."""
    app = answers_broker.app()
    name, (module, options) = answers_broker.name(), request.param
    worker = answers_broker.start(name, app, *options, module=module, waooaw_record_stream_parts=True)
    yield name
    end_all([worker])
    app.close()


def answers(app: AgentApp, message_id: str) -> list[AuditRecord]:
    """Return the answers that the ledger has in the conversation of a request."""
    records = MessageAuditTrail(app.ledger).conversation(message_id)
    return [each for each in records if each.receipt.message_type is MessageType.RESPONSE]


def answer(app: AgentApp, message_id: str) -> AuditRecord:
    """Return the one answer of a request, when its worker has recorded it."""
    until(lambda: answers(app, message_id), "the answer")
    [found] = answers(app, message_id)
    return found


def test_the_answer_is_what_the_agent_said_to_its_caller(app: AgentApp, agent: str) -> None:
    """It is a RESPONSE from the agent, in the conversation and with the correlation id of the request."""
    value = {"a": [1, None, "ü"]}
    response = Requests(app).send_request(agent, "echo", {"value": value}, from_agent="asker")
    record = answer(app, response.message_id)
    assert (record.receipt.from_agent, record.receipt.to_agent) == (agent, "asker")
    assert record.receipt.status is MessageStatus.ANSWERED
    assert record.receipt.correlation_id == response.message_id
    assert (record.conversation_id, record.causation_id) == (response.message_id, response.message_id)
    assert record.payload["result"] == value
    assert record.payload["error"] is None
    request = MessageAuditTrail(app.ledger).receipt(response.message_id)
    assert request.receipt.status is MessageStatus.HANDLED
    assert record.receipt.sent_at >= request.receipt.sent_at


def test_the_answer_is_kept_as_long_as_its_request(broker: Broker, agent: str) -> None:
    """The retention of the request is that of its answer, whatever the agent's own setting is."""
    app = broker.app(waooaw_retention="365 days")
    response = Requests(app).send_request(agent, "echo", {"value": 1})
    record = answer(app, response.message_id)
    assert record.retain_until - record.receipt.sent_at == timedelta(days=365)
    app.close()


def test_an_error_is_an_answer(app: AgentApp, agent: str) -> None:
    """It has the class, the text and the traceback that the caller got."""
    response = Requests(app).send_request(agent, "fail", {"text": "no such invoice"})
    assert not response.ok
    record = answer(app, response.message_id)
    error = record.payload["error"]
    assert (error["type"], error["message"]) == ("ValueError", "no such invoice")
    assert "in fail" in error["traceback"]
    assert record.payload["result"] is None


def test_a_stream_is_recorded_with_its_parts(app: AgentApp, agent: str) -> None:
    """The answer has the final result, and the number, the digest and the parts of the stream."""
    with Requests(app).stream(agent, "count", {"to": 3}, timeout=20) as stream:
        parts = list(stream)
    record = answer(app, stream.message_id)
    lines = "".join(json.dumps(part, sort_keys=True, separators=(",", ":")) + "\n" for part in parts)
    assert record.payload["result"] == stream.result
    assert record.payload["stream"] == {
        "count": len(parts),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "parts": parts,
    }


def test_the_answer_of_a_celery_task_is_recorded(app: AgentApp, agent: str) -> None:
    """A method that is called with ``apply_async`` answers too."""
    result = app.send_task(f"{agent}.echo", kwargs={"value": 5})
    assert result.get(timeout=20) == 5
    assert answer(app, str(result.id)).payload["result"] == 5


def test_one_way_messages_have_no_answer(app: AgentApp, agent: str) -> None:
    """The ledger records no answer to a message that nobody waits for."""
    message = Message(from_agent="tests", to_agent=agent, payload={})
    MessageBus(app).send(message)
    until(lambda: MessageBus(app).receipt(message.message_id).status.final, "the end")
    assert answers(app, message.message_id) == []


@pytest.mark.parametrize("value", ["\x00", "\ud800", 2**4000, {"k\x00": [b"\xff", 1e308]}], ids=ascii)
def test_every_value_that_can_be_sent_can_be_recorded(app: AgentApp, agent: str, value: object) -> None:
    """A value that a database does not take as text spoils neither the outcome nor the answer."""
    response = Requests(app).send_request(agent, "echo", {"value": value})
    assert response.result == value
    assert answer(app, response.message_id).payload["result"] == value
    assert MessageBus(app).receipt(response.message_id).status is MessageStatus.HANDLED


@pytest.mark.parametrize(
    "settings",
    [{"waooaw_audit_mode": "batched"}, {"waooaw_record_answers": False}],
    ids=["batched", "no answers"],
)
def test_settings_decide_how_answers_are_recorded(broker: Broker, app: AgentApp, settings: dict[str, Any]) -> None:
    """A stream has its digest only; with ``waooaw_record_answers`` off, the ledger has the facts only."""
    name = broker.name()
    with broker.running(name, app, **settings):
        response = Requests(app).send_request(name, "echo", {"value": 1})
        with Requests(app).stream(name, "count", {"to": 3}, timeout=20) as stream:
            assert len(list(stream)) == 3
        if "waooaw_record_answers" not in settings:
            assert answer(app, response.message_id).payload["result"] == 1
            assert set(answer(app, stream.message_id).payload["stream"]) == {"count", "sha256"}
    for message_id in (response.message_id, stream.message_id):
        assert MessageBus(app).receipt(message_id).status is MessageStatus.HANDLED
        assert len(answers(app, message_id)) == (0 if "waooaw_record_answers" in settings else 1)


def test_identities_stand_in_the_ledger(broker: Broker, agent: str) -> None:
    """The identity of the sender travels in the envelope, and the ledger has it."""
    app = broker.app(waooaw_sender_identity="did:web:example.org:tests")
    response = Requests(app).send_request(agent, "echo", {"value": 1})
    assert MessageAuditTrail(app.ledger).receipt(response.message_id).identity == "did:web:example.org:tests"
    assert answer(app, response.message_id).identity == "mailto:probe@example.org"
    own = Message(from_agent="tests", to_agent=agent, payload={}, identity="crm@example.org")
    MessageBus(app).send(own)
    assert MessageAuditTrail(app.ledger).receipt(own.message_id).identity == "crm@example.org"
    app.close()
