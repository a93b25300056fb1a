"""One computer with a wrong clock: what it sweeps, handles, sends and purges goes by the time that all share."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clocks import HOUR, ROOT, skewed
from support import PROBE_FOLDER, Broker, lone_database, note, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, Priority
from waooaw_celery.embedded import end_all, running
from waooaw_celery.errors import ClockSkew, StoreUnavailable, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.maintenance.tasks import PURGE, RECONCILE, SWEEP
from waooaw_celery.messages.queues import system_queue
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.messages.validation import LocalTime
from waooaw_celery.store.clock_reading import read, redis_source
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.store.reference_clock import ReferenceClock

DAYS_120 = 120 * 24 * HOUR
#: By how many seconds the real clocks here may differ from what is expected, under load.
CLOSE = 30.0


@pytest.fixture(scope="module")
def ledger(redis_url: str, postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Valkey, with a ledger of this module's own: sweeps and purges see nobody else's messages."""
    with lone_database(postgres_url) as url:
        broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("clock"), url)
        app = broker.app()
        schema.upgrade(app.database)
        app.close()
        yield broker
        broker.clean()


@contextmanager
def chosen(request: pytest.FixtureRequest, kind: str) -> Iterator[tuple[Broker, AgentApp]]:
    broker: Broker = request.getfixturevalue({"ledger": "ledger"}.get(kind, f"{kind}_broker"))
    app = broker.app()
    try:
        yield broker, app
    finally:
        app.close()


def environment(broker: Broker, folder: Path, ahead: float) -> dict[str, str]:
    """Return the environment of a process with a wrong clock on a broker."""
    env = skewed(folder, ahead) | {
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_BACKEND": broker.redis_url,
        "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
        "COLUMNS": "200",
    }
    return env | ({"WAOOAW_DATABASE_URL": broker.database_url} if broker.database_url else {})


def run(broker: Broker, folder: Path, ahead: float, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a wrong clock to its end."""
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment(broker, folder, ahead),
        cwd=PROBE_FOLDER,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def open_message(app: AgentApp, **fields: Any) -> Message:
    """Write down a message that waits in its queue, and return it."""
    message = app.complete(
        app.target("nobody-here.command"),  # type: ignore[arg-type]  # it is a handler's name
        Message(from_agent="tests", to_agent="nobody-here", **fields),
    )
    app.receipts.pending([(message, "command")])()
    note(app.receipts, message, MessageEvent.SENT)
    return message


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead", "behind"])
@pytest.mark.parametrize("kind", ["ledger", "valkey"])
def test_a_sweep_by_a_wrong_clock_ends_what_has_expired_and_nothing_else(
    kind: str, ahead: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A system worker an hour ahead or behind does its tasks, and expires and fails by the shared clock."""
    with chosen(request, kind) as (broker, app):
        fresh = [open_message(app, ttl_seconds=300, priority=priority) for priority in Priority]
        ago = datetime.now(UTC) - timedelta(seconds=60)
        stale = open_message(app, ttl_seconds=1, sent_at=ago)
        begun = open_message(app, ttl_seconds=1200)
        note(app.receipts, begun, MessageEvent.DELIVERED, worker="gone@nowhere")
        command = [sys.executable, "-m", "celery", "-A", "beat_schedule", "worker", "-P", "solo"]
        env = os.environ | environment(broker, tmp_path, ahead)
        with running(
            [*command, "--without-mingle", "-n", f"{broker.name()}@%h"], log=tmp_path / "log", env=env, cwd=ROOT
        ):
            tasks = [RECONCILE, SWEEP] if kind == "ledger" else [SWEEP]
            for task in tasks:
                app.send_task(task, queue=system_queue(), ignore_result=True, expires=30)
            assert settled(app, stale.message_id) is MessageStatus.EXPIRED, (tmp_path / "log").read_text()
        assert {app.receipts.get(each.message_id).status for each in fresh} == {MessageStatus.SENT}
        assert app.receipts.get(begun.message_id).status is MessageStatus.DELIVERED
        finished_at = app.receipts.get(stale.message_id).finished_at
        assert finished_at is not None
        assert abs((finished_at - datetime.now(UTC)).total_seconds()) < CLOSE


@pytest.mark.parametrize(
    ("kind", "ahead", "pool"),
    [
        ("ledger", HOUR, "prefork"),
        ("ledger", -HOUR, "threads"),
        ("valkey", HOUR, "threads"),
        ("valkey", -HOUR, "prefork"),
        ("valkey", -HOUR, "gevent"),
        pytest.param("rabbitmq", -HOUR, "solo", marks=pytest.mark.rabbitmq),
    ],
)
def test_a_worker_with_a_wrong_clock_handles_what_is_fresh_only(
    kind: str, ahead: float, pool: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It handles fresh messages, drops expired ones, and begins a countdown's when it is due."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    with chosen(request, kind) as (broker, app):
        name = broker.name()
        app.registry.declare(name, ["command", "echo", "seen"], "never@here", 1.0)
        bus = MessageBus(app)
        expired = bus.send(Message(from_agent="tests", to_agent=name, ttl_seconds=0.2)).message_id
        fresh = bus.send(Message(from_agent="tests", to_agent=name, ttl_seconds=300)).message_id
        retried = bus.send(Message(from_agent="tests", to_agent=name, payload={"fail_times": 1, "countdown": 1}))
        due = app.send_task(f"{name}.command", args=({},), countdown=2).id
        sent_at = datetime.now(UTC)
        time.sleep(0.3)  # until the first has expired: the means of the test, not a wait for something
        worker = broker.start(name, app, "-P", pool, env=skewed(tmp_path, ahead))
        try:
            assert settled(app, fresh) is MessageStatus.HANDLED
            assert settled(app, expired) is MessageStatus.EXPIRED
            assert settled(app, due) is MessageStatus.HANDLED
            assert settled(app, retried.message_id) is MessageStatus.HANDLED
            receipt = app.receipts.get(due)
            assert receipt.delivered_at is not None
            assert receipt.finished_at is not None
            # By the time that the worker wrote down, which is the shared one, it was due and not late.
            assert 1.0 < (receipt.delivered_at - sent_at).total_seconds() < CLOSE
            assert abs((receipt.finished_at - datetime.now(UTC)).total_seconds()) < CLOSE
            [living] = [each for each in app.registry.get(name).workers if not each.startswith("never")]
            until(lambda: "clock" in app.registry.get(name).reports.get(living, {}), "the report of its clock")
            reported = app.registry.get(name).reports[living]["clock"]["ahead"]
            assert abs(reported - ahead) < CLOSE
        finally:
            end_all([worker])
        log = (broker.folder / f"{name}.log").read_text()
        assert "NTP" in log
        assert log.count("Set the clock") == 1


@pytest.mark.parametrize(("kind", "ahead"), [("ledger", HOUR), ("ledger", -HOUR), ("valkey", -HOUR)])
def test_a_sender_with_a_wrong_clock_sends_by_the_shared_one(
    kind: str, ahead: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Messages, delays, countdowns and requests of it are handled in time, and are dated rightly."""
    with chosen(request, kind) as (broker, app):
        name = broker.name()
        worker = broker.start(name, app)
        try:
            done = run(broker, tmp_path, ahead, str(PROBE_FOLDER / "clock_sender.py"), name)
            assert done.returncode == 0, done.stderr
            said = json.loads(done.stdout.splitlines()[-1])
            assert abs(said["local"] - time.time() - ahead) < CLOSE  # its clock was wrong indeed
            assert said["answer"] == 5
            for what, message_id in said["ids"].items():
                assert settled(app, message_id) is MessageStatus.HANDLED, what
                receipt = app.receipts.get(message_id)
                assert abs((receipt.sent_at - datetime.now(UTC)).total_seconds()) < CLOSE, what
        finally:
            end_all([worker])
        assert done.stderr.count("Set the clock") == 1


def test_a_purge_far_ahead_refuses(ledger: Broker, tmp_path: Path) -> None:
    """On a computer 120 days ahead neither the command nor beat's task removes anything; dry runs do no harm."""
    app = ledger.app()
    message = open_message(app)
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
    refused = run(ledger, tmp_path, DAYS_120, "-m", "waooaw_celery", "purge")
    assert refused.returncode == 1
    assert "nothing was purged" in refused.stderr
    assert "ahead of" in refused.stderr
    counted = run(ledger, tmp_path, DAYS_120, "-m", "waooaw_celery", "purge", "--dry-run", "--json")
    assert json.loads(counted.stdout)["messages"] == 0, counted.stderr
    meant = run(ledger, tmp_path, DAYS_120, "-m", "waooaw_celery", "purge", "--despite-skew", "--json")
    assert json.loads(meant.stdout)["messages"] == 0, meant.stderr
    command = [sys.executable, "-m", "celery", "-A", "beat_schedule", "worker", "-P", "solo"]
    env = os.environ | environment(ledger, tmp_path, DAYS_120)
    log = tmp_path / "log"
    with running([*command, "--without-mingle", "-n", f"{ledger.name()}@%h"], log=log, env=env, cwd=ROOT):
        app.send_task(PURGE, queue=system_queue(), ignore_result=True, expires=3600)
        until(lambda: "nothing was purged" in log.read_text(), "the refusal")
    assert app.receipts.get(message.message_id).status is MessageStatus.HANDLED
    app.close()


def test_a_ledger_in_sqlite_is_not_purged_when_redis_tells_another_time(redis_url: str, tmp_path: Path) -> None:
    """SQLite has no other clock than its computer's, which Redis contradicts."""
    broker = Broker(redis_url, redis_url, tmp_path, f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    app = broker.app()
    schema.upgrade(app.database)
    message = open_message(app)
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
    refused = run(broker, tmp_path, DAYS_120, "-m", "waooaw_celery", "purge")
    assert refused.returncode == 1
    assert "nothing was purged" in refused.stderr
    assert app.receipts.get(message.message_id).status is MessageStatus.HANDLED
    assert Retention(app.database, app.witnesses()).purge().messages == 0
    assert app.reference_clock.measure() is None
    app.close()


def test_a_wrong_clock_of_the_database_is_found_too(ledger: Broker) -> None:
    """Whichever clock is wrong, a purge refuses; it takes a witness that answers."""
    app = ledger.app()

    @contextmanager
    def wrong() -> Iterator[Callable[[], float]]:
        yield lambda: time.time() - HOUR

    @contextmanager
    def silent() -> Iterator[Callable[[], float]]:
        raise StoreUnavailable("it is away")
        yield

    with pytest.raises(ClockSkew, match=r"36\d\d\.\d s ahead of that of a witness"):
        Retention(app.database, {"a witness": wrong}).purge()
    with pytest.raises(StoreUnavailable):
        Retention(app.database, {"a witness": silent}).purge()
    assert Retention(app.database, {"a witness": wrong}).purge(despite_skew=True).busy is False
    app.close()


def test_the_doctor_tells_every_clock(ledger: Broker, tmp_path: Path) -> None:
    """It tells this computer's clock, the broker's and each worker's, and fails when one is wrong by a minute."""
    app = ledger.app()
    names = ledger.name(), ledger.name()
    workers = [
        ledger.start(names[0], app),
        ledger.start(names[1], app, "-P", "solo", env=skewed(tmp_path, HOUR)),
    ]
    try:
        for name in names:
            wanted = app.registry.get
            until(lambda: any("clock" in each for each in wanted(name).reports.values()), "a report")  # noqa: B023
        right = run(ledger, tmp_path, 0, "-m", "waooaw_celery", "doctor", "--json")
        found = {each["name"]: each for each in json.loads(right.stdout)}
        assert right.returncode == 1
        assert found["clock of this computer"]["state"] == "ok"
        assert found["clock of the broker"]["state"] == "ok"
        states = {each.partition("@")[0]: found[each]["state"] for each in found if "@" in each}
        assert [states[f"clock of {name}"] for name in names] == ["ok", "fail"]
        wrong = run(ledger, tmp_path, 5, "-m", "waooaw_celery", "doctor")
        assert "warn" in wrong.stdout
        assert "5.0 s ahead of" in wrong.stdout
        agents = run(ledger, tmp_path, HOUR, "-m", "waooaw_celery", "agents", "--json")
        alive = {each["agent"]["name"]: each["alive"] for each in json.loads(agents.stdout)}
        assert all(alive[name] for name in names)  # whichever clock the one who asks has
    finally:
        end_all(workers)
    app.close()


def test_a_worker_ahead_does_not_end_those_of_others(valkey_broker: Broker, tmp_path: Path) -> None:
    """Each worker of an agent is known to live, though one of them is an hour ahead and beats on."""
    app = valkey_broker.app()
    name = valkey_broker.name()
    workers = [
        valkey_broker.start(name, app, waooaw_heartbeat_seconds=0.5),
        valkey_broker.start(
            name, app, "-P", "solo", node=f"{name}-2", env=skewed(tmp_path, HOUR), waooaw_heartbeat_seconds=0.5
        ),
    ]
    try:
        until(lambda: len(app.registry.get(name).reports) == 2, "both reports")
        assert len(app.registry.get(name).workers) == 2
    finally:
        end_all(workers)
    app.close()


class Settable:
    """A reference whose clock a test sets."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead, self.asked, self.away = ahead, 0, False

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], float]]:
        if self.away:
            raise StoreUnavailable("it is away")
        yield self.ask

    def ask(self) -> float:
        self.asked += 1
        return time.time() + self.ahead


def away_from(clock: ReferenceClock) -> float:
    """Return by how much a clock differs from this computer's."""
    return (clock.now() - datetime.now(UTC)).total_seconds()


def test_a_clock_costs_no_question_for_each_message() -> None:
    """It is asked once at first use, and not again for a thousand uses."""
    reference = Settable(HOUR)
    clock = ReferenceClock("a reference", reference)
    assert all(abs(away_from(clock) - HOUR) < 1 for _ in range(1000))
    assert reference.asked <= 3


def test_a_clock_that_is_right_is_used_as_it_is() -> None:
    """A hundredth of a second is not corrected: the order of what one computer writes down stays exact."""
    clock = ReferenceClock("a reference", Settable(0.05))
    clock.measure()
    assert abs(away_from(clock)) < 0.02
    moment = LocalTime.read()
    assert clock.corrected(moment) == moment
    assert type(clock.corrected(moment)) is datetime


def test_only_what_nobody_named_is_corrected() -> None:
    """A moment that a caller named stays, and what was corrected is not corrected again."""
    clock = ReferenceClock("a reference", Settable(-HOUR))
    clock.measure()
    named, filled_in = datetime.now(UTC), LocalTime.read()
    assert clock.corrected(named) is named
    once = clock.corrected(filled_in)
    assert abs((filled_in - once).total_seconds() - HOUR) < 1
    assert clock.corrected(once) is once


def test_a_reference_that_is_away_is_asked_again_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Without a reading this computer's clock counts; there is one line in the log, and it is right later."""
    reference = Settable(HOUR)
    reference.away = True
    clock = ReferenceClock("a reference", reference)
    with caplog.at_level(logging.WARNING):
        assert abs(away_from(clock)) < 1
        with pytest.raises(StoreUnavailable):
            clock.measure()
        assert clock.report() is None
        reference.away = False
        clock.measure()
    assert abs(away_from(clock) - HOUR) < 1
    actions = [getattr(record, "action", None) for record in caplog.records]
    assert actions == ["clock_not_read", "clock_wrong"]


def test_a_wrong_clock_is_logged_once_an_incident(caplog: pytest.LogCaptureFixture) -> None:
    """One line says how wrong it is and what to do, and one that it is right again."""
    reference = Settable(3.0)
    clock = ReferenceClock("a reference", reference)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.measure()
        reference.ahead = 0.0
        clock.measure()
        clock.measure()
    assert [getattr(record, "action", None) for record in caplog.records] == ["clock_wrong", "clock_right"]
    assert "3.0 s behind" in caplog.records[0].getMessage()
    assert "NTP" in caplog.records[0].getMessage()


def test_a_slow_answer_does_not_make_a_clock_wrong(redis_url: str) -> None:
    """The error of a reading is half its round trip, and a difference within it is none."""

    class Slow(Settable):
        def ask(self) -> float:
            told = super().ask()
            time.sleep(0.3)  # a slow way back
            return told

    reading = read("a slow one", Slow())
    assert 0.14 < reading.error < 1.0
    assert not reading.differs_by(0.05)
    quick = read("Redis", redis_source(lambda: connect(store_url(redis_url))))
    assert abs(quick.ahead) <= quick.error + 0.05


def test_a_message_has_no_receipt_before_it_was_sent(valkey_broker: Broker) -> None:
    """A message that its own time to live ended before it was sent is refused, whatever the clock."""
    app = valkey_broker.app(waooaw_agents=("nobody-here",))
    old = Message(
        from_agent="tests", to_agent="nobody-here", sent_at=datetime.now(UTC) - timedelta(seconds=9), ttl_seconds=5
    )
    with pytest.raises(ValueError, match="was over before it was sent"):
        MessageBus(app).send(old)
    with pytest.raises(UnknownMessage):
        app.receipts.get(old.message_id)
    app.close()
