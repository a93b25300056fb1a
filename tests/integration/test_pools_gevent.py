"""An agent's worker on gevent, where Celery has no event loop of its own."""

from __future__ import annotations

import pytest
from support import Broker, settled

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.testing.embedded import end


@pytest.mark.slow
def test_an_agent_on_gevent_handles_many_messages_at_once(ledger_broker: Broker) -> None:
    """Ten greenlets handle forty messages, ten at a time, and requests are answered before and after."""
    app: AgentApp = ledger_broker.app()
    name = ledger_broker.name()
    worker = ledger_broker.start(name, app, "-P", "gevent", "-c", "10")
    try:
        requests = RequestResponseHandler(app)
        assert requests.request(name, "echo", {"value": 1}, timeout=20) == 1
        bus = MessageBus(app)
        sent = bus.send_many(
            Message(from_agent="tests", to_agent=name, payload={"sleep": 0.25}) for _ in range(40)
        )
        assert {settled(app, receipt.message_id) for receipt in sent} == {MessageStatus.HANDLED}
        receipts = [bus.receipt(receipt.message_id) for receipt in sent]
        first_end = min(receipt.finished_at for receipt in receipts if receipt.finished_at)
        concurrent = [receipt for receipt in receipts if receipt.delivered_at and receipt.delivered_at < first_end]
        assert 5 <= len(concurrent) <= 10
        assert requests.request(name, "echo", {"value": 2}, timeout=20) == 2
    finally:
        end(worker)
        app.close()


@pytest.mark.slow
def test_heartbeats_do_not_disturb_the_consumer(broker: Broker) -> None:
    """One greenlet publishes Celery's events, another reads: each message is delivered once."""
    app: AgentApp = broker.app()
    name = broker.name()
    worker = broker.start(name, app, "-P", "gevent", "-c", "20", "--heartbeat-interval", "1", "-E")
    try:
        bus = MessageBus(app)
        # Something arrives all the time: after each message, Celery reads the connection of its events.
        work = {"from_agent": "tests", "to_agent": name, "payload": {"sleep": 0.5}}
        sent = bus.send_many(Message(**work) for _ in range(120))
        assert {settled(app, receipt.message_id) for receipt in sent} == {MessageStatus.HANDLED}
        assert {bus.receipt(receipt.message_id).attempts for receipt in sent} == {1}
        assert "Connection to broker lost" not in (broker.folder / f"{name}.log").read_text()
    finally:
        end(worker)
        app.close()
