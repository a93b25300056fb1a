"""Which messages count as lost, on PostgreSQL and on SQLite."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import pytest
from lost_messages import (
    declare_agent,
    lose_everything,
    raw_messages,
    rebuild_message,
    recover,
    send,
)
from support import Broker, note, queue_length

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import InvalidMessage, RequestTimeout
from waooaw_celery.ledger.read.lost import (
    MAX_RECOVERIES,
    LostMessageRules,
    claim_transaction,
    find_lost,
    record_recoveries,
)
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.receipt import MessageEvent

Process: TypeAlias = subprocess.Popen[bytes]


def test_a_restarted_worker_does_not_hold_what_it_began_before(broker: Broker, app: AgentApp) -> None:
    """It has the same name and sends heartbeats, but what was begun before its start is lost."""
    agent = declare_agent(broker, app)
    [message_id] = send(app, agent)
    note(app.receipts, rebuild_message(app, message_id), MessageEvent.DELIVERED, worker="w@h")
    lose_everything(broker)
    app.registry.declare(agent, ["command"], "w@h", 60, started_at=datetime.now(UTC) - timedelta(minutes=1))
    assert recover(app, agent).recovered == []
    app.registry.declare(agent, ["command"], "w@h", 60, started_at=datetime.now(UTC))
    assert recover(app, agent).recovered == [message_id]


def test_a_lost_retry_keeps_its_number(broker: Broker, app: AgentApp) -> None:
    """It is the attempt after the one that requested it, so that attempts stay bounded."""
    agent = declare_agent(broker, app)
    [message_id] = send(app, agent)
    message = rebuild_message(app, message_id)
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.RETRIED, worker="w@h")
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.RETRIED, worker="w@h", attempt=2)
    lose_everything(broker)
    assert recover(app, agent).recovered == [message_id]
    [(_, republished)] = raw_messages(broker, agent)
    assert republished["headers"]["retries"] == 2


def test_messages_that_need_no_recovery_are_left_alone(any_ledger: AgentApp, broker: Broker) -> None:
    """Those are expired messages, requests that a caller waits for, ended messages, and new ones."""
    agent = declare_agent(broker, any_ledger, "command", "echo")
    send(any_ledger, agent, 1, ttl_seconds=0.2)
    with pytest.raises(RequestTimeout):
        Requests(any_ledger).request(agent, "echo", {"value": 1}, timeout=0.3)
    streamed = Requests(any_ledger).stream(agent, "echo", {"value": 1}, timeout=60)
    [ended, erased] = send(any_ledger, agent, 2)
    note(any_ledger.receipts, rebuild_message(any_ledger, ended), MessageEvent.DELIVERED, MessageEvent.HANDLED)
    any_ledger.receipts.flush()
    lose_everything(broker)
    found = Recovery(any_ledger, after=30, pause=0.1).run(agent=agent)
    assert (found.looked_for, found.recovered) == (0, [])
    assert recover(any_ledger, agent).recovered == [erased]
    assert queue_length(any_ledger, agent) == 1
    streamed.close()


def test_a_refused_message_is_not_recovered(any_ledger: AgentApp, broker: Broker) -> None:
    """If one of two messages was sent before, both are refused, and the new one is FAILED."""
    agent = declare_agent(broker, any_ledger)
    old, new = (Message(from_agent="tests", to_agent=agent) for _ in range(2))
    MessageBus(any_ledger).send(old)
    any_ledger.receipts.flush()
    with pytest.raises(InvalidMessage, match="sent already"):
        MessageBus(any_ledger).send_many([new, old])
    receipt = MessageBus(any_ledger).receipt(new.message_id)
    assert (receipt.status, str(receipt.error)[:14]) == (MessageStatus.FAILED, "not published:")
    lose_everything(broker)
    assert recover(any_ledger, agent).recovered == [old.message_id]


def test_a_logged_message_is_not_recovered(any_ledger: AgentApp, broker: Broker) -> None:
    """A message that was only recorded, with ``log_message``, is never published."""
    agent = declare_agent(broker, any_ledger)
    message = Message(from_agent="tests", to_agent=agent)
    assert MessageAuditTrail(any_ledger.ledger).log_message(message)
    assert recover(any_ledger, agent).recovered == []


def test_a_message_with_an_event_after_the_look_is_left_alone(any_ledger: AgentApp, broker: Broker) -> None:
    """However long a run takes from its look to its claim, it does not publish what another run published."""
    [id_] = send(any_ledger, declare_agent(broker, any_ledger))
    rules = LostMessageRules(min_silence=timedelta(0), max_handling=timedelta(hours=1), exact=True)
    looked_at = datetime.now(UTC)
    for look, found in ((looked_at, 1), (looked_at, 0), (None, 1)):
        with claim_transaction(any_ledger.database) as connection:
            lost = find_lost(connection, [id_], rules, look or datetime.now(UTC))
            record_recoveries(connection, lost)
        assert len(lost) == found


def test_a_message_that_is_lost_too_often_fails(broker: Broker, app: AgentApp) -> None:
    """It is recovered five times, and then FAILED with an error that names the recoveries."""
    agent = declare_agent(broker, app)
    [message_id] = send(app, agent)
    for _ in range(MAX_RECOVERIES):
        lose_everything(broker)
        assert recover(app, agent).recovered == [message_id]
    lose_everything(broker)
    result = recover(app, agent)
    assert (result.recovered, result.given_up) == ([], [message_id])
    receipt = MessageBus(app).receipt(message_id)
    assert receipt.status is MessageStatus.FAILED
    assert receipt.error == "lost: it was recovered 5 times, and is not in the broker"
