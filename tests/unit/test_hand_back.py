"""A message without a handler is handed back while another living worker has its handler, and else given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.common import QoS
from support import until

from waooaw_celery.errors import StoreUnavailable, UnknownAgent
from waooaw_celery.store.agents.worker_handlers import (
    known_handlers,
    partial_handlers,
    split_reports,
    stored_report,
)
from waooaw_celery.worker.hand_back import hand_back
from waooaw_celery.worker.hand_back.hand_back import HandBack
from waooaw_celery.worker.health.progress import Progress

NAME, QUEUE = "greeter.added", "agent.greeter"
REASON = "the worker has no handler 'greeter.added'"


class Registry:
    """The registry of agents, as the workers see it.

    Attributes:
        workers: the handlers of the workers of ``greeter``.
        error: what a reading raises.
        readings: how often it was read.
    """

    def __init__(self) -> None:
        self.workers: dict[str, tuple[str, ...]] = {"blue@h": ("both",), "green@h": ("both", "added")}
        self.error: Exception | None = None
        self.readings = 0

    def get(self, name: str) -> Any:
        self.readings += 1
        if self.error is not None:
            raise self.error
        return SimpleNamespace(worker_handlers=self.workers)

    def close(self) -> None:
        """Do nothing."""


class Consumer:
    """The consumer of the worker ``blue@h``, with a timer that the test advances.

    Attributes:
        scheduled: the pauses and the calls of its timer.
    """

    def __init__(self, registry: Registry) -> None:
        self.app = SimpleNamespace(open_registry=lambda: registry)
        self.hostname, self.hub, self.timer = "blue@h", object(), self
        self.qos = QoS(lambda **_: None, 4)
        self.connection_errors: tuple[type[Exception], ...] = (ConnectionError,)
        self.channel_errors: tuple[type[Exception], ...] = ()
        self.scheduled: list[tuple[float, Callable[[], Any]]] = []

    def call_after(self, pause: float, call: Callable[[], Any]) -> None:
        self.scheduled.append((pause, call))

    def advance(self) -> None:
        """Make the calls that are scheduled."""
        due, self.scheduled = self.scheduled, []
        for _, call in due:
            call()


class Delivery:
    """A message that arrived at the worker."""

    def __init__(self, message_id: str = "m1", error: Exception | None = None, **headers: Any) -> None:
        self.headers = {"id": message_id, "task": NAME, "retries": 0, **headers}
        self.channel = None
        self.requeued = 0
        self._error = error

    def requeue(self) -> None:
        self.requeued += 1
        if self._error is not None:
            raise self._error


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def consumer(registry: Registry) -> Consumer:
    return Consumer(registry)


@pytest.fixture
def given_up() -> list[str]:
    """The reasons with which messages were given up."""
    return []


@pytest.fixture
def take(consumer: Consumer, given_up: list[str]) -> Callable[..., Delivery]:
    """A function that lets a message arrive."""
    hand_back = HandBack(consumer)

    def _take(message: Delivery | None = None, name: str = NAME, queue: str = QUEUE) -> Delivery:
        message = message or Delivery()
        hand_back.take(message, name, queue, given_up.append)
        return message

    return _take


def settled(consumer: Consumer, message: Delivery, given_up: list[str]) -> bool:
    """Make the calls that are scheduled, and return whether the message was handed back or given up."""
    consumer.advance()
    return bool(message.requeued or given_up)


def test_it_is_handed_back_once_if_another_worker_has_its_handler(
    consumer: Consumer, take: Any, given_up: list[str]
) -> None:
    """Not at once, because this worker would get it again."""
    message = take()
    assert not message.requeued
    until(lambda: settled(consumer, message, given_up), "the hand-back")
    assert (message.requeued, given_up, consumer.scheduled) == (1, [], [])


@pytest.mark.parametrize(
    "workers",
    [{"blue@h": ("both",)}, {"blue@h": ("added",)}, {"blue@h": ("both",), "green@h": ("both",)}, {}],
    ids=["alone", "an older declaration of this worker", "same version", "none declares"],
)
def test_it_is_given_up_if_no_other_living_worker_has_its_handler(
    registry: Registry, consumer: Consumer, take: Any, given_up: list[str], workers: dict[str, tuple[str, ...]]
) -> None:
    """The reason is that of a worker without the handler."""
    registry.workers = workers
    message = take()
    until(lambda: settled(consumer, message, given_up), "the end")
    assert (message.requeued, given_up, consumer.scheduled) == (0, [REASON], [])


def test_it_is_given_up_if_the_agent_is_not_known(
    registry: Registry, consumer: Consumer, take: Any, given_up: list[str]
) -> None:
    """The store may have lost its data."""
    registry.error = UnknownAgent("agent 'greeter' is not known")
    message = take()
    until(lambda: settled(consumer, message, given_up), "the end")
    assert given_up == [REASON]


@pytest.mark.parametrize(
    ("name", "queue"),
    [("proj.tasks.add", QUEUE), (NAME, "agent.other"), (NAME, "celery")],
    ids=["a plain task", "another agent's queue", "a plain queue"],
)
def test_other_messages_are_given_up_at_once(
    registry: Registry, take: Any, given_up: list[str], name: str, queue: str
) -> None:
    """No worker of the agent consumes that queue, or declares that task."""
    take(name=name, queue=queue)
    assert given_up == [f"the worker has no handler {name!r}"]
    assert registry.readings == 0


def test_it_is_given_up_when_the_other_worker_is_gone(
    registry: Registry, consumer: Consumer, take: Any, given_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A declaration counts for some seconds only."""
    monkeypatch.setattr("waooaw_celery.worker.hand_back.other_workers.FRESH_SECONDS", 0.0)
    first = take()
    until(lambda: settled(consumer, first, given_up), "the hand-back")
    del registry.workers["green@h"]
    second = take()
    until(lambda: settled(consumer, second, given_up), "the end")
    assert (second.requeued, given_up) == (0, [REASON])


def test_a_worker_that_has_just_started_counts(
    registry: Registry, consumer: Consumer, take: Any, given_up: list[str]
) -> None:
    """That no worker had the handler before is not remembered."""
    started = registry.workers.pop("green@h")
    first = take()
    until(lambda: settled(consumer, first, given_up), "the end")
    registry.workers["green@h"] = started
    second = take(Delivery("m2"))
    until(lambda: consumer.advance() or second.requeued, "the hand-back")
    assert given_up == [REASON]


def test_the_pauses_get_longer_up_to_two_seconds(consumer: Consumer, take: Any, given_up: list[str]) -> None:
    """So a message whose worker is busy does not move all the time."""
    first, pauses = take(), []
    until(lambda: settled(consumer, first, given_up), "the first reading")
    for number in range(40):
        take(Delivery("busy"))
        pauses.append(consumer.scheduled[-1][0])
        assert number or pauses[0] < 0.03
        consumer.scheduled.clear()
    assert max(pauses) <= 2.0
    assert min(pauses[-5:]) >= 1.0


def test_a_message_is_given_up_after_an_hour(
    consumer: Consumer, take: Any, given_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But its retry is another message, and so is one that another worker had for long."""
    first = take()
    until(lambda: settled(consumer, first, given_up), "the hand-back")
    monkeypatch.setattr(hand_back, "GIVE_UP_SECONDS", 0.0)
    last = take()
    until(lambda: settled(consumer, last, given_up), "the end")
    assert (last.requeued, given_up) == (0, [f"{REASON}, and no other worker has taken it for 0 s"])
    monkeypatch.setattr(hand_back, "GIVE_UP_SECONDS", 0.5)
    begun = time.monotonic()
    until(lambda: time.monotonic() - begun > 0.6, "half a second")
    retry = take(Delivery(retries=1))
    until(lambda: settled(consumer, retry, []), "the hand-back of the retry")
    monkeypatch.setattr(hand_back, "FORGET_SECONDS", 0.1)
    again = take()
    until(lambda: settled(consumer, again, []), "the hand-back of an old one")
    assert len(given_up) == 1


def test_nothing_is_lost_while_the_store_does_not_answer(
    registry: Registry, consumer: Consumer, take: Any, given_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message waits, and is handed back after some seconds; the outage is logged once."""
    registry.error = StoreUnavailable("the store is away")
    message = take()
    until(lambda: consumer.advance() or registry.readings > 2, "three readings")
    assert (message.requeued, given_up) == (0, [])
    monkeypatch.setattr(hand_back, "UNANSWERED_SECONDS", 0.0)
    until(lambda: settled(consumer, message, given_up), "the hand-back")
    assert (message.requeued, given_up) == (1, [])


def test_a_waiting_message_leaves_its_place_to_another(
    consumer: Consumer, take: Any, given_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prefetch count is raised while it waits, up to a limit, and lowered afterwards."""
    monkeypatch.setattr(hand_back, "MAX_BEYOND_PREFETCH", 3)
    messages = [take(Delivery(f"m{number}")) for number in range(5)]
    assert consumer.qos.value == 4 + 3
    until(lambda: consumer.advance() or all(each.requeued for each in messages), "the hand-backs")
    assert consumer.qos.value == 4


def test_a_message_of_a_lost_connection_is_left_to_the_broker(
    consumer: Consumer, take: Any, given_up: list[str]
) -> None:
    """The broker has redelivered it, and the prefetch count of the new connection stays."""
    message, consumer.qos = take(), QoS(lambda **_: None, 4)
    consumer.advance()
    assert (message.requeued, given_up, consumer.scheduled, consumer.qos.value) == (0, [], [], 4)


def test_a_connection_that_is_lost_during_the_hand_back_does_not_end_the_worker(
    consumer: Consumer, take: Any, given_up: list[str]
) -> None:
    """The broker redelivers the message."""
    message = take(Delivery(error=ConnectionError("lost")))
    until(lambda: settled(consumer, message, given_up), "the attempt")
    assert given_up == []


def test_a_message_without_a_handler_is_progress(consumer: Consumer, take: Any) -> None:
    """The watchdog must not take a worker for stalled whose queue has only messages that it hands back."""
    progress = Progress(SimpleNamespace(app=consumer.app), 0)
    try:
        take()
        assert progress._claimed == 1
    finally:
        progress.close()


def test_a_timer_with_a_thread_of_its_own_leaves_the_work_to_the_thread_that_consumes(
    consumer: Any, take: Any, given_up: list[str]
) -> None:
    """A channel must not be used by two threads."""
    soon: list[Callable[[], Any]] = []
    consumer.hub, consumer.pool, consumer.call_soon = None, SimpleNamespace(is_green=False), soon.append
    message = take()

    def turn() -> int:
        consumer.advance()
        assert not message.requeued or not soon
        while soon:
            soon.pop()()
        return int(message.requeued)

    until(turn, "the hand-back")


def test_the_known_handlers_are_those_of_all_living_workers() -> None:
    """Those that were declared last count without a living worker, or beside one that declares none."""
    two = {"blue@h": ("a",), "green@h": ("a", "b")}
    assert known_handlers(["a"], list(two), two) == ("a", "b")
    assert known_handlers(["a", "old"], list(two), two) == ("a", "b")
    assert known_handlers(["old"], [*two, "older@h"], two) == ("a", "b", "old")
    assert known_handlers(["old"], [], {}) == ("old",)
    assert known_handlers(None, [], {}) is None
    assert partial_handlers(two) == {"b": ("green@h",)}
    assert partial_handlers({"one@h": ("a",)}) == {}


def test_a_stored_report_gives_the_report_and_the_handlers_back() -> None:
    """A worker of an older version has no handlers in its report."""
    stored = {
        "new@h": stored_report({"clock": 1}, ["b", "a"]),
        "empty@h": stored_report(None, []),
        "old@h": {"clock": 2},
    }
    assert split_reports(stored) == (
        {"new@h": {"clock": 1}, "old@h": {"clock": 2}},
        {"new@h": ("a", "b"), "empty@h": ()},
    )
