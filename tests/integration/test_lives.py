"""Random lives of messages: whatever happens in whatever order, the ledger says what a simple model says."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import uuid4

import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import text as sql
from support import note

from waooaw_celery import Message, MessageStatus, MessageType, Priority
from waooaw_celery.errors import UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.rows import message_row
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.retention import HoldKind, Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.message import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent, MessageFact

AGENTS = ["ann", "bob", "cid"]
FINAL = tuple(status.value for status in MessageStatus if status.final)
LOST_SECONDS = 60.0
#: All of a life lies in the past, each fact a little later than the one before.
NOW = datetime.now(UTC)
OLD = timedelta(days=40)

#: What can be told of a message: that one is the record of an event is written with it.
TOLD = [event for event in MessageEvent if event is not MessageEvent.PUBLISHED]


@dataclass
class Life:
    """What the model knows of a message: the message itself and its facts, in the order in which they were."""

    message: Message
    facts: list[tuple[str, datetime, str | None]] = field(default_factory=list)
    erased: bool = False

    @property
    def end(self) -> str | None:
        return next((event for event, _, _ in self.facts if event in FINAL), None)

    @property
    def status(self) -> str:
        events = [event for event, _, _ in self.facts if event not in ("cancel_requested", "recovered")]
        if self.end:
            return self.end
        return "delivered" if "delivered" in events else "sent" if events else "pending"

    @property
    def running(self) -> bool:
        """Whether the newest that is told is that it was begun; a request to cancel it changes nothing."""
        nothing_new = ("sent", "cancel_requested", "duplicate", "resent", "discarded")
        told = sorted((at, event) for event, at, _ in self.facts if event not in nothing_new)
        return bool(told) and told[-1][1] == "delivered"

    def tell(self, event: str, at: datetime, error: str | None = None) -> None:
        if event in FINAL and self.end:
            return  # the first end wins
        if (event, at) not in [(known, moment) for known, moment, _ in self.facts]:
            self.facts.append((event, at, error))


class Lives(RuleBasedStateMachine):
    """Each rule does the same to the ledger and to the model."""

    url: ClassVar[str | None] = None
    lives = Bundle("lives")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="waooaw-lives-")
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
        self.model: dict[str, Life] = {}
        self.holds: set[tuple[HoldKind, str]] = set()
        self.clock = NOW - timedelta(hours=6)

    def teardown(self) -> None:
        self.every_answer_is_the_models()
        self.ledger.close()
        shutil.rmtree(self.folder)

    def tick(self) -> datetime:
        self.clock += timedelta(seconds=1)
        return self.clock

    @rule(
        target=lives,
        ends=st.tuples(st.sampled_from(AGENTS), st.sampled_from(AGENTS)),
        type_=st.sampled_from([MessageType.COMMAND, MessageType.QUERY, MessageType.ACK]),
        priority=st.sampled_from(list(Priority)),
        payload=st.sampled_from(["plain", "ünï", "50%_", {"k": [1]}, "back\\slash"]),
        ttl=st.sampled_from([1.0, 1.0, None, 10.0**6]),
        retention=st.sampled_from([*RetentionPolicy, RetentionPolicy.DAYS_30, RetentionPolicy.DAYS_30]),
        events=st.lists(st.sampled_from([*TOLD, MessageEvent.DELIVERED, MessageEvent.DELIVERED]), max_size=4),
        old=st.booleans(),
        spooled=st.booleans(),
        cause=st.none() | st.integers(0, 20),
    )
    def send(
        self,
        ends: tuple[str, str],
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
            from_agent=ends[0],
            to_agent=ends[1],
            message_type=type_,
            priority=priority,
            payload=payload,
            ttl_seconds=ttl,
            retention=retention,
            sent_at=self.tick() - (OLD if old else timedelta()),
            message_id=id_,
            correlation_id=parent.correlation_id if parent else id_,
            conversation_id=parent.conversation_id if parent else id_,
            causation_id=parent.message_id if parent else None,
        )
        if spooled:
            self.ledger.spool.append([message_row(message, type_.value, RetentionPolicy.DAYS_90)])
            self.ledger._the_writer()._drainer.drain()
        else:
            assert self.ledger.pending([(message, type_.value)])() == {id_}
        self.model[id_] = Life(message)
        for event in events:  # most lives are busy
            self._happen(id_, event, late=False, twice=False, error="at once", stray=False)
        return id_

    @rule(life=lives)
    def say_it_again(self, life: str) -> None:
        """The same message is not new while it is there."""
        if life in self.model:
            known = self.model[life].message
            assert self.ledger.pending([(known, known.message_type.value)])() == set()

    @rule(target=lives, to=st.sampled_from(AGENTS))
    def foreign(self, to: str) -> Any:
        """A message that was published by another program: its first fact carries it."""
        headers = {"id": str(uuid4())}
        message = Message.from_headers(headers, to, "foreign").evolve(sent_at=self.tick())
        at = self.tick()
        note(self.ledger, message, MessageEvent.DELIVERED, at=at)
        self.model[message.message_id] = Life(message.evolve(retention=RetentionPolicy.DAYS_90))
        self.model[message.message_id].tell("delivered", at)
        return message.message_id

    @rule(
        life=lives,
        event=st.sampled_from([*TOLD, MessageEvent.DELIVERED, MessageEvent.DELIVERED]),
        late=st.booleans(),
        twice=st.booleans(),
        error=st.sampled_from(["ValueError: no", "ü"]),
        stray=st.booleans(),
    )
    def happen(self, life: str, event: MessageEvent, late: bool, twice: bool, error: str, stray: bool) -> None:
        """Something becomes of a message: in order or late, told once or twice, with its message or without."""
        if life in self.model:
            self._happen(life, event, late, twice, error, stray)

    def _happen(self, life: str, event: MessageEvent, late: bool, twice: bool, error: str, stray: bool) -> None:
        at = self.tick() - timedelta(seconds=1.5 if late else 0)
        reason = error if event in (MessageEvent.RETRIED, MessageEvent.FAILED) else None
        message = None if stray else self.model[life].message
        fact = MessageFact(
            message_id=life, event=event, at=at, message=message, attempt=1, seconds=1.0, error=reason
        )
        for _ in range(1 + twice):
            self.ledger.note(fact)
        self.model[life].tell(event.value, at, reason)

    @rule()
    def sweep(self) -> None:
        """What is past its time and does not run expires."""
        swept = self.ledger.sweep()
        due = [
            id_
            for id_, life in self.model.items()
            if not life.end and not life.running and life.message.expires_at and life.message.expires_at < NOW
        ]
        assert swept == sorted(due)
        self._ended(due, "expired")

    @rule()
    def reconcile(self) -> None:
        """What was begun long ago is lost."""
        lost = [id_ for id_, life in self.model.items() if not life.end and life.running]
        assert self.ledger.reconcile() == sorted(lost)
        self._ended(lost, "failed")

    def _ended(self, ids: list[str], event: str) -> None:
        for id_ in ids:
            [at] = [known.at for known in self.trail.receipt(id_).events if known.event in FINAL]
            error = self.trail.receipt(id_).receipt.error
            self.model[id_].tell(event, at, error)

    @rule(life=lives, kind=st.sampled_from(list(HoldKind)), stands=st.booleans())
    def hold(self, life: str, kind: HoldKind, stands: bool) -> None:
        """A hold is placed, or released."""
        if life not in self.model:
            return
        message = self.model[life].message
        value = {
            HoldKind.MESSAGE: life,
            HoldKind.CONVERSATION: str(message.conversation_id),
            HoldKind.AGENT: message.to_agent,
        }[kind]
        if stands:
            self.retention.hold(kind, value, "why")
            self.holds.add((kind, value))
        else:
            assert self.retention.release(kind, value) == ((kind, value) in self.holds)
            self.holds.discard((kind, value))
        assert {(hold.kind, hold.value) for hold in self.retention.holds()} == self.holds

    def _held(self, message: Message) -> bool:
        named = {
            (HoldKind.MESSAGE, message.message_id),
            (HoldKind.CONVERSATION, str(message.conversation_id)),
            (HoldKind.AGENT, message.from_agent),
            (HoldKind.AGENT, message.to_agent),
        }
        return bool(named & self.holds)

    @rule()
    def purge(self) -> None:
        """What has ended, is over and is not held goes."""
        gone = [
            id_
            for id_, life in self.model.items()
            if life.end
            and (life.message.retention or RetentionPolicy.DAYS_90).until(life.message.sent_at) <= NOW
            and not self._held(life.message)
        ]
        assert self.retention.purge(NOW).messages == len(gone)
        for id_ in gone:
            del self.model[id_]
            with pytest.raises(UnknownMessage):
                self.trail.receipt(id_)

    @rule(agent=st.sampled_from(AGENTS))
    def erase(self, agent: str) -> None:
        """Payloads and errors of an agent go, unless they are held; the facts stay."""
        mine = [
            life
            for life in self.model.values()
            if agent in (life.message.from_agent, life.message.to_agent)
            and not life.erased
            and not self._held(life.message)
        ]
        assert self.retention.erase(agent=agent).messages == len(mine)
        for life in mine:
            life.erased = True
            life.facts = [(event, at, None) for event, at, _ in life.facts]

    @rule()
    def every_answer_is_the_models(self) -> None:
        """Each filter, each receipt, conversations, histories and statistics."""
        lives = sorted(
            self.model.values(), key=lambda life: (life.message.sent_at, life.message.message_id), reverse=True
        )
        filters: list[tuple[dict[str, Any], Any]] = [({}, lambda life: True)]
        filters += [({"from_agent": name}, lambda life, n=name: life.message.from_agent == n) for name in AGENTS]
        filters += [({"to_agent": name}, lambda life, n=name: life.message.to_agent == n) for name in AGENTS]
        filters += [
            ({"status": status}, lambda life, s=status: life.status == s.value) for status in MessageStatus
        ]
        filters += [
            ({"priority": Priority.HIGH}, lambda life: life.message.priority is Priority.HIGH),
            ({"message_type": MessageType.ACK}, lambda life: life.message.message_type is MessageType.ACK),
            ({"text": "50%_"}, lambda life: life.message.payload == "50%_" and not life.erased),
            ({"since": self.clock - timedelta(days=1)}, lambda life: life.message.sent_at > self.clock - OLD / 2),
            (
                {"to_agent": "ann", "status": MessageStatus.FAILED},
                lambda life: life.message.to_agent == "ann" and life.status == "failed",
            ),
        ]
        for arguments, fits in filters:
            found = [record.receipt.message_id for record in self.trail.query(**arguments, limit=1000).records]
            assert found == [life.message.message_id for life in lives if fits(life)], arguments
        for name in AGENTS:
            found = [record.receipt.message_id for record in self.trail.history(name, days=365)]
            assert found == [
                life.message.message_id
                for life in lives
                if name in (life.message.from_agent, life.message.to_agent)
            ]
        for life in lives:
            self._check(life, self.trail.receipt(life.message.message_id))
        for life in lives[:3]:
            conversation = self.trail.conversation(life.message.message_id)
            ids = [record.receipt.message_id for record in conversation]
            same = [other for other in lives if other.message.conversation_id == life.message.conversation_id]
            assert sorted(ids) == sorted(other.message.message_id for other in same)
            for record in conversation:
                if record.causation_id in ids:
                    assert ids.index(record.causation_id) < ids.index(record.receipt.message_id)
        statistics = self.trail.statistics()
        assert statistics.total == len(lives)
        assert statistics.by_status == Counter(life.status for life in lives)
        assert statistics.by_type == Counter(life.message.message_type.value for life in lives)
        assert dict(statistics.top_receivers) == Counter(life.message.to_agent for life in lives)
        ended = [life for life in lives if life.end]
        failed = sum(life.end in ("failed", "dead") for life in ended)
        assert statistics.error_rate == (failed / len(ended) if ended else None)
        assert self.ledger.spool.counts() == (0, 0)

    def _check(self, life: Life, record: Any) -> None:
        assert record.receipt.status == life.status
        assert record.payload == (None if life.erased else life.message.payload)
        told = [(event.event, event.at, event.error) for event in record.events]
        assert sorted(told, key=str) == sorted(life.facts, key=str)
        assert record.receipt.attempts == sum(event == "delivered" for event, _, _ in life.facts)
        asked = [at for event, at, _ in life.facts if event == "cancel_requested"]
        assert record.receipt.cancel_requested_at == min(asked, default=None)
        receipt = self.ledger.get(life.message.message_id)
        assert receipt == record.receipt


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 6), ("postgresql", 6)])
def test_the_ledger_says_what_the_model_says(
    kind: str, examples: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sending, facts in any order, sweeps, holds, purges and erasures: every answer equals the model's."""
    name = f"waooaw_{uuid4().hex}"
    server = None
    if kind == "postgresql":
        server = request.getfixturevalue("postgres_url")
        _administer(server, f"CREATE DATABASE {name}")
        url = database_url(server).set(database=name).render_as_string(hide_password=False)
        monkeypatch.setattr(Lives, "url", url)
    try:
        run(
            Lives,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # to make a failure smaller takes longer than a test may
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        if server is not None:
            _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


def _administer(url: str, command: str) -> None:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(command)
    connection.close()
