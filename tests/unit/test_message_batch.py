"""Batches of messages: what a handler sees, what it decides, and how it is registered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.base import BasePool

from waooaw_celery import Agent, AgentApp, Message, MessageType, create_app
from waooaw_celery.agents import MessageBatch
from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.worker.batches.batch_policy import BatchPolicy
from waooaw_celery.worker.batches.collector import BatchCollector
from waooaw_celery.worker.batches.job import BatchJob
from waooaw_celery.worker.batches.message_batch import Verdict, VerdictKind
from waooaw_celery.worker.health.startup_checks import check_batches


@pytest.fixture
def app() -> Iterator[AgentApp]:
    app = create_app(broker_url="redis://nowhere.invalid")
    yield app
    app.close()


@pytest.fixture
def agent(app: AgentApp) -> Agent:
    return Agent("store", app)


@pytest.fixture
def messages() -> list[Message]:
    return [Message(from_agent="a", to_agent="store", payload=number) for number in range(3)]


def ignore(batch: MessageBatch) -> None:
    """Do nothing."""


def test_a_batch_is_a_sequence_of_messages(messages: list[Message]) -> None:
    """It has a length, an order, items and slices, and its text shows no payload."""
    batch = MessageBatch(messages)
    assert (len(batch), list(batch), batch[1], batch[1:]) == (3, messages, messages[1], tuple(messages[1:]))
    assert messages[2] in batch
    assert repr(batch) == "<MessageBatch of 3>"


def test_messages_without_a_decision_are_handled(messages: list[Message]) -> None:
    """The last decision about a message counts; an error of the handler is that of the others."""
    batch, error = MessageBatch(messages), ValueError("no text")
    batch.retry(messages[0])
    batch.fail(messages[0], error)
    batch.retry(messages[1], OSError("busy"), countdown=2)
    failed, retried, handled = batch.verdicts()
    assert failed == Verdict(VerdictKind.FAILED, error)
    assert (retried.kind, str(retried.error), retried.countdown) == (VerdictKind.RETRIED, "busy", 2)
    assert handled.kind is VerdictKind.HANDLED
    raised = KeyError("gone")
    assert MessageBatch(messages).verdicts(raised) == [Verdict(VerdictKind.RAISED, raised)] * 3


@pytest.mark.parametrize(
    ("decide", "expected"),
    [
        (lambda batch, _: batch.fail(Message(from_agent="a", to_agent="b"), ValueError()), "has no message"),
        (lambda batch, message: batch.fail(message, "no text"), "takes an exception, not str"),
        (lambda batch, message: batch.retry(message, "busy"), "takes an exception, not str"),
        (lambda batch, message: batch.retry(message, countdown=-1), "countdown must be"),
        (lambda batch, message: batch.retry(message, countdown=float("inf")), "countdown must be"),
        (lambda batch, message: batch.retry(message, countdown=True), "countdown must be"),
        (lambda batch, message: batch.retry(message, countdown=float("nan")), "countdown must be"),
        (lambda batch, message: batch.verdicts() and batch.fail(message, ValueError()), "has ended"),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(
    messages: list[Message], decide: Callable[[Any, Message], object], expected: str
) -> None:
    """The error says what is wrong."""
    with pytest.raises(InvalidMessage, match=expected):
        decide(MessageBatch(messages), messages[0])


def test_a_handler_of_batches_is_registered_with_its_limits(agent: Agent) -> None:
    """The default time that the first message waits is 0.05 s."""
    task: Any = agent.on(MessageType.COMMAND, batch=100, within=2)(ignore)
    other: Any = agent.on(MessageType.ACK, batch=7)(ignore)
    assert (task.name, task.batch, other.batch) == ("store.command", BatchPolicy(100, 2.0), BatchPolicy(7, 0.05))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch": 0}, "from 1 to 1000"),
        ({"batch": -1}, "from 1 to 1000"),
        ({"batch": 1001}, "from 1 to 1000"),
        ({"batch": True}, "from 1 to 1000"),
        ({"batch": 2.5}, "from 1 to 1000"),
        ({"batch": 10, "within": -0.1}, "from 0 to 60 seconds"),
        ({"batch": 10, "within": 61}, "from 0 to 60 seconds"),
        ({"batch": 10, "within": True}, "from 0 to 60 seconds"),
        ({"batch": 10, "within": None}, "from 0 to 60 seconds"),
        ({"batch": 10, "within": float("nan")}, "from 0 to 60 seconds"),
        ({"within": 1}, "no batch=: add"),
        ({"batch": 10, "once": True}, "leave once=True out"),
        ({"batch": 10, "bind": True}, "leave bind=True out"),
        ({"batch": 10, "autoretry_for": (OSError,)}, "use retries="),
        ({"batch": 10, "rate_limit": "5/s"}, "leave rate_limit out"),
    ],
)
def test_bad_options_of_a_handler_of_batches_are_refused(
    agent: Agent, options: dict[str, Any], expected: str
) -> None:
    """The error says what to do, and nothing is registered."""
    with pytest.raises(ConfigurationError, match=expected):
        agent.on(MessageType.COMMAND, **options)(ignore)
    assert agent.app.agents == {"store": []}


def test_only_handlers_of_messages_take_batches(agent: Agent) -> None:
    """Methods, replies and subscriptions handle one message at a time."""
    with pytest.raises(ConfigurationError, match="each caller of a method gets its own answer"):
        agent.method(batch=10)(ignore)
    with pytest.raises(ConfigurationError, match=r"only handlers of @agent.on"):
        agent.reply(batch=10)(ignore)
    with pytest.raises(ConfigurationError, match=r"only handlers of @agent.on"):
        agent.subscribe("task.*", within=1)


def test_a_handler_of_batches_returns(agent: Agent) -> None:
    """A generator, and a function that takes no batch, are refused."""

    def parts(batch: MessageBatch) -> Iterator[int]:
        yield len(batch)

    with pytest.raises(ConfigurationError, match="it is a generator"):
        agent.on(MessageType.COMMAND, batch=10)(parts)
    with pytest.raises(ConfigurationError, match="the MessageBatch"):
        agent.on(MessageType.COMMAND, batch=10)(lambda: None)


def test_a_unit_test_can_call_a_handler_of_batches(agent: Agent, messages: list[Message]) -> None:
    """With a batch, and with one message, whose failure it raises."""
    sizes: list[int] = []

    def store(batch: MessageBatch) -> None:
        sizes.append(len(batch))
        if len(batch) == 1:
            batch.fail(batch[0], ValueError("bad"))

    task = agent.on(MessageType.COMMAND, batch=10)(store)
    task(MessageBatch(messages))
    with pytest.raises(ValueError, match="bad"):
        task(messages[0])
    assert sizes == [3, 1]


def test_a_unit_test_awaits_an_async_handler_of_batches(agent: Agent, messages: list[Message]) -> None:
    """The call returns its coroutine."""

    async def store(batch: MessageBatch) -> int:
        return len(batch)

    task = agent.on(MessageType.COMMAND, batch=10)(store)
    assert asyncio.run(task(MessageBatch(messages))) == 3


def test_an_eager_call_is_a_batch_of_its_own(app: AgentApp, agent: Agent) -> None:
    """Its failure is that of the task."""

    def store(batch: MessageBatch) -> None:
        [message] = batch
        if message.payload == "bad":
            batch.fail(message, ValueError("bad"))

    task = agent.on(MessageType.COMMAND, batch=10, retries=1)(store)
    with pytest.raises(ValueError, match="bad"):
        task.apply(args=("bad",), throw=True)


class GreenPool(BasePool):
    """A pool of greenlets."""

    is_green = True


@pytest.mark.parametrize(("pool", "has_loop"), [(GreenPool, True), (BasePool, False)])
def test_a_worker_that_cannot_collect_batches_does_not_start(
    app: AgentApp, agent: Agent, pool: type[BasePool], has_loop: bool
) -> None:
    """The error says which pools can."""
    worker = SimpleNamespace(pool_cls=pool, use_eventloop=has_loop)
    check_batches(app, worker)
    agent.on(MessageType.COMMAND, batch=10)(ignore)
    with pytest.raises(ConfigurationError, match="start the worker with --pool prefork, threads or solo"):
        check_batches(app, worker)
    check_batches(app, SimpleNamespace(pool_cls=BasePool, use_eventloop=True))


def test_batches_are_counted_while_threads_end_them() -> None:
    """The event loop counts, and a thread of the pool ends a batch at that moment: it has to wait."""
    consumer = SimpleNamespace(batches=SimpleNamespace(add_in_pool=lambda _: None))
    collector = BatchCollector(SimpleNamespace(batch=BatchPolicy(2, 0)), consumer)
    job, ended = BatchJob(SimpleNamespace(acks_late=True), []), threading.Event()

    def end() -> None:
        collector.has_ended(job)
        ended.set()

    thread = threading.Thread(target=end)

    class Jobs(set[BatchJob]):
        def __iter__(self) -> Iterator[BatchJob]:
            thread.start()
            assert not ended.wait(0.2)
            return super().__iter__()

    collector._jobs = Jobs()  # type: ignore[assignment]  # a set whose reading takes its time
    assert collector.uncounted() == 0
    thread.join(10)
    assert ended.is_set()
