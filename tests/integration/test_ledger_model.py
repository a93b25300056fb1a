"""Random sequences of operations: every query of the ledger returns what a simple model returns."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import text as sql
from support import lone_database, note

from waooaw_celery import Message, MessageStatus, MessageType, Priority
from waooaw_celery.errors import UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.rows import message_row
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.retention.erasure import erase_rows
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent, MessageFact

AGENTS = ["ann", "bob", "cid"]
FINAL = tuple(status.value for status in MessageStatus if status.final)
LOST_SECONDS = 60.0
#: All facts are in the past, each a second later than the one before.
NOW = datetime.now(UTC)
OLD = timedelta(days=40)

#: The events that a test may record. PUBLISHED and ANSWERED are written together with the records that they end.
EVENTS = [event for event in MessageEvent if event not in (MessageEvent.PUBLISHED, MessageEvent.ANSWERED)]


@dataclass
class ModelMessage:
    """A message in the model, with its facts in the order of recording."""

    message: Message
    facts: list[tuple[str, datetime, str | None]] = field(default_factory=list)
    erased: bool = False

    @property
    def end(self) -> str | None:
        return next((event for event, _, _ in self.facts if event in FINAL), None)

    @property
    def status(self) -> str:
        events = [event for event, _, _ in self.facts if event not in ("cancel_requested", "recovered", "logged")]
        if self.end:
            return self.end
        return "delivered" if "delivered" in events else "sent" if events else "pending"

    @property
    def over(self) -> bool:
        """Whether a purge may remove it: it has ended, or was only logged, so that nobody reports its end."""
        return bool(self.end) or any(event == "logged" for event, _, _ in self.facts)

    @property
    def running(self) -> bool:
        """Whether the newest fact is DELIVERED, apart from facts that are no progress."""
        no_progress = ("sent", "cancel_requested", "duplicate", "resent", "discarded", "logged")
        recorded = sorted((at, event) for event, at, _ in self.facts if event not in no_progress)
        return bool(recorded) and recorded[-1][1] == "delivered"

    def record(self, event: str, at: datetime, error: str | None = None) -> None:
        if event in FINAL and self.end:
            return  # the first end wins
        if (event, at) not in [(known, time) for known, time, _ in self.facts]:
            self.facts.append((event, at, error))


class LedgerModel(RuleBasedStateMachine):
    """Each rule applies the same operation to the ledger and to the model."""

    url: ClassVar[str | None] = None
    messages = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="waooaw-model-")
        self.database = Database(database_url(self.url or f"sqlite:///{self.folder}/ledger.sqlite"))
        schema.upgrade(self.database)
        if self.url:
            tables = ("messages", "message_events", "open_messages", "cancels", "holds", "purges")
            with self.database.begin("empty the ledger") as connection:
                connection.execute(sql(f"TRUNCATE {', '.join(f'waooaw_{table}' for table in tables)}"))
        self.ledger = Ledger(
            self.database,
            RetentionPolicy.DAYS_90,
            spool_folder=f"{self.folder}/spool",
            lost_seconds=LOST_SECONDS,
        )
        self.trail, self.retention = MessageAuditTrail(self.ledger), Retention(self.database)
        self.model: dict[str, ModelMessage] = {}
        self.holds: set[tuple[HoldKind, str]] = set()
        self.clock = NOW - timedelta(hours=6)

    def teardown(self) -> None:
        self.check_every_query()
        self.ledger.close()
        shutil.rmtree(self.folder)

    def advance(self) -> datetime:
        self.clock += timedelta(seconds=1)
        return self.clock

    @rule(
        target=messages,
        agents=st.tuples(st.sampled_from(AGENTS), st.sampled_from(AGENTS)),
        type_=st.sampled_from([MessageType.COMMAND, MessageType.QUERY, MessageType.ACK]),
        priority=st.sampled_from(list(Priority)),
        payload=st.sampled_from(["plain", "ünï", "50%_", {"k": [1]}, "back\\slash"]),
        ttl=st.sampled_from([1.0, 1.0, None, 10.0**6]),
        retention=st.sampled_from([*RetentionPolicy, RetentionPolicy.DAYS_30, RetentionPolicy.DAYS_30]),
        events=st.lists(st.sampled_from([*EVENTS, MessageEvent.DELIVERED, MessageEvent.DELIVERED]), max_size=4),
        old=st.booleans(),
        spooled=st.booleans(),
        cause=st.none() | st.integers(0, 20),
    )
    def send(
        self,
        agents: tuple[str, str],
        type_: MessageType,
        priority: Priority,
        payload: Any,
        ttl: float | None,
        retention: RetentionPolicy,
        events: list[MessageEvent],
        old: bool,
        spooled: bool,
        cause: int | None,
    ) -> str:
        known = list(self.model.values())
        parent = known[cause % len(known)].message if cause is not None and known else None
        id_ = str(uuid4())
        message = Message(
            from_agent=agents[0],
            to_agent=agents[1],
            message_type=type_,
            priority=priority,
            payload=payload,
            ttl_seconds=ttl,
            retention=retention,
            sent_at=self.advance() - (OLD if old else timedelta()),
            message_id=id_,
            correlation_id=parent.correlation_id if parent else id_,
            conversation_id=parent.conversation_id if parent else id_,
            causation_id=parent.message_id if parent else None,
        )
        if spooled:
            self.ledger.spool.append([message_row(message, type_.value, RetentionPolicy.DAYS_90)])
            self.ledger._get_writer()._drainer.drain()
        else:
            assert self.ledger.begin_recording([(message, type_.value)])() == {id_}
        self.model[id_] = ModelMessage(message)
        for event in events:  # so that most messages have several events
            self._note_event(id_, event, late=False, repeated=False, error="at once", stray=False)
        return id_

    @rule(message_id=messages)
    def send_again(self, message_id: str) -> None:
        """A message that is in the ledger is not new."""
        if message_id in self.model:
            known = self.model[message_id].message
            assert self.ledger.begin_recording([(known, known.message_type.value)])() == set()

    @rule(target=messages, to=st.sampled_from(AGENTS))
    def receive_from_another_program(self, to: str) -> Any:
        """Record the first fact of a message that another program published. The fact carries the message."""
        headers = {"id": str(uuid4())}
        message = Message.from_headers(headers, to, "foreign").evolve(sent_at=self.advance())
        at = self.advance()
        note(self.ledger, message, MessageEvent.DELIVERED, at=at)
        self.model[message.message_id] = ModelMessage(message.evolve(retention=RetentionPolicy.DAYS_90))
        self.model[message.message_id].record("delivered", at)
        return message.message_id

    @rule(
        message_id=messages,
        event=st.sampled_from([*EVENTS, MessageEvent.DELIVERED, MessageEvent.DELIVERED]),
        late=st.booleans(),
        repeated=st.booleans(),
        error=st.sampled_from(["ValueError: no", "ü"]),
        stray=st.booleans(),
    )
    def note_event(
        self, message_id: str, event: MessageEvent, late: bool, repeated: bool, error: str, stray: bool
    ) -> None:
        """Record an event: in order or late, once or twice, with its message or without."""
        if message_id in self.model:
            self._note_event(message_id, event, late, repeated, error, stray)

    def _note_event(
        self, message_id: str, event: MessageEvent, late: bool, repeated: bool, error: str, stray: bool
    ) -> None:
        at = self.advance() - timedelta(seconds=1.5 if late else 0)
        reason = error if event in (MessageEvent.RETRIED, MessageEvent.FAILED) else None
        message = None if stray else self.model[message_id].message
        fact = MessageFact(
            message_id=message_id, event=event, at=at, message=message, attempt=1, seconds=1.0, error=reason
        )
        for _ in range(1 + repeated):
            self.ledger.note(fact)
        self.model[message_id].record(event.value, at, reason)

    @rule()
    def sweep(self) -> None:
        """Messages expire after their expiry time, unless they run."""
        swept = self.ledger.sweep()
        due = [
            id_
            for id_, entry in self.model.items()
            if not entry.end and not entry.running and entry.message.expires_at and entry.message.expires_at < NOW
        ]
        assert swept == sorted(due)
        self._record_end(due, "expired")

    @rule()
    def reconcile(self) -> None:
        """Messages that were delivered long ago and have not ended fail."""
        lost = [id_ for id_, entry in self.model.items() if not entry.end and entry.running]
        assert self.ledger.reconcile() == sorted(lost)
        self._record_end(lost, "failed")

    def _record_end(self, ids: list[str], event: str) -> None:
        for id_ in ids:
            [at] = [known.at for known in self.trail.receipt(id_).events if known.event in FINAL]
            error = self.trail.receipt(id_).receipt.error
            self.model[id_].record(event, at, error)

    @rule(message_id=messages, kind=st.sampled_from(list(HoldKind)), place=st.booleans())
    def hold(self, message_id: str, kind: HoldKind, place: bool) -> None:
        """Place or release a hold."""
        if message_id not in self.model:
            return
        message = self.model[message_id].message
        value = {
            HoldKind.MESSAGE: message_id,
            HoldKind.CONVERSATION: str(message.conversation_id),
            HoldKind.AGENT: message.to_agent,
        }[kind]
        if place:
            self.retention.hold(kind, value, "why")
            self.holds.add((kind, value))
        else:
            assert self.retention.release(kind, value) == ((kind, value) in self.holds)
            self.holds.discard((kind, value))
        assert {(hold.kind, hold.value) for hold in self.retention.holds()} == self.holds

    def _is_held(self, message: Message) -> bool:
        named = {
            (HoldKind.MESSAGE, message.message_id),
            (HoldKind.CONVERSATION, str(message.conversation_id)),
            (HoldKind.AGENT, message.from_agent),
            (HoldKind.AGENT, message.to_agent),
        }
        return bool(named & self.holds)

    @rule()
    def purge(self) -> None:
        """A purge removes messages that have ended or were logged, are past their retention and are not held."""
        purged = [
            id_
            for id_, entry in self.model.items()
            if entry.over
            and (entry.message.retention or RetentionPolicy.DAYS_90).until(entry.message.sent_at) <= NOW
            and not self._is_held(entry.message)
        ]
        assert self.retention.purge(NOW).messages == len(purged)
        for id_ in purged:
            del self.model[id_]
            with pytest.raises(UnknownMessage):
                self.trail.receipt(id_)

    @rule(agent=st.sampled_from(AGENTS))
    def erase(self, agent: str) -> None:
        """An erasure blanks payloads and errors of an agent, and copies of them, unless they are held."""
        free = {id_: entry for id_, entry in self.model.items() if not self._is_held(entry.message)}
        matching = {id_ for id_, entry in free.items() if self._is_of(agent, entry) and not entry.erased}
        targets = matching | {id_ for id_, entry in free.items() if entry.erased}
        while copies := {
            id_
            for id_, entry in free.items()
            if id_ not in targets and any(self._is_copy(entry, free[target]) for target in targets)
        }:
            targets |= copies
        new = {id_ for id_ in targets if not free[id_].erased}
        erased = erase_rows(self.ledger.database, agent=agent)
        assert (erased.messages, erased.copies) == (len(matching), len(new - matching))
        causes = {str(free[id_].message.causation_id) for id_ in targets} & set(free)
        for id_ in new:
            free[id_].erased = True
        for id_ in targets | causes:  # the error of a cause quotes the error of what it caused
            free[id_].facts = [(event, at, None) for event, at, _ in free[id_].facts]

    def _is_of(self, agent: str, entry: ModelMessage) -> bool:
        return agent in (entry.message.from_agent, entry.message.to_agent)

    def _is_copy(self, entry: ModelMessage, other: ModelMessage) -> bool:
        threads = [{each.message.conversation_id, each.message.correlation_id} for each in (entry, other)]
        return entry.message.payload == other.message.payload and bool(threads[0] & threads[1])

    @rule()
    def check_every_query(self) -> None:
        """Compare filters, receipts, conversations, histories and statistics."""
        messages = sorted(
            self.model.values(), key=lambda entry: (entry.message.sent_at, entry.message.message_id), reverse=True
        )
        filters: list[tuple[dict[str, Any], Any]] = [({}, lambda entry: True)]
        filters += [({"from_agent": name}, lambda entry, n=name: entry.message.from_agent == n) for name in AGENTS]
        filters += [({"to_agent": name}, lambda entry, n=name: entry.message.to_agent == n) for name in AGENTS]
        filters += [
            ({"status": status}, lambda entry, s=status: entry.status == s.value) for status in MessageStatus
        ]
        filters += [
            ({"priority": Priority.HIGH}, lambda entry: entry.message.priority is Priority.HIGH),
            ({"message_type": MessageType.ACK}, lambda entry: entry.message.message_type is MessageType.ACK),
            ({"text": "50%_"}, lambda entry: entry.message.payload == "50%_" and not entry.erased),
            (
                {"since": self.clock - timedelta(days=1)},
                lambda entry: entry.message.sent_at > self.clock - OLD / 2,
            ),
            (
                {"to_agent": "ann", "status": MessageStatus.FAILED},
                lambda entry: entry.message.to_agent == "ann" and entry.status == "failed",
            ),
        ]
        for arguments, fits in filters:
            found = [record.receipt.message_id for record in self.trail.query(**arguments, limit=1000).records]
            assert found == [entry.message.message_id for entry in messages if fits(entry)], arguments
        for name in AGENTS:
            found = [record.receipt.message_id for record in self.trail.history(name, days=365)]
            assert found == [
                entry.message.message_id
                for entry in messages
                if name in (entry.message.from_agent, entry.message.to_agent)
            ]
        for entry in messages:
            self._check(entry, self.trail.receipt(entry.message.message_id))
        for entry in messages[:3]:
            conversation = self.trail.conversation(entry.message.message_id)
            ids = [record.receipt.message_id for record in conversation]
            same = [other for other in messages if other.message.conversation_id == entry.message.conversation_id]
            assert sorted(ids) == sorted(other.message.message_id for other in same)
            for record in conversation:
                if record.causation_id in ids:
                    assert ids.index(record.causation_id) < ids.index(record.receipt.message_id)
        statistics = self.trail.statistics()
        assert statistics.total == len(messages)
        assert statistics.by_status == Counter(entry.status for entry in messages)
        assert statistics.by_type == Counter(entry.message.message_type.value for entry in messages)
        assert dict(statistics.top_receivers) == Counter(entry.message.to_agent for entry in messages)
        ended = [entry for entry in messages if entry.end]
        failed = sum(entry.end in ("failed", "dead") for entry in ended)
        assert statistics.error_rate == (failed / len(ended) if ended else None)
        assert self.ledger.spool.counts() == (0, 0)

    def _check(self, entry: ModelMessage, record: Any) -> None:
        assert record.receipt.status == entry.status
        assert record.payload == (None if entry.erased else entry.message.payload)
        recorded = [(event.event, event.at, event.error) for event in record.events]
        assert sorted(recorded, key=str) == sorted(entry.facts, key=str)
        assert record.receipt.attempts == sum(event == "delivered" for event, _, _ in entry.facts)
        requested = [at for event, at, _ in entry.facts if event == "cancel_requested"]
        assert record.receipt.cancel_requested_at == min(requested, default=None)
        receipt = self.ledger.get(entry.message.message_id)
        assert receipt == record.receipt


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 6), ("postgresql", 6)])
def test_the_ledger_returns_what_the_model_returns(
    kind: str, examples: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After sends, events in any order, sweeps, holds, purges and erasures, every query equals the model's."""
    with ExitStack() as stack:
        if kind == "postgresql":
            url = stack.enter_context(lone_database(request.getfixturevalue("postgres_url")))
            monkeypatch.setattr(LedgerModel, "url", url)
        run(
            LedgerModel,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # shrinking a failure takes too long
                suppress_health_check=list(HealthCheck),
            ),
        )
