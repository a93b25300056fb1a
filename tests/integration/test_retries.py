"""Handlers that say so are tried again, as often and as soon as they say, and never in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from support import Broker, settled

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, MessageStatus, MessageType
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.embedded import end
from waooaw_celery.errors import RemoteError
from waooaw_celery.ledger.trail import MessageAuditTrail

pytestmark = pytest.mark.usefixtures("dead_letters_alone")


@pytest.fixture(scope="module")
def app(ledger_broker: Broker) -> Iterator[AgentApp]:
    """An application that speaks as ``tests``."""
    app = ledger_broker.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def agent(ledger_broker: Broker, app: AgentApp) -> Iterator[str]:
    """Name of an agent whose handlers are tried again; those that say nothing, once."""
    name = ledger_broker.name()
    process = ledger_broker.start(name, app, module="retry_probe", waooaw_retries=1)
    yield name
    end(process)


@pytest.fixture
def told(app: AgentApp, agent: str) -> Callable[..., tuple[MessageStatus, list[str]]]:
    """Send a message, and return its end and what became of it before."""

    def send(payload: Any, message_type: MessageType = MessageType.COMMAND, **fields: Any) -> Any:
        message = Message(from_agent="a", to_agent=agent, payload=payload, message_type=message_type, **fields)
        MessageBus(app).send(message)
        status = settled(app, message.message_id)
        events = MessageAuditTrail(app.ledger).receipt(message.message_id).events
        return status, [event.event for event in events if event.event != "sent"], message.message_id

    return send  # type: ignore[return-value]


def test_a_handler_is_tried_as_often_as_it_says(app: AgentApp, agent: str, told: Callable[..., Any]) -> None:
    """Three attempts with growing pauses, then it has failed, with its own error and a letter."""
    status, events, id_ = told({"error": "lost"})
    assert (status, events) == (MessageStatus.FAILED, ["delivered", "retried"] * 2 + ["delivered", "failed"])
    assert MessageBus(app).receipt(id_).error == "ConnectionError: lost"
    first, second, third = Requests(app).request(agent, "tried", {"message_id": id_})
    assert 0.2 <= second - first < 2
    assert 0.4 <= third - second < 2
    [letter] = [each for each in app.dead_letters.list(agent=agent) if each.message_id == id_]
    assert letter.reason == "ConnectionError: lost"


def test_a_handler_that_recovers_is_handled(told: Callable[..., Any]) -> None:
    """The second attempt does it."""
    status, events, _ = told({"error": "lost", "times": 1})
    assert (status, events) == (MessageStatus.HANDLED, ["delivered", "retried", "delivered", "handled"])


@pytest.mark.parametrize("error", ["value", "pipe", "reject"])
def test_what_is_not_worth_it_is_tried_once(told: Callable[..., Any], error: str) -> None:
    """An error that is not named, one that is excepted, and ``Reject``, which is a decision."""
    status, events, _ = told({"error": error})
    assert (status, events) == (MessageStatus.FAILED, ["delivered", "failed"])


def test_coroutines_are_tried_again(told: Callable[..., Any]) -> None:
    """An ``async def`` handler as well as a plain one."""
    status, events, _ = told({"error": "value", "times": 2}, MessageType.QUERY)
    assert (status, events.count("retried")) == (MessageStatus.HANDLED, 2)


def test_the_setting_is_for_handlers_that_say_nothing(told: Callable[..., Any]) -> None:
    """``waooaw_retries`` is one here."""
    assert told({"error": "value", "times": 1}, MessageType.ACK)[0] is MessageStatus.HANDLED
    status, events, _ = told({"error": "value"}, MessageType.ACK)
    assert (status, events.count("delivered")) == (MessageStatus.FAILED, 2)


def test_a_retry_that_would_come_too_late_is_none(told: Callable[..., Any]) -> None:
    """A message that expires before its next attempt has failed at once, with its error."""
    status, events, _ = told({"error": "lost"}, ttl_seconds=0.5)
    assert (status, events) == (MessageStatus.FAILED, ["delivered", "retried", "delivered", "failed"])


def test_methods_and_generators_are_tried_again(app: AgentApp, agent: str) -> None:
    """The caller waits meanwhile, and gets the answer, or the error of the last attempt."""
    requests = Requests(app)
    assert requests.request(agent, "answer", {"key": uuid4().hex, "times": 1}) == "answer"
    assert requests.request(agent, "count", {"key": uuid4().hex, "times": 1}) == [0, 1, 2]
    assert requests.request(agent, "plainly", {"key": uuid4().hex}, timeout=20) == "answer"
    with pytest.raises(RemoteError, match="ConnectionError: lost"):
        requests.request(agent, "answer", {"key": uuid4().hex, "times": 2})


def test_subscribers_are_tried_again(app: AgentApp, agent: str) -> None:
    """An event that its subscriber failed to handle is handled at the second attempt."""
    published = EventBus(app).publish("retry.me", {"error": "lost", "times": 1})
    assert settled(app, published.receipts[f"{agent}.noticed"].message_id) is MessageStatus.HANDLED


def test_an_event_that_its_subscriber_gave_up_is_sent_again_to_it(app: AgentApp, agent: str) -> None:
    """Its letter goes to the same subscription, with the event's attributes."""
    published = EventBus(app).publish("retry.me", {"error": "lost", "times": 3})
    old = published.receipts[f"{agent}.noticed"].message_id
    assert settled(app, old) is MessageStatus.FAILED
    [letter] = [each for each in app.dead_letters.list(agent=agent) if each.message_id == old]
    [outcome] = app.dead_letters.retry([letter])
    assert settled(app, str(outcome.new_id)) is MessageStatus.FAILED
    record = MessageAuditTrail(app.ledger).receipt(str(outcome.new_id))
    assert (record.receipt.message_type, record.receipt.handler) == (MessageType.EVENT, "event.noticed")
    assert record.event is not None
    assert (record.event.topic, record.event.id) == ("retry.me", published.event_id)


def test_what_takes_its_process_with_it_has_the_same_bound(app: AgentApp, agent: str) -> None:
    """Celery's own ``max_retries`` says as often."""
    said = Requests(app).request(agent, "bounds")
    assert said == {"command": 2, "ack": 3, "plainly": 2, "tried": 3}
