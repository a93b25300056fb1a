"""What holds in the test harness, on Valkey and on RabbitMQ alike: the harness must not promise anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import contract_agents
import pytest
from support import Broker, until

from waooaw_celery import (
    AgentApp,
    EventBus,
    Message,
    MessageAuditTrail,
    MessageBus,
    MessageStatus,
    MessageType,
    Priority,
    RequestResponseHandler,
)
from waooaw_celery.agents import DeliveryReceipt, Workflows, WorkflowStatus
from waooaw_celery.errors import (
    InvalidArguments,
    InvalidMessage,
    RateLimitExceeded,
    RemoteError,
    RequestTimeout,
    UnknownAgent,
    UnknownMethod,
    WorkflowFailed,
)
from waooaw_celery.testing import harness
from waooaw_celery.testing.embedded import end


@dataclass
class World:
    """A broker with the agents of ``contract_agents``.

    Attributes:
        app: an application that sends.
        first: the name of the first agent; that of the second one ends with ``-second``.
        run: has the agents handle what waits.
    """

    app: AgentApp
    first: str
    run: Callable[[], None]

    def send(self, payload: dict[str, Any], **fields: Any) -> DeliveryReceipt:
        """Send a command to the first agent."""
        message = Message(from_agent="tests", to_agent=self.first, payload=payload, **fields)
        return MessageBus(self.app).send(message)

    def ask(self, method: str, timeout: float = 20.0, /, **params: Any) -> Any:
        """Ask the first agent."""
        return RequestResponseHandler(self.app).request(self.first, method, params, timeout=timeout)

    def end_of(self, receipt: DeliveryReceipt) -> DeliveryReceipt:
        """Wait for the end of a message, and return its receipt."""
        bus = MessageBus(self.app)

        def ended() -> bool:
            self.run()
            return bus.receipt(receipt.message_id).status.final

        until(ended, "the end of a message")
        return bus.receipt(receipt.message_id)

    def done(self, test: str, count: int) -> list[Any]:
        """Wait until the first agent has noted a number of things, and return them."""

        def noted() -> bool:
            self.run()
            return len(self.ask("done", test=test)) >= count

        until(noted, f"{count} things to be done")
        found: list[Any] = self.ask("done", test=test)
        return found


@pytest.fixture(scope="module", params=["harness", "valkey", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The agents in the harness, and in workers on each broker with a ledger in PostgreSQL."""
    if request.param == "harness":
        contract_agents.app.conf.waooaw_sender = "tests"
        with harness(contract_agents.app) as agents_app:
            yield World(agents_app.app, contract_agents.NAME, agents_app.run)
        return
    ledger: Broker = request.getfixturevalue("ledger_broker")
    url = ledger.url if request.param == "valkey" else request.getfixturevalue("amqp_url")
    broker = Broker(url, ledger.redis_url, tmp_path_factory.mktemp("contract"), ledger.database_url)
    name, app = broker.name(), broker.app()
    workers = []
    try:
        for agent in (name, f"{name}-second"):
            workers.append(broker.start(agent, app, "-Q", f"agent.{agent}", module="contract_agents"))
        yield World(app, name, lambda: None)
    finally:
        for worker in workers:
            end(worker)
        app.close()
        broker.clean()


@pytest.fixture
def test() -> str:
    """A name of its own for each test."""
    return uuid4().hex


# --- messages


def test_urgent_messages_overtake_others(world: World, test: str) -> None:
    """While the agent is busy, messages wait by priority, and equal ones in the order in which they were sent."""
    world.send({"test": test, "value": "busy", "sleep": 0.5})
    for value, priority in (("n1", "NORMAL"), ("l", "LOW"), ("n2", "NORMAL"), ("u", "URGENT")):
        world.send({"test": test, "value": value}, priority=Priority[priority])
    values = world.done(test, 5)
    assert [value for value in values if value != "busy"] == ["u", "n1", "n2", "l"]


def test_a_message_that_waits_too_long_expires(world: World, test: str) -> None:
    """A message that no worker has begun in its time to live is EXPIRED, and is not handled."""
    busy = world.send({"test": test, "value": "busy", "sleep": 0.8})
    late = world.send({"test": test, "value": "late"}, ttl_seconds=0.3)
    assert world.end_of(busy).status is MessageStatus.HANDLED
    assert world.end_of(late).status is MessageStatus.EXPIRED
    assert world.done(test, 1) == ["busy"]


def test_a_failed_handler_is_tried_again(world: World, test: str) -> None:
    """A handler with a policy gets another attempt, and the receipt counts them."""
    receipt = world.send({"test": test, "value": 1, "fail": 1})
    ended = world.end_of(receipt)
    assert (ended.status, ended.attempts) == (MessageStatus.HANDLED, 2)


def test_a_message_that_fails_for_good_is_a_dead_letter(world: World, test: str) -> None:
    """The receipt has the error, the dead letter has the reason, and it can be retried as a new message."""
    receipt = world.send({"test": test, "reject": f"bad {test}"})
    ended = world.end_of(receipt)
    assert ended.status is MessageStatus.FAILED
    assert f"ValueError: bad {test}" in str(ended.error)
    [letter] = world.app.dead_letters.list(message_id=receipt.message_id)
    assert f"bad {test}" in letter.reason
    [outcome] = world.app.dead_letters.discard([letter], reason="seen")
    assert outcome.refused is None
    assert world.app.dead_letters.list(message_id=receipt.message_id) == []


def test_a_message_cannot_be_sent_twice(world: World, test: str) -> None:
    """A message that was handled is refused when it is sent again."""
    message = Message(from_agent="tests", to_agent=world.first, payload={"test": test, "value": 1})
    bus = MessageBus(world.app)
    world.end_of(bus.send(message))
    with pytest.raises(InvalidMessage, match="sent already"):
        bus.send(message)
    assert world.done(test, 1) == [1]


def test_what_a_handler_sends_belongs_to_the_same_conversation(world: World, test: str) -> None:
    """A message that a handler sends has the conversation of its message, which is its cause."""
    receipt = world.send({"test": test, "value": 1, "send_on": 2})
    assert world.done(test, 2) == [1, 2]
    world.end_of(receipt)
    trail = MessageAuditTrail(world.app.ledger)
    sent = [each for each in trail.conversation(receipt.message_id) if each.receipt.handler == "command"]
    assert [each.causation_id for each in sent] == [None, receipt.message_id]


def test_a_waiting_message_can_be_cancelled(world: World, test: str) -> None:
    """A message that is cancelled before a worker begins it is not handled."""
    world.send({"test": test, "value": "busy", "sleep": 0.6})
    receipt = world.send({"test": test, "value": "cancelled"})
    MessageBus(world.app).cancel(receipt.message_id)
    assert world.end_of(receipt).status is MessageStatus.CANCELLED
    assert world.done(test, 1) == ["busy"]


def test_a_batch_is_handled_together(world: World, test: str) -> None:
    """Messages of a handler of batches are given to it together."""
    bus = MessageBus(world.app)
    fields: Any = {"to_agent": f"{world.first}-second", "message_type": MessageType.QUERY}
    receipts = bus.send_many(Message(from_agent="tests", payload={"test": test}, **fields) for _ in range(3))
    assert [world.end_of(receipt).status for receipt in receipts] == [MessageStatus.HANDLED] * 3
    assert world.done(test, 3) == [3, 3, 3]


def test_a_retry_keeps_its_place_in_its_key(world: World, test: str) -> None:
    """Messages of one key are handled in the order of sending, also if one of them is tried again."""
    bus, fields = MessageBus(world.app), {"to_agent": f"{world.first}-second", "message_type": MessageType.ACK}
    for value, key in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a")):
        payload = {"test": test, "key": f"{test}-{key}", "value": value, "fails_first": value == "a1"}
        bus.send(Message(from_agent="tests", payload=payload, **fields))  # type: ignore[arg-type]
    values = world.done(test, 5)
    assert [value for value in values if value != "b1"] == ["a1", "a1", "a2", "a3"]


def test_a_rate_limit_refuses_what_is_too_much(world: World, test: str) -> None:
    """A sender that has reached its limit is refused, and told when it may send again."""
    sender = f"sender-{test[:8]}"
    world.app.limiter.set_quota(sender, "2/minute")
    bus = MessageBus(world.app)

    def send() -> None:
        bus.send(Message(from_agent=sender, to_agent=world.first, payload={"test": test}))

    send()
    send()
    with pytest.raises(RateLimitExceeded) as refused:
        send()
    assert 0 < refused.value.retry_after <= 60


def test_an_unknown_recipient_is_refused(world: World) -> None:
    """A message to an agent that was never declared is an error of its sender."""
    with pytest.raises(UnknownAgent):
        MessageBus(world.app).send(Message(from_agent="tests", to_agent=f"no-{uuid4().hex[:8]}", payload=1))


# --- requests


def test_a_request_returns_the_answer_or_the_error(world: World) -> None:
    """A caller gets the value that the method returns, or an error with the class of the method's."""
    assert world.ask("add", a=1, b=2) == 3
    with pytest.raises(RemoteError, match="KeyError"):
        world.ask("fail", kind="key")
    with pytest.raises(UnknownMethod):
        world.ask("subtract", a=1, b=2)
    with pytest.raises(InvalidArguments):
        world.ask("add", a="one", b=2)


def test_a_request_is_answered_after_another_attempt(world: World, test: str) -> None:
    """The answer of the second attempt reaches the caller, which waits."""
    assert world.ask("tried_again", test=test, times=2) == 2


def test_a_circle_of_requests_is_refused(world: World) -> None:
    """An agent that is asked back while it waits would wait for ever: the request is refused."""
    with pytest.raises(RemoteError, match="CircularRequest"):
        world.ask("ask_second", method="ask_first_back")


def test_a_request_times_out(world: World) -> None:
    """A caller waits no longer than its timeout, and the timeout of a handler's request counts there."""
    with pytest.raises(RemoteError, match="RequestTimeout"):
        world.ask("ask_second", method="sleep_long", timeout=0.3)
    with pytest.raises(RequestTimeout):
        RequestResponseHandler(world.app).request(f"{world.first}-second", "sleep_long", {}, timeout=0.3)


def test_a_coroutine_asks_another_agent(world: World) -> None:
    """An async handler awaits the answer of another agent."""
    answer = RequestResponseHandler(world.app).request(f"{world.first}-second", "from_coroutine", {}, timeout=20)
    assert answer == 42


def test_an_answer_arrives_in_parts(world: World) -> None:
    """The parts of a stream arrive in order, before its result."""
    with RequestResponseHandler(world.app).stream(world.first, "count", {"to": 5}, timeout=20) as stream:
        assert list(stream) == [0, 1, 2, 3, 4]
    assert stream.result == "counted"


def test_a_chain_of_celery_tasks_passes_results_on(world: World) -> None:
    """Celery's canvas works with the methods of agents."""
    add = f"{world.first}.add"
    chain = world.app.signature(add, kwargs={"a": 1, "b": 2}, immutable=True) | world.app.signature(
        add, kwargs={"a": 3, "b": 4}, immutable=True
    )
    assert chain.apply_async().get(timeout=20) == 7


# --- events and workflows


def test_an_event_reaches_the_subscriptions_that_match(world: World, test: str) -> None:
    """A subscriber gets the events of its topics that pass its filter."""
    bus = EventBus(world.app)
    for topic, to in (("contract.one", world.first), ("contract.two", "others"), ("other.three", world.first)):
        bus.publish(topic, {"test": test, "for": to}, from_agent="tests")
    bus.publish("contract.four", {"test": test, "for": world.first}, from_agent="tests")
    assert world.done(test, 2) == ["contract.one", "contract.four"]


def test_a_workflow_asks_sleeps_and_waits_for_a_signal(world: World, test: str) -> None:
    """A workflow goes on with each answer, time and signal, and its result can be read."""
    workflows = Workflows(world.app)
    workflows.start(f"{world.first}.report", {"test": test}, workflow_id=test)
    assert world.done(test, 1) == ["asked"]
    workflows.signal(test, "approve", {"approved": True, "by": "Ada"})
    assert workflows.result(test, timeout=20) == {"number": 1, "by": "Ada"}


def test_a_workflow_that_fails_is_undone(world: World, test: str) -> None:
    """The compensations of a workflow that fails are carried out."""
    workflows = Workflows(world.app)
    workflows.start(f"{world.first}.report", {"test": test}, workflow_id=test)
    workflows.signal(test, "approve", {"approved": False, "by": "Ada"})
    with pytest.raises(WorkflowFailed, match="refused"):
        workflows.result(test, timeout=20)
    assert workflows.get(test).status is WorkflowStatus.COMPENSATED
    assert world.done(test, 2) == ["asked", "undone"]
