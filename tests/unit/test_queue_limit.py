"""Back-pressure: messages to a queue in which too many wait are refused."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime

import pytest

from waooaw_celery import Message, MessageType
from waooaw_celery.errors import QueueFull
from waooaw_celery.limits import queue_limit
from waooaw_celery.limits.queue_limit import QueueLimit
from waooaw_celery.messages.topics.attributes import EventAttributes


def messages(count: int, to: str = "worker") -> list[Message]:
    """Return commands."""
    return [
        Message(from_agent="planner", to_agent=to, message_type=MessageType.COMMAND, payload=None)
        for _ in range(count)
    ]


class Queues:
    """The lengths of queues, and how often they were read."""

    def __init__(self, **lengths: int | None) -> None:
        self.lengths, self.reads = lengths, 0

    def read(self, agent: str) -> int | None:
        self.reads += 1
        return self.lengths[agent]


def test_messages_are_refused_when_too_many_wait() -> None:
    """The error says how many, and when to try again."""
    queues = Queues(worker=8)
    limit = QueueLimit(10, queues.read)
    limit.check(messages(2))
    with pytest.raises(QueueFull, match=r"8 messages wait for 'worker'.*is 10") as refused:
        limit.check(messages(3))
    assert (refused.value.agent, refused.value.limit, refused.value.waiting) == ("worker", 10, 8)
    assert 0.1 <= refused.value.retry_after <= 60


def test_a_length_is_read_again_only_when_it_is_old_or_leaves_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile what this process sends is added."""
    queues = Queues(worker=0)
    limit = QueueLimit(10, queues.read)
    for _ in range(10):
        limit.check(messages(1))
    assert queues.reads == 1
    limit.check(messages(1))  # the worker has handled them
    assert queues.reads == 2
    monkeypatch.setattr(queue_limit, "READ_SECONDS", 0.0)
    limit.check(messages(1))
    assert queues.reads == 3


def test_all_recipients_have_room_or_none_is_counted() -> None:
    """A full one keeps the messages to the others too."""
    limit = QueueLimit(10, Queues(one=5, two=10).read)
    with pytest.raises(QueueFull, match="'two'"):
        limit.check(messages(5, "one") + messages(1, "two"))
    limit.check(messages(5, "one"))
    with pytest.raises(QueueFull, match="'one'"):
        QueueLimit(10, Queues(one=5, two=0).read).check(messages(6, "one") + messages(1, "two"))


def test_a_broker_that_does_not_answer_refuses_nothing_here() -> None:
    """The publish that follows fails by itself."""
    QueueLimit(1, Queues(worker=None).read).check(messages(5))


def test_events_are_not_refused() -> None:
    """One slow subscriber would keep them from all others."""
    queues = Queues(worker=100)
    event = Message(
        from_agent="planner",
        to_agent="worker",
        message_type=MessageType.EVENT,
        payload=None,
        event=EventAttributes(id="e", topic="a.b", source="planner", time=datetime.now(UTC)),
    )
    QueueLimit(1, queues.read).check([event])
    assert queues.reads == 0


def test_each_sender_has_a_limit_of_its_own() -> None:
    """One that has too many waiting does not keep the others from sending."""
    reads: list[tuple[str, str]] = []

    def read(agent: str, sender: str) -> int:
        reads.append((agent, sender))
        return {"planner": 10, "writer": 2}[sender]

    limit = QueueLimit(10, read, by_sender=True)
    with pytest.raises(
        QueueFull, match=r"10 messages of 'planner' wait for 'worker', and .*_per_sender is 10"
    ) as full:
        limit.check(messages(1))
    assert (full.value.sender, full.value.agent, full.value.waiting) == ("planner", "worker", 10)
    limit.check([each.evolve(from_agent="writer") for each in messages(8)])
    assert reads == [("worker", "planner"), ("worker", "writer")]
    with pytest.raises(QueueFull, match="2 messages of 'writer'"):
        limit.check([each.evolve(from_agent="writer") for each in messages(9)])


def test_old_lengths_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders may have names without end."""
    monkeypatch.setattr(queue_limit, "MAX_KNOWN", 3)
    monkeypatch.setattr(queue_limit, "READ_SECONDS", 0.0)
    limit = QueueLimit(10, lambda *_: 0, by_sender=True)
    for number in range(20):
        limit.check([each.evolve(from_agent=f"sender-{number}") for each in messages(1)])
    assert len(limit._known) <= 4


def test_the_error_survives_pickling() -> None:
    """With the sender."""
    error = pickle.loads(pickle.dumps(QueueFull("worker", 10, 12, 0.5, "planner")))  # noqa: S301 - our own
    assert (error.sender, str(error)) == ("planner", str(QueueFull("worker", 10, 12, 0.5, "planner")))
