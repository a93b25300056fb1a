"""What a worker holds until it is the turn of its key: room for others, outages, and the end of a connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from support import until

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.store.resilience.keyed_message import Decision, KeyedMessage, Place, Turn
from waooaw_celery.worker.ordering import ordered_intake
from waooaw_celery.worker.ordering.ordered_intake import BegunMessages, Entry, OrderedIntake


class Hub:
    """An event loop whose turns the test makes."""

    def __init__(self) -> None:
        self.callback: Callable[[], object] = lambda: None

    def add_reader(self, _: int, callback: Callable[[], object]) -> None:
        self.callback = callback

    def remove(self, _: int) -> None:
        """Forget the file."""


class Qos:
    """Counts for how many messages there is room beside those that run."""

    def __init__(self) -> None:
        self.room = 0

    def increment_eventually(self) -> None:
        self.room += 1

    def decrement_eventually(self) -> None:
        self.room -= 1


class Order:
    """Decides as the test says; a message is open unless the test says otherwise."""

    def __init__(self) -> None:
        self.turns: dict[str, Turn] = {}
        self.is_away = False
        self.steps = 0
        self.ended: set[str] = set()
        self.gone: set[str] = set()

    def step(
        self,
        arrived: Collection[KeyedMessage],
        ended: Mapping[str, str],
        room: int,
        choose: Callable[[Mapping[str, Place]], Sequence[KeyedMessage]],
    ) -> dict[str, Decision]:
        if self.is_away:
            raise AuditUnavailable
        self.steps += 1
        self.ended |= set(ended)
        ids = [each.message_id for each in arrived if each.message_id not in self.gone]
        chosen = choose({id_: Place(datetime.now(UTC), is_known=False, is_begun=False) for id_ in ids})
        return {each.message_id: Decision(self.turns.get(each.message_id, Turn.WAIT)) for each in chosen}

    def renew(self, begun: Collection[str], waiting: Collection[str]) -> None:
        """Do nothing."""


class Worker:
    """A worker that has just connected."""

    def __init__(self) -> None:
        self.order, self.qos, self.hub = Order(), Qos(), Hub()
        self.begun, self.calls = BegunMessages(["probe"]), list[str]()
        consumer = SimpleNamespace(hub=self.hub, qos=self.qos, initial_prefetch_count=1, pool=None)
        orders: Any = {"probe": self.order}
        self.intake = OrderedIntake(consumer, orders, self.begun, self.note("drop"), self.note("cancel"))

    def note(self, what: str, id_: str | None = None) -> Callable[..., object]:
        return lambda *args: self.calls.append(f"{what} {id_ or args[0]}")

    def take(self, id_: str, key: str = "k", **more: Any) -> Entry:
        keyed = KeyedMessage(message_id=id_, key=key, rank=6)
        entry = Entry(keyed, "probe", self.note("go", id_), self.note("back", id_), **more)
        self.intake.take(entry)
        return entry

    def until(self, call: str) -> None:
        def has_come() -> bool:
            self.hub.callback()
            return call in self.calls

        until(has_come, call)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.intake.close()


def test_a_message_begins_when_it_is_its_turn(worker: Worker) -> None:
    """Meanwhile the broker may deliver another one."""
    worker.take("a")
    until(lambda: worker.qos.room == 1, "room for another message")
    assert worker.intake.waiting == 1
    worker.order.turns["a"] = Turn.BEGIN
    worker.intake.wake()
    worker.until("go a")
    assert (worker.qos.room, worker.intake.waiting, worker.begun.taken) == (0, 0, 1)


def test_the_end_of_a_message_frees_its_key(worker: Worker) -> None:
    """It is no longer one of Celery's requests."""
    worker.order.turns["a"] = Turn.BEGIN
    worker.take("a")
    worker.until("go a")
    until(lambda: worker.order.ended == {"a"}, "the free key")
    assert worker.begun.taken == 0


def test_a_message_that_has_ended_goes_to_celery_at_once(worker: Worker) -> None:
    """It says so, and drops it."""
    worker.order.gone.add("a")
    worker.take("a")
    worker.until("go a")
    assert worker.begun.taken == 0


def test_a_message_may_be_dropped(worker: Worker) -> None:
    """It is cancelled before Celery gets it."""
    worker.order.turns["a"] = Turn.DROP
    worker.take("a")
    worker.until("go a")
    assert worker.calls == ["drop a", "go a"]


def test_too_many_messages_go_back_to_their_queue(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones, after a while, so that the one that they wait for can come."""
    monkeypatch.setattr(ordered_intake, "MAX_WAITING", 2)
    monkeypatch.setattr(ordered_intake, "GIVE_BACK_SECONDS", 0.2)
    for id_ in ("a", "b"):
        worker.take(id_)
    until(lambda: worker.qos.room == 2, "room for others")
    began = time.monotonic()
    worker.take("c")
    worker.until("back c")
    assert time.monotonic() - began >= 0.2
    assert (worker.qos.room, worker.intake.waiting) == (2, 2)


def test_a_message_that_waits_for_very_long_comes_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ lets no worker hold it for longer."""
    monkeypatch.setattr(ordered_intake, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(ordered_intake, "RENEW_BEGUN_SECONDS", 0.1)
    worker.intake._renew_begun_at = 0.0
    worker.take("a")
    worker.until("back a")
    assert (worker.qos.room, worker.intake.waiting) == (0, 0)


def test_messages_wait_while_the_ledger_does_not_answer(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once."""
    monkeypatch.setattr(ordered_intake, "OUTAGE_SECONDS", 0.02)
    worker.order.is_away = True
    worker.order.turns["a"] = Turn.BEGIN
    worker.take("a", record=worker.note("record", "a"))
    until(lambda: "messages with keys wait until the ledger answers" in caplog.text, "the warning")
    time.sleep(0.1)
    assert worker.calls == ["record a"]
    worker.order.is_away = False
    worker.until("go a")
    assert [each.levelname for each in caplog.records].count("WARNING") == 1


def test_a_place_that_the_database_has_lost_is_noted_again(worker: Worker) -> None:
    """It crashed, and the message is still open."""
    worker.order.turns["a"] = Turn.REGISTER
    worker.take("a")
    until(lambda: worker.order.steps > 1, "the second note")
    worker.order.turns["a"] = Turn.BEGIN
    worker.until("go a")
    assert worker.qos.room == 0
