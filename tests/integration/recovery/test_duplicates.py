"""A message that is delivered again after its end is skipped, and recorded as a duplicate."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from lost_messages import (
    declare_agent,
    event_names,
    redis_client,
    send,
)
from support import Broker, note, queue_length, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.messages.publish_options import RECOVERED_HEADER
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.messages.receipt import MessageEvent, MessageFact

Process: TypeAlias = subprocess.Popen[bytes]


def publish_copy(broker: Broker, agent: str, **headers: Any) -> None:
    """Add a copy of the message in an agent's queue, as a repeated publish does."""
    with redis_client(broker) as redis:
        [key] = [key for key in redis.keys(f"{agent_queue(agent).name}*") if not key.endswith(b"bell")]
        message = json.loads(redis.lindex(key, 0))
        message["headers"] |= headers
        redis.lpush(key, json.dumps(message))


@pytest.mark.parametrize("kind", ["strict", "batched", "redis"])
def test_a_message_that_is_delivered_twice_is_handled_once(
    broker: Broker, start: Callable[..., Process], kind: str
) -> None:
    """The copy is acknowledged and recorded, and the status does not change."""
    settings: dict[str, Any] = {"waooaw_database_url": None} if kind == "redis" else {"waooaw_audit_mode": kind}
    other = broker if kind != "redis" else Broker(broker.url, broker.redis_url, broker.folder)
    with closing(other.app(**settings)) as app:
        agent = declare_agent(other, app)
        [message_id] = send(app, agent)
        # Batched mode looks for duplicates only if a header says that the message may be one.
        publish_copy(broker, agent, **({RECOVERED_HEADER: 1} if kind == "batched" else {}))
        start(app, agent, on=other, **{name: value for name, value in settings.items() if value})
        assert settled(app, message_id) is MessageStatus.HANDLED
        until(lambda: queue_length(app, agent) == 0, "the end of the copy")
        with redis_client(broker) as redis:
            until(lambda: redis.hlen("unacked") == 0, "its acknowledgement")
        receipt = MessageBus(app).receipt(message_id)
        assert (receipt.status, receipt.attempts) == (MessageStatus.HANDLED, 1)
        seen = Requests(app).request(agent, "seen", timeout=20)
        assert [each["message_id"] for each in seen] == [message_id]
        if kind == "redis":
            return
        until(lambda: "duplicate" in event_names(app, message_id), "the note of the copy")
        events = Counter(event_names(app, message_id))
        assert (events["handled"], events["duplicate"]) == (1, 1)


def test_admission_returns_whether_a_message_has_ended(any_ledger: AgentApp) -> None:
    """A retry is admitted, a delivery after the end is not. An event that is recorded late is kept as it is."""
    agent = "w-1"
    message = Message(from_agent="tests", to_agent=agent, retention=any_ledger.settings.retention)
    any_ledger.receipts.begin_recording([(message, "command")])()

    def admit(attempt: int) -> bool:
        details: dict[str, Any] = {"message": message, "handler": "command", "worker": "w@h", "attempt": attempt}
        return any_ledger.receipts.begin(
            MessageFact(message_id=message.message_id, event=MessageEvent.DELIVERED, **details),
            may_be_redelivered=False,
        )

    assert admit(1)
    note(any_ledger.receipts, message, MessageEvent.RETRIED)
    assert admit(2)
    note(any_ledger.receipts, message, MessageEvent.HANDLED, attempt=2)
    assert not admit(1)
    note(any_ledger.receipts, message, MessageEvent.DELIVERED, worker="late@h")
    events = ["delivered", "retried", "delivered", "handled", "duplicate", "delivered"]
    assert event_names(any_ledger, message.message_id) == events
    assert MessageBus(any_ledger).receipt(message.message_id).status is MessageStatus.HANDLED


@pytest.mark.parametrize(
    ("method", "params", "answer"),
    [("echo", {"value": 7}, ("SUCCESS", "7")), ("fail", {"text": "no"}, ("FAILURE", "no"))],
)
def test_a_copy_of_a_request_keeps_its_result(
    broker: Broker, app: AgentApp, start: Callable[..., Process], method: str, params: Any, answer: Any
) -> None:
    """Its caller gets the result, and not an error that the request was revoked."""
    agent = declare_agent(broker, app, method)
    result = app.send_task(f"{agent}.{method}", kwargs=params)
    app.receipts.flush()
    publish_copy(broker, agent)
    start(app, agent)
    until(lambda: "duplicate" in event_names(app, result.id), "the copy")
    assert (result.state, str(result.result)) == answer


@pytest.mark.slow
def test_a_replaced_task_is_not_a_duplicate(broker: Broker, app: AgentApp, start: Callable[..., Process]) -> None:
    """A task that replaces a handler has the same id, and runs."""
    agent = broker.name()
    start(app, agent)
    params = {"to_agent": agent, "method": "echo", "params": {"value": 3}}
    assert Requests(app).request(agent, "let_another_answer", params, timeout=20) == 3


def test_a_message_is_handled_while_the_ledger_is_down(broker: Broker, tmp_path: Path) -> None:
    """It is unknown whether the message has ended: handling it twice is better than never."""
    url = f"sqlite:///{tmp_path}/no/such/folder.sqlite"
    for mode in ("strict", "batched"):
        settings = {
            "waooaw_database_url": url,
            "waooaw_audit_mode": mode,
            "waooaw_spool_folder": str(tmp_path / mode),
        }
        with closing(broker.app(**settings)) as app:
            message = Message(from_agent="tests", to_agent="nobody", retention=app.settings.retention)
            fact = MessageFact(
                message_id=message.message_id, event=MessageEvent.DELIVERED, message=message, handler="command"
            )
            began = time.monotonic()
            assert app.receipts.begin(fact, may_be_redelivered=True)
            assert time.monotonic() - began < 10
