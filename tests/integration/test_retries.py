"""Handlers are tried again as often and as soon as their retry policies allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from support import Broker, settled

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, MessageStatus, MessageType
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import RemoteError
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.testing.embedded import end

pytestmark = pytest.mark.usefixtures("dead_letters_alone")


@pytest.fixture(scope="module")
def app(ledger_broker: Broker) -> Iterator[AgentApp]:
    """An application that sends in the name of ``tests``."""
    app = ledger_broker.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def agent(ledger_broker: Broker, app: AgentApp) -> Iterator[str]:
    """Name of an agent whose handlers are retried; those without a policy, once."""
    name = ledger_broker.name()
    process = ledger_broker.start(name, app, module="retry_probe", waooaw_retries=1)
    yield name
    end(process)


@pytest.fixture
def send_and_wait(app: AgentApp, agent: str) -> Callable[..., tuple[MessageStatus, list[str]]]:
    """Return a function that sends a message and returns its final status, its events and its id."""

    def send(payload: Any, message_type: MessageType = MessageType.COMMAND, **fields: Any) -> Any:
        message = Message(from_agent="a", to_agent=agent, payload=payload, message_type=message_type, **fields)
        MessageBus(app).send(message)
        status = settled(app, message.message_id)
        events = MessageAuditTrail(app.ledger).receipt(message.message_id).events
        return status, [event.event for event in events if event.event != "sent"], message.message_id

    return send  # type: ignore[return-value]


def test_a_handler_is_tried_as_often_as_its_policy_allows(
    app: AgentApp, agent: str, send_and_wait: Callable[..., Any]
) -> None:
    """After three attempts with growing pauses, the message has failed with its own error and a dead letter."""
    status, events, id_ = send_and_wait({"error": "lost"})
    assert (status, events) == (MessageStatus.FAILED, ["delivered", "retried"] * 2 + ["delivered", "failed"])
    assert MessageBus(app).receipt(id_).error == "ConnectionError: lost"
    first, second, third = Requests(app).request(agent, "tried", {"message_id": id_})
    assert 0.2 <= second - first < 2
    assert 0.4 <= third - second < 2
    [dead_letter] = [each for each in app.dead_letters.list(agent=agent) if each.message_id == id_]
    assert dead_letter.reason == "ConnectionError: lost"


def test_a_message_is_handled_at_its_second_attempt(send_and_wait: Callable[..., Any]) -> None:
    """Its handler fails once."""
    status, events, _ = send_and_wait({"error": "lost", "times": 1})
    assert (status, events) == (MessageStatus.HANDLED, ["delivered", "retried", "delivered", "handled"])


@pytest.mark.parametrize("error", ["value", "pipe", "reject"])
def test_other_errors_are_not_retried(send_and_wait: Callable[..., Any], error: str) -> None:
    """An error that is not in ``on``, one that is in ``never``, and ``Reject``."""
    status, events, _ = send_and_wait({"error": error})
    assert (status, events) == (MessageStatus.FAILED, ["delivered", "failed"])


def test_coroutines_are_retried(send_and_wait: Callable[..., Any]) -> None:
    """An ``async def`` handler has a retry policy too."""
    status, events, _ = send_and_wait({"error": "value", "times": 2}, MessageType.QUERY)
    assert (status, events.count("retried")) == (MessageStatus.HANDLED, 2)


def test_the_setting_applies_to_handlers_without_a_policy(send_and_wait: Callable[..., Any]) -> None:
    """``waooaw_retries`` is 1 here."""
    assert send_and_wait({"error": "value", "times": 1}, MessageType.ACK)[0] is MessageStatus.HANDLED
    status, events, _ = send_and_wait({"error": "value"}, MessageType.ACK)
    assert (status, events.count("delivered")) == (MessageStatus.FAILED, 2)


def test_a_message_that_would_expire_is_not_retried(send_and_wait: Callable[..., Any]) -> None:
    """A message that expires before its next attempt fails at once with its error."""
    status, events, _ = send_and_wait({"error": "lost"}, ttl_seconds=0.5)
    assert (status, events) == (MessageStatus.FAILED, ["delivered", "retried", "delivered", "failed"])


def test_methods_and_generators_are_retried(app: AgentApp, agent: str) -> None:
    """The caller waits for the answer, or for the error of the last attempt."""
    requests = Requests(app)
    assert requests.request(agent, "answer", {"key": uuid4().hex, "times": 1}) == "answer"
    assert requests.request(agent, "count", {"key": uuid4().hex, "times": 1}) == [0, 1, 2]
    assert requests.request(agent, "plainly", {"key": uuid4().hex}, timeout=20) == "answer"
    with pytest.raises(RemoteError, match="ConnectionError: lost"):
        requests.request(agent, "answer", {"key": uuid4().hex, "times": 2})


def test_subscribers_are_retried(app: AgentApp, agent: str) -> None:
    """An event whose subscriber fails once is handled at the second attempt."""
    published = EventBus(app).publish("retry.me", {"error": "lost", "times": 1})
    assert settled(app, published.receipts[f"{agent}.noticed"].message_id) is MessageStatus.HANDLED


def test_a_dead_letter_of_an_event_is_retried_by_its_subscriber(app: AgentApp, agent: str) -> None:
    """It goes to the same subscription, with the attributes of the event."""
    published = EventBus(app).publish("retry.me", {"error": "lost", "times": 3})
    failed_id = published.receipts[f"{agent}.noticed"].message_id
    assert settled(app, failed_id) is MessageStatus.FAILED
    [dead_letter] = [each for each in app.dead_letters.list(agent=agent) if each.message_id == failed_id]
    [outcome] = app.dead_letters.retry([dead_letter])
    assert settled(app, str(outcome.new_id)) is MessageStatus.FAILED
    record = MessageAuditTrail(app.ledger).receipt(str(outcome.new_id))
    assert (record.receipt.message_type, record.receipt.handler) == (MessageType.EVENT, "event.noticed")
    assert record.event is not None
    assert (record.event.topic, record.event.id) == ("retry.me", published.event_id)


def test_lost_processes_have_the_same_limit(app: AgentApp, agent: str) -> None:
    """Celery's ``max_retries`` follows from the retry policy."""
    bounds = Requests(app).request(agent, "bounds")
    assert bounds == {"command": 2, "ack": 3, "plainly": 2, "tried": 3}
