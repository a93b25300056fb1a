"""A computer with a wrong clock sweeps, handles, sends and purges by the reference clock."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clocks import HOUR, ROOT, environment, run_python, skewed
from support import PROBE_FOLDER, Broker, lone_database, note, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, Priority
from waooaw_celery.errors import ClockSkew, StoreUnavailable, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.maintenance.tasks import PURGE, RECONCILE, SWEEP
from waooaw_celery.messages.queues import HandlerName, system_queue
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.store.clock_reading import read, redis_source
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.testing.embedded import end_all, running

DAYS_120 = 120 * 24 * HOUR
#: Seconds by which times may differ from the expected ones, under load.
TOLERANCE = 30.0


@pytest.fixture(scope="module")
def ledger(redis_url: str, postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Valkey, with a ledger for this module: sweeps and purges see no other test's messages."""
    with lone_database(postgres_url) as url:
        broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("clock"), url)
        app = broker.app()
        schema.upgrade(app.database)
        app.close()
        yield broker
        broker.clean()


@contextmanager
def broker_and_app(request: pytest.FixtureRequest, kind: str) -> Iterator[tuple[Broker, AgentApp]]:
    """Open an application on a broker: Valkey with a ledger, or a broker with receipts in Redis."""
    broker: Broker = request.getfixturevalue({"ledger": "ledger"}.get(kind, f"{kind}_broker"))
    app = broker.app()
    try:
        yield broker, app
    finally:
        app.close()


def open_message(app: AgentApp, **fields: Any) -> Message:
    """Record a message that is in its queue, and return it."""
    message = app.message_factory.complete(
        HandlerName("nobody-here", "command"),
        Message(from_agent="tests", to_agent="nobody-here", **fields),
    )
    app.receipts.begin_recording([(message, "command")])()
    note(app.receipts, message, MessageEvent.SENT)
    return message


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead", "behind"])
@pytest.mark.parametrize("kind", ["ledger", "valkey"])
def test_a_sweep_with_a_wrong_clock_expires_only_overdue_messages(
    kind: str, ahead: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A system's worker an hour ahead or behind expires and fails messages by the reference clock."""
    with broker_and_app(request, kind) as (broker, app):
        fresh = [open_message(app, ttl_seconds=300, priority=priority) for priority in Priority]
        a_minute_ago = datetime.now(UTC) - timedelta(seconds=60)
        overdue = open_message(app, ttl_seconds=1, sent_at=a_minute_ago)
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
            assert settled(app, overdue.message_id) is MessageStatus.EXPIRED, (tmp_path / "log").read_text()
        assert {app.receipts.get(each.message_id).status for each in fresh} == {MessageStatus.SENT}
        assert app.receipts.get(begun.message_id).status is MessageStatus.DELIVERED
        finished_at = app.receipts.get(overdue.message_id).finished_at
        assert finished_at is not None
        assert abs((finished_at - datetime.now(UTC)).total_seconds()) < TOLERANCE


@pytest.mark.slow
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
def test_a_worker_with_a_wrong_clock_drops_only_expired_messages(
    kind: str, ahead: float, pool: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It handles unexpired messages, drops expired ones, and begins delayed ones when they are due."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    with broker_and_app(request, kind) as (broker, app):
        name = broker.name()
        app.registry.declare(name, ["command", "echo", "seen"], "never@here", 1.0)
        bus = MessageBus(app)
        expired = bus.send(Message(from_agent="tests", to_agent=name, ttl_seconds=2)).message_id
        fresh = bus.send(Message(from_agent="tests", to_agent=name, ttl_seconds=300)).message_id
        retried = bus.send(Message(from_agent="tests", to_agent=name, payload={"fail_times": 1, "countdown": 1}))
        due = app.send_task(f"{name}.command", args=({},), countdown=4).id
        sent_at = datetime.now(UTC)
        expires_at = time.monotonic() + 2.2
        until(lambda: time.monotonic() > expires_at, "the first message to expire")
        worker = broker.start(name, app, "-P", pool, env=skewed(tmp_path, ahead))
        try:
            assert settled(app, fresh) is MessageStatus.HANDLED
            assert settled(app, expired) is MessageStatus.EXPIRED
            assert settled(app, due) is MessageStatus.HANDLED
            assert settled(app, retried.message_id) is MessageStatus.HANDLED
            receipt = app.receipts.get(due)
            assert receipt.delivered_at is not None
            assert receipt.finished_at is not None
            # The worker recorded the time by the reference clock: the message was due, and not late.
            assert 3.0 < (receipt.delivered_at - sent_at).total_seconds() < TOLERANCE
            assert abs((receipt.finished_at - datetime.now(UTC)).total_seconds()) < TOLERANCE
            [living] = [each for each in app.registry.get(name).workers if not each.startswith("never")]
            until(lambda: "clock" in app.registry.get(name).reports.get(living, {}), "the report of its clock")
            reported = app.registry.get(name).reports[living]["clock"]["ahead"]
            assert abs(reported - ahead) < TOLERANCE
        finally:
            end_all([worker])
        log = (broker.folder / f"{name}.log").read_text()
        assert "NTP" in log
        assert log.count("Set the clock") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ahead"), [("ledger", HOUR), ("ledger", -HOUR), ("valkey", -HOUR)])
def test_a_sender_with_a_wrong_clock_sends_by_the_reference_clock(
    kind: str, ahead: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Its messages, ``.delay`` calls, countdowns and requests are handled in time, with the right times."""
    with broker_and_app(request, kind) as (broker, app):
        name = broker.name()
        worker = broker.start(name, app)
        try:
            sender = run_python(broker, tmp_path, ahead, str(PROBE_FOLDER / "clock_sender.py"), name)
            assert sender.returncode == 0, sender.stderr
            output = json.loads(sender.stdout.splitlines()[-1])
            assert abs(output["local"] - time.time() - ahead) < TOLERANCE  # its clock was wrong
            assert output["answer"] == 5
            for method, message_id in output["ids"].items():
                assert settled(app, message_id) is MessageStatus.HANDLED, method
                receipt = app.receipts.get(message_id)
                assert abs((receipt.sent_at - datetime.now(UTC)).total_seconds()) < TOLERANCE, method
        finally:
            end_all([worker])
        assert sender.stderr.count("Set the clock") == 1


@pytest.mark.slow
def test_a_purge_with_a_clock_far_ahead_is_refused(ledger: Broker, tmp_path: Path) -> None:
    """On a computer 120 days ahead, neither the command nor the periodic task removes anything."""
    app = ledger.app()
    message = open_message(app)
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
    refused = run_python(ledger, tmp_path, DAYS_120, "-m", "waooaw_celery", "purge")
    assert refused.returncode == 1
    assert "nothing was purged" in refused.stderr
    assert "ahead of" in refused.stderr
    counted = run_python(ledger, tmp_path, DAYS_120, "-m", "waooaw_celery", "purge", "--dry-run", "--json")
    assert json.loads(counted.stdout)["messages"] == 0, counted.stderr
    forced = run_python(ledger, tmp_path, DAYS_120, "-m", "waooaw_celery", "purge", "--despite-skew", "--json")
    assert json.loads(forced.stdout)["messages"] == 0, forced.stderr
    command = [sys.executable, "-m", "celery", "-A", "beat_schedule", "worker", "-P", "solo"]
    env = os.environ | environment(ledger, tmp_path, DAYS_120)
    log = tmp_path / "log"
    with running([*command, "--without-mingle", "-n", f"{ledger.name()}@%h"], log=log, env=env, cwd=ROOT):
        app.send_task(PURGE, queue=system_queue(), ignore_result=True, expires=3600)
        until(lambda: "nothing was purged" in log.read_text(), "the refusal")
    assert app.receipts.get(message.message_id).status is MessageStatus.HANDLED
    app.close()


def test_a_sqlite_ledger_is_not_purged_if_redis_has_another_time(redis_url: str, tmp_path: Path) -> None:
    """SQLite has only its computer's clock; Redis is a witness of the right time."""
    broker = Broker(redis_url, redis_url, tmp_path, f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    app = broker.app()
    schema.upgrade(app.database)
    message = open_message(app)
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
    refused = run_python(broker, tmp_path, DAYS_120, "-m", "waooaw_celery", "purge")
    assert refused.returncode == 1
    assert "nothing was purged" in refused.stderr
    assert app.receipts.get(message.message_id).status is MessageStatus.HANDLED
    assert Retention(app.database, app.components.witnesses()).purge().messages == 0
    assert app.reference_clock.measure() is None
    app.close()


def test_a_purge_compares_all_clocks(ledger: Broker) -> None:
    """A purge is refused whichever clock is wrong, or if a witness does not answer."""
    app = ledger.app()

    @contextmanager
    def wrong() -> Iterator[Callable[[], float]]:
        yield lambda: time.time() - HOUR

    @contextmanager
    def silent() -> Iterator[Callable[[], float]]:
        raise StoreUnavailable("it is down")
        yield

    with pytest.raises(ClockSkew, match=r"36\d\d\.\d s ahead of that of a witness"):
        Retention(app.database, {"a witness": wrong}).purge()
    with pytest.raises(StoreUnavailable):
        Retention(app.database, {"a witness": silent}).purge()
    assert Retention(app.database, {"a witness": wrong}).purge(despite_skew=True).busy is False
    app.close()


@pytest.mark.slow
def test_the_doctor_checks_every_clock(ledger: Broker, tmp_path: Path) -> None:
    """It checks the clocks of this computer, the broker and each worker, and fails if one is a minute off."""
    app = ledger.app()
    names = ledger.name(), ledger.name()
    workers = [
        ledger.start(names[0], app),
        ledger.start(names[1], app, "-P", "solo", env=skewed(tmp_path, HOUR)),
    ]
    try:
        for name in names:
            agent = app.registry.get
            until(lambda: any("clock" in each for each in agent(name).reports.values()), "a report")  # noqa: B023
        right = run_python(ledger, tmp_path, 0, "-m", "waooaw_celery", "doctor", "--json")
        found = {each["name"]: each for each in json.loads(right.stdout)}
        assert right.returncode == 1
        assert found["clock of this computer"]["state"] == "ok"
        assert found["clock of the broker"]["state"] == "ok"
        states = {each.partition("@")[0]: found[each]["state"] for each in found if "@" in each}
        assert [states[f"clock of {name}"] for name in names] == ["ok", "fail"]
        wrong = run_python(ledger, tmp_path, 5, "-m", "waooaw_celery", "doctor")
        assert "warn" in wrong.stdout
        assert "5.0 s ahead of" in wrong.stdout
        agents = run_python(ledger, tmp_path, HOUR, "-m", "waooaw_celery", "agents", "--json")
        alive = {each["agent"]["name"]: each["alive"] for each in json.loads(agents.stdout)}
        assert all(alive[name] for name in names)  # whatever clock this process has
    finally:
        end_all(workers)
    app.close()


def test_a_worker_ahead_does_not_expire_other_workers(valkey_broker: Broker, tmp_path: Path) -> None:
    """Both workers of an agent count as alive, though one of them sends heartbeats an hour ahead."""
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


def test_a_message_that_expired_before_it_was_sent_is_refused(valkey_broker: Broker) -> None:
    """It gets no receipt."""
    app = valkey_broker.app(waooaw_agents=("nobody-here",))
    old = Message(
        from_agent="tests", to_agent="nobody-here", sent_at=datetime.now(UTC) - timedelta(seconds=9), ttl_seconds=5
    )
    with pytest.raises(ValueError, match="expired before it was sent"):
        MessageBus(app).send(old)
    with pytest.raises(UnknownMessage):
        app.receipts.get(old.message_id)
    app.close()


def test_the_clock_of_redis_is_read(redis_url: str) -> None:
    """Redis runs on this computer, so that its clock does not differ."""
    reading = read("Redis", redis_source(lambda: connect(store_url(redis_url))))
    assert abs(reading.ahead) <= reading.error + 0.05
