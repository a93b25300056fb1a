"""The publishing pipeline without Celery: what happens in which order, and what is undone when a step fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from waooaw_celery import Message, MessageStatus, MessageType, RateLimitExceeded
from waooaw_celery.app.publishing.publication import Batch
from waooaw_celery.app.publishing.publisher import MAX_BATCH_SIZE, Publisher
from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.broker.redis.batch import BatchRefused
from waooaw_celery.errors import BrokerUnavailable, InvalidMessage, StoreUnavailable, UnknownMessage
from waooaw_celery.messages.queues import HandlerName


class Receipt:
    """What the store below knows of a message."""

    def __init__(self) -> None:
        self.status = MessageStatus.PENDING


class Store:
    """A receipt store in memory, which writes each call to the log of the test."""

    def __init__(self, log: list[str]) -> None:
        self._log, self.is_available, self.accepts_facts = log, True, True
        self.receipts: dict[str, Receipt] = {}
        self.errors: dict[str, str] = {}

    def begin_recording(self, messages: Any, *_: Any, **__: Any) -> Callable[[], set[str]]:
        if not self.is_available:
            raise StoreUnavailable("the store is away")
        new = {message.message_id for message, _ in messages} - set(self.receipts)
        self.receipts |= {id_: Receipt() for id_ in new}
        self._log.append("record")
        return lambda: new

    def prepare_sent(self, messages: Sequence[Message]) -> Callable[[], None]:
        def note() -> None:
            self._log.append("note sent")
            for message in messages:
                self.receipts[message.message_id].status = MessageStatus.SENT

        return note

    def note(self, *facts: Any) -> None:
        if not self.accepts_facts:
            raise StoreUnavailable("the store is away")
        for fact in facts:
            self._log.append(f"note {fact.event.value}")
            self.errors[fact.message_id] = fact.error

    def get(self, message_id: str) -> Receipt:
        if message_id not in self.receipts:
            raise UnknownMessage(message_id)
        return self.receipts[message_id]


class Limit:
    """Admission control that counts messages up to a number."""

    def __init__(self, log: list[str], allowed: int) -> None:
        self._log, self._allowed = log, allowed

    def admit(self, messages: Sequence[Message], wait: Any, send: Any) -> bool:
        self._log.append(f"admit {len(messages)}")
        if len(messages) > self._allowed:
            raise RateLimitExceeded(messages[0].from_agent, "1/second", 1.0)
        return False


class Unlimited:
    """Admission control that admits everything."""

    def admit(self, messages: Sequence[Message], wait: Any, send: Any) -> bool:
        return False


class Components:
    """The parts that the publisher needs."""

    def __init__(self, log: list[str], allowed: int | None) -> None:
        self.circuit_breaker = CircuitBreaker()
        self.receipts: Any = Store(log)
        self.admission_control: Any = Unlimited() if allowed is None else Limit(log, allowed)
        self.registry: Any = None
        self.outbox: Any = None
        self.large_payloads: Any = None


class FakePublication:
    """A publication whose broker is a list."""

    def __init__(
        self,
        log: list[str],
        batch: Batch,
        together: BaseException | bool,
        fails_at: int | None,
        large: bool = False,
    ) -> None:
        self.batch = batch
        self._log, self._together, self._fails_at = log, together, fails_at
        self._published = 0
        self.large = large

    def is_large(self, large: Any) -> bool:
        return self.large

    def store_large_payloads(self, large: Any, session: Any, event: Message | None) -> Message | None:
        self._log.append("store")
        return event

    def check_bodies(self) -> None:
        self._log.append("check")

    def payload_texts(self) -> Mapping[str, str]:
        return {}

    def options(self) -> Mapping[str, Any]:
        return {}

    def parts(self, size: int) -> Iterator[FakePublication]:
        for start in range(0, len(self.batch), size):
            yield FakePublication(self._log, self.batch[start : start + size], self._together, self._fails_at)

    def producer(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def publish_together(self, producer: Any, when_ready: Callable[[], object]) -> bool:
        if not self._together:
            return False
        when_ready()
        if isinstance(self._together, BaseException):
            raise self._together
        self._log.append(f"publish {len(self.batch)}")
        return True

    def publish_one(self, producer: Any, target: HandlerName, message: Message) -> None:
        if self._published == self._fails_at:
            raise OperationalError("connection reset") from ConnectionResetError()
        self._published += 1
        self._log.append("publish 1")


class Pipeline:
    """A publisher, with the log of its steps."""

    def __init__(self, allowed: int | None = None) -> None:
        self.log: list[str] = []
        self.components = Components(self.log, allowed)
        self.publisher = Publisher(None, self.components)

    def publish(
        self,
        batch: Batch,
        together: BaseException | bool = True,
        fails_at: int | None = None,
        event: Message | None = None,
        session: Any = None,
        large: bool = False,
    ) -> None:
        publication = FakePublication(self.log, batch, together, fails_at, large)
        self.publisher._publish(publication, None, event, session)


def batch_of(count: int) -> Batch:
    """Return messages to one handler."""
    return [(HandlerName("b", "command"), Message(from_agent="a", to_agent="b")) for _ in range(count)]


def test_a_message_is_checked_admitted_recorded_published_and_noted_in_this_order() -> None:
    """Nothing is published before it is recorded, and nothing is recorded before it is admitted."""
    pipeline = Pipeline(allowed=5)
    pipeline.publish(batch_of(2))
    assert pipeline.log == ["check", "admit 2", "record", "publish 2", "note sent"]


def test_a_large_payload_is_stored_after_its_message_was_admitted_and_before_it_is_recorded() -> None:
    """A refused message stores nothing, and a recorded one has its payload."""
    pipeline = Pipeline(allowed=1)
    pipeline.publish(batch_of(1), large=True)
    with pytest.raises(RateLimitExceeded):
        pipeline.publish(batch_of(2), large=True)
    assert pipeline.log == ["check", "admit 1", "store", "record", "publish 1", "note sent", "check", "admit 2"]


def test_messages_over_the_rate_limit_are_neither_recorded_nor_published() -> None:
    """The sender gets the error."""
    pipeline = Pipeline(allowed=1)
    with pytest.raises(RateLimitExceeded):
        pipeline.publish(batch_of(2))
    assert pipeline.log == ["check", "admit 2"]


def test_a_message_that_cannot_be_recorded_is_not_published() -> None:
    """A send is refused while the store is away."""
    pipeline = Pipeline()
    pipeline.components.receipts.is_available = False
    with pytest.raises(StoreUnavailable):
        pipeline.publish(batch_of(1))
    assert pipeline.log == ["check"]


def test_a_large_batch_is_published_in_parts() -> None:
    """Each part is recorded before it is published."""
    pipeline = Pipeline()
    pipeline.publish(batch_of(MAX_BATCH_SIZE + 1))
    steps = ["record", f"publish {MAX_BATCH_SIZE}", "note sent", "record", "publish 1", "note sent"]
    assert pipeline.log == ["check", *steps]


def test_the_error_of_a_broken_batch_names_what_the_broker_has() -> None:
    """Messages before the failure are noted as sent; later ones stay PENDING, and recovery publishes them."""
    pipeline, batch = Pipeline(), batch_of(3)
    with pytest.raises(BrokerUnavailable, match="1 of 3 messages") as caught:
        pipeline.publish(batch, together=False, fails_at=2)
    ids = [message.message_id for _, message in batch]
    assert caught.value.message_ids == tuple(ids[:2])
    assert caught.value.uncertain
    statuses = [pipeline.components.receipts.get(id_).status for id_ in ids]
    assert statuses == [MessageStatus.SENT, MessageStatus.SENT, MessageStatus.PENDING]


def test_after_an_outage_the_next_message_is_refused_before_it_is_recorded() -> None:
    """The circuit breaker is open. Its refusal is certain: the broker does not have the message."""
    pipeline = Pipeline()
    with pytest.raises(BrokerUnavailable):
        pipeline.publish(batch_of(1), together=False, fails_at=0)
    pipeline.log.clear()
    with pytest.raises(BrokerUnavailable) as caught:
        pipeline.publish(batch_of(1))
    assert not caught.value.uncertain
    assert pipeline.log == []


def test_messages_that_the_broker_refuses_are_ended() -> None:
    """A full broker has none of them: the ledger says so, and recovery leaves them alone."""
    pipeline, batch = Pipeline(), batch_of(2)
    with pytest.raises(BrokerUnavailable) as caught:
        pipeline.publish(batch, together=BatchRefused("OOM"))
    assert not caught.value.uncertain
    assert pipeline.log == ["check", "record", "note failed", "note failed"]
    assert pipeline.components.receipts.errors == {
        message.message_id: "not published: OOM" for _, message in batch
    }


def test_a_long_refusal_is_recorded_in_part() -> None:
    """The ledger keeps 2000 characters of it, and the caller gets all of them."""
    pipeline, batch = Pipeline(), batch_of(1)
    with pytest.raises(BrokerUnavailable, match="x" * 5000):
        pipeline.publish(batch, together=BatchRefused("x" * 5000))
    [error] = pipeline.components.receipts.errors.values()
    assert error == "not published: " + "x" * 1985


@pytest.mark.parametrize("why", ["it was recorded before", "it is an answer", "it delivers an event"])
def test_a_refused_message_that_may_still_be_published_stays_pending(why: str) -> None:
    """An earlier call may have published it, or recovery publishes it. So the refusal is uncertain."""
    pipeline, [(target, message)] = Pipeline(), batch_of(1)
    event = None
    if why == "it was recorded before":
        pipeline.components.receipts.receipts[message.message_id] = Receipt()
    elif why == "it is an answer":
        message = message.evolve(message_type=MessageType.RESPONSE)
    else:
        event = message
    with pytest.raises(BrokerUnavailable, match="1 message not published: OOM") as caught:
        pipeline.publish([(target, message)], together=BatchRefused("OOM"), event=event)
    assert caught.value.uncertain
    assert pipeline.log == ["check", "record"]
    assert pipeline.components.receipts.get(message.message_id).status is MessageStatus.PENDING


def test_a_refusal_that_cannot_be_recorded_is_uncertain(caplog: pytest.LogCaptureFixture) -> None:
    """The store is away too: the messages stay PENDING, recovery may publish them, and a warning says so."""
    pipeline, batch = Pipeline(), batch_of(2)
    pipeline.components.receipts.accepts_facts = False
    with pytest.raises(BrokerUnavailable, match="2 messages not published: OOM") as caught:
        pipeline.publish(batch, together=BatchRefused("OOM"))
    assert caught.value.uncertain
    assert pipeline.log == ["check", "record"]
    assert {pipeline.components.receipts.get(each.message_id).status for _, each in batch} == {"pending"}
    assert [record.__dict__.get("action") for record in caplog.records] == ["receipt_stays_pending"]


def test_a_message_that_was_sent_already_is_refused_and_its_batch_withdrawn() -> None:
    """None of the batch is published, and the new messages of it are ended."""
    pipeline, batch = Pipeline(), batch_of(1)
    pipeline.publish(batch)
    new = batch_of(1)
    pipeline.log.clear()
    with pytest.raises(InvalidMessage, match="was sent already"):
        pipeline.publish([*new, *batch])
    assert pipeline.log == ["check", "record", "note failed"]
    assert set(pipeline.components.receipts.errors) == {new[0][1].message_id}


def test_messages_of_a_transaction_go_to_the_outbox() -> None:
    """They are checked and admitted at once, and published when the transaction is committed."""

    class Outbox:
        def __init__(self) -> None:
            self.sessions: list[object] = []

        def add_to_outbox(self, batch: Batch, session: object) -> None:
            self.sessions.append(session)

    pipeline, session = Pipeline(), object()
    pipeline.components.outbox = Outbox()
    pipeline.publish(batch_of(1), session=session)
    assert pipeline.log == ["check"]
    assert pipeline.components.outbox.sessions == [session]
