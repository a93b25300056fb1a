"""The JSON forms of what the stores, the ledgers and the agents return, and of what the commands print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result
from support import Broker, note, settled

from waooaw_celery import AgentApp, EventBus, Message, MessageAuditTrail, MessageBus, MessageStatus
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.agents import AuditRecord, DeliveryReceipt, Page, RemoteError, Response, Statistics
from waooaw_celery.cli import waooaw
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.receipt import MessageEvent

#: A value of each type that a payload may have, and a text without a UTF-8 form.
PAYLOAD = {
    "at": datetime(2026, 11, 29, 9, 30, tzinfo=UTC),
    "naive": datetime(2026, 11, 29, 9, 30),
    "day": date(2026, 11, 29),
    "hour": time(9, 30),
    "sum": Decimal("1.10"),
    "id": uuid4(),
    "raw": [b"\xff", b"text"],
    "big": 2**80,
    "name": "Zoë 😀",
    "none": None,
}


@pytest.fixture(params=["valkey", "ledger", "sqlite"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[AgentApp, str]]:
    """An application that knows an agent without a worker: without a ledger, and with one in each database."""
    if request.param == "sqlite":
        url = request.getfixturevalue("redis_url")
        broker = Broker(url, url, tmp_path, f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    else:
        broker = request.getfixturevalue(f"{request.param}_broker")
    agent = broker.name()
    app = broker.app(waooaw_agents=[agent])
    if app.settings.database_url is not None:
        schema.upgrade(app.database)
    yield app, agent
    app.close()


def test_receipts_and_records_come_back(stored: tuple[AgentApp, str]) -> None:
    """Whatever store they are from. A record's payload equals what was sent."""
    app, agent = stored
    message = Message(from_agent="tests", to_agent=agent, payload=PAYLOAD)
    assert Message.from_json(message.to_json()) == message
    sent = MessageBus(app).send(Message.from_json(message.to_json()))
    assert DeliveryReceipt.from_json(sent.to_json()) == sent
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.FAILED, error="no\nreason")
    app.receipts.flush()
    receipt = MessageBus(app).receipt(message.message_id)
    assert receipt.error is not None
    assert DeliveryReceipt.from_json(receipt.to_json()) == receipt
    if app.settings.database_url is None:
        return
    EventBus(app).publish("forms.tested", PAYLOAD, from_agent="tests", subject=agent)
    trail = MessageAuditTrail(app.ledger)
    record = trail.receipt(message.message_id)
    assert record.payload == PAYLOAD
    assert AuditRecord.from_json(record.to_json()) == record
    page = trail.query(limit=1)
    assert (page.records[0].event is not None, page.after is not None) == (True, True)
    assert Page.from_json(page.to_json()) == page
    statistics = trail.statistics()
    assert Statistics.from_json(statistics.to_json()) == statistics


def test_responses_come_back(app: AgentApp, probe: str) -> None:
    """With the result, or with the error of the other agent and its traceback."""
    requests = Requests(app)
    answered = requests.send_request(probe, "echo", {"value": PAYLOAD}, timeout=20)
    assert answered.result == PAYLOAD
    assert Response.from_json(answered.to_json()) == answered
    failed = requests.send_request(probe, "fail", {"text": "no"}, timeout=20)
    late = requests.send_request(probe, "nap", {"seconds": 3}, timeout=0.2)
    for response in (failed, late):
        again = Response.from_json(response.to_json())
        assert (type(again.error), str(again.error)) == (type(response.error), str(response.error))
        assert (again.agent, again.message_id, again.seconds) == (probe, response.message_id, response.seconds)
    again = Response.from_json(failed.to_json())
    assert isinstance(again.error, RemoteError)
    assert isinstance(failed.error, RemoteError)
    assert again.error.traceback == failed.error.traceback != None  # noqa: E711


def test_the_commands_print_the_forms(app: AgentApp, probe: str, broker: Broker) -> None:
    """What ``--json`` prints is read back as the object that Python returns."""
    environment: dict[str, Any] = {
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_BACKEND": broker.redis_url,
        "WAOOAW_DATABASE_URL": broker.database_url,
        "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
    }

    def run(*arguments: str, exit_code: int = 0) -> Any:
        result: Result = CliRunner().invoke(waooaw, [*arguments, "--json"], env=environment)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    printed = run("request", probe, "fail", '{"text": "no"}', exit_code=1)
    assert printed.pop("ok") is False
    error = Response.from_dict(printed).error
    assert isinstance(error, RemoteError)
    assert (error.type, error.message) == ("ValueError", "no")
    assert settled(app, printed["message_id"]) is MessageStatus.FAILED
    receipt = MessageBus(app).receipt(printed["message_id"])
    assert DeliveryReceipt.from_dict(run("receipt", receipt.message_id)) == receipt
    if broker.database_url is None:
        return
    absent = broker.name()
    message = Message(from_agent="tests", to_agent=absent, payload=PAYLOAD)
    assert MessageAuditTrail(app.ledger).log_message(message)
    [record] = map(AuditRecord.from_dict, run("conversation", message.message_id))
    assert record == MessageAuditTrail(app.ledger).receipt(message.message_id)
    assert [AuditRecord.from_dict(each) for each in run("log", "--to", absent)] == [record]
    assert Statistics.from_dict(run("stats", "--since", "2999-01-01")).total == 0
