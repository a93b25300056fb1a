"""The recovery publishes what the broker lost: each accepted message is handled, and ends once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import pytest
from lost_messages import (
    declare_agent,
    event_names,
    lose_everything,
    raw_messages,
    read_record,
    rebuild_message,
    recover,
    send,
)
from process_pool import spawn
from proxy import proxied
from support import WAIT_SECONDS, Broker, queue_length, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, Priority
from waooaw_celery.broker.redis.scripts import PUBLISH
from waooaw_celery.errors import BrokerUnavailable, WaooawError
from waooaw_celery.ledger.database.rows import event_row
from waooaw_celery.maintenance import recovery as recovery_module
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.testing.embedded import end_all

ROOT = Path(__file__).parents[3]

Process: TypeAlias = subprocess.Popen[bytes]


def test_a_broker_that_is_emptied_under_load_loses_no_message(
    broker: Broker, app: AgentApp, start: Callable[..., Process], tmp_path: Path
) -> None:
    """All accepted messages are handled, also one that a worker held, and each has one final event."""
    agent = broker.name()
    start(app, agent)
    do = {"sleep": 0.005, "touch": str(tmp_path)}
    ids = [id_ for _ in range(10) for id_ in send(app, agent, 20, do)]
    until(lambda: len(list(tmp_path.iterdir())) > 20, "the first messages")
    lose_everything(broker)
    ids += [id_ for _ in range(5) for id_ in send(app, agent, 20, do)]

    def have_ended() -> bool:
        recover(app, agent)
        receipts = {receipt.message_id: receipt for receipt in app.receipts.recent(limit=10_000)}
        return all(receipts[id_].status.final for id_ in ids)

    until(have_ended, "the end of every message", 60)
    assert {path.name for path in tmp_path.iterdir()} == set(ids)
    events = {id_: Counter(event_names(app, id_)) for id_ in ids}
    assert {each["handled"] for each in events.values()} == {1}
    assert sum(each["recovered"] for each in events.values()) >= 10
    [recovered_id, *_] = [id_ for id_ in ids if events[id_]["recovered"]]
    [reason] = [event.error for event in read_record(app, recovered_id).events if event.event == "recovered"]
    assert reason == "not in the broker"


def test_a_message_of_a_killed_worker_is_recovered(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """If worker and message are lost, the message is published again, as the same attempt."""
    agent = broker.name()
    worker = start(app, agent)
    [message_id] = send(app, agent, 1, {"first_sleep": 60})
    until(lambda: "delivered" in event_names(app, message_id), "its beginning")
    lose_everything(broker)
    assert recover(app, agent).recovered == []  # its worker is alive
    worker.kill()
    worker.wait(10)
    until(lambda: recover(app, agent).recovered, "its recovery")
    [recovered] = [event for event in read_record(app, message_id).events if event.event == "recovered"]
    assert recovered.error == f"not in the broker, and its worker, {agent}@{socket.gethostname()}, is gone"
    [(_, again)] = raw_messages(broker, agent)
    assert again["headers"]["retries"] == 0


def test_an_unconfirmed_publish_is_resolved(broker: Broker, app: AgentApp) -> None:
    """A message that arrived is left alone, and one that did not is published. Neither publish was confirmed."""
    agent = declare_agent(broker, app)
    arrived, never = (Message(from_agent="tests", to_agent=agent) for _ in range(2))
    with (
        proxied(broker.url) as proxy,
        closing(broker.app(broker_url=proxy.url, task_publish_retry=False)) as far,
    ):
        far.registry.declare(agent, ["command"], f"{agent}@gone", 0.001)
        send(far, agent)
        far.send_task(f"{agent}.command", args=({},))  # loads the script: its loss is not the lost reply below
        proxy.lose_answer(PUBLISH.digest.encode())
        with suppress(BrokerUnavailable):
            far.send_task(f"{agent}.command", args=({},), message=arrived)
        assert proxy.lost.wait(5)
    with closing(broker.app(broker_url="redis://127.0.0.1:1/0")) as cut_off, pytest.raises(BrokerUnavailable):
        MessageBus(cut_off).send(never)
    assert MessageBus(app).receipt(never.message_id).status is MessageStatus.PENDING
    assert recover(app, agent).recovered == [never.message_id]
    assert MessageBus(app).receipt(never.message_id).status is MessageStatus.SENT
    assert {message["headers"]["id"] for _, message in raw_messages(broker, agent)} >= {
        arrived.message_id,
        never.message_id,
    }


def test_a_dry_run_changes_nothing(any_ledger: AgentApp, broker: Broker) -> None:
    """It returns what would be published, and records and publishes nothing."""
    agent = declare_agent(broker, any_ledger)
    ids = send(any_ledger, agent, 3)
    lose_everything(broker)
    events = [event_names(any_ledger, id_) for id_ in ids]
    result = recover(any_ledger, agent, dry_run=True)
    assert (result.looked_for, sorted(result.recovered)) == (3, sorted(ids))
    assert queue_length(any_ledger, agent) == 0
    assert [event_names(any_ledger, id_) for id_ in ids] == events
    assert recover(any_ledger, agent, limit=2).unfinished
    assert queue_length(any_ledger, agent) == 2
    assert len(recover(any_ledger, agent).recovered) == 1
    assert queue_length(any_ledger, agent) == 3


@pytest.mark.slow
def test_two_runs_at_once_publish_once(any_ledger: AgentApp, broker: Broker) -> None:
    """They share the messages, or one does all: no message is published twice."""
    after = 10  # seconds: a run must publish what it claims within this time, or it counts as lost again
    agent = declare_agent(broker, any_ledger)
    ids = send(any_ledger, agent, 300)
    lose_everything(broker)
    begin = threading.Barrier(4)

    def run(_: int) -> list[str]:
        with closing(broker.app(waooaw_database_url=any_ledger.database.url.render_as_string(False))) as app:
            begin.wait()
            return Recovery(app, after=after, pause=0.1).run(agent=agent).recovered

    until(
        lambda: Recovery(any_ledger, after=after, pause=0).run(agent=agent, dry_run=True).looked_for == 300,
        "their age",
    )
    with ThreadPoolExecutor(4) as threads:
        recovered = [id_ for done in threads.map(run, range(4)) for id_ in done]
    assert sorted(recovered) == sorted(ids)
    assert queue_length(any_ledger, agent) == 300
    assert recover(any_ledger, agent).recovered == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_healthy_broker_is_left_alone_under_load(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """With a backlog, retries, priorities and a busy worker, nothing ever counts as lost."""
    agent = broker.name()
    start(app, agent, "-c", "2")
    ids: list[str] = []
    done = threading.Event()
    recovered: list[str] = []

    def recover_repeatedly() -> None:
        with closing(broker.app()) as own_app:
            while not done.is_set():
                recovered.extend(recover(own_app, agent).recovered)

    with ThreadPoolExecutor(1) as threads:
        recovery = threads.submit(recover_repeatedly)
        try:
            for number in range(30):
                do = {"sleep": 0.005} | ({"fail_times": 1, "countdown": 0.2} if number % 5 == 0 else {})
                ids += send(app, agent, 20, do, priority=list(Priority)[number % 4])
            for id_ in ids:
                assert settled(app, id_) is MessageStatus.HANDLED
        finally:
            done.set()
        recovery.result(30)
    assert recovered == []
    assert not [id_ for id_ in ids if {"recovered", "duplicate"} & set(event_names(app, id_))]


def test_a_broker_that_is_down_is_logged_once(
    broker: Broker, app: AgentApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends with one log line, and the messages do not change."""
    agent = declare_agent(broker, app)
    [message_id] = send(app, agent)
    with closing(broker.app(broker_url="redis://127.0.0.1:1/0")) as cut_off:
        result = recover(cut_off, agent)
    assert result.error is not None
    assert "the broker does not answer" in result.error
    assert [each.action for each in caplog.records if hasattr(each, "action")] == ["not_recovered"]  # type: ignore[attr-defined]
    assert event_names(app, message_id) == ["sent"]


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_a_frozen_broker_does_not_block_the_recovery(rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection freezes between the two passes: the run ends in time, with the error."""
    with closing(rabbitmq.app()) as app:
        agent = declare_agent(rabbitmq, app)
        send(app, agent)
        with app.connection_for_write() as connection, connection.channel() as channel:
            agent_queue(agent)(channel).purge()
    with (
        ThreadPoolExecutor(1) as pool,
        proxied(rabbitmq.url) as proxy,
        closing(rabbitmq.app(broker_url=proxy.url)) as app,
    ):
        passes_done = []

        def freeze(seconds: float) -> None:
            passes_done.append(proxy.connections)
            proxy.freeze(also_new=True)

        monkeypatch.setattr(recovery_module, "time", SimpleNamespace(sleep=freeze, monotonic=time.monotonic))
        result = pool.submit(Recovery(app, after=0, pause=2.0).run, agent=agent).result(WAIT_SECONDS)
    assert passes_done == [1]
    assert "the broker does not answer" in str(result.error)


def test_a_message_in_the_spool_is_not_lost(broker: Broker, app: AgentApp) -> None:
    """Its final event is in the spool, and not in the ledger yet."""
    agent = declare_agent(broker, app)
    known, lost = send(app, agent, 2)
    lose_everything(broker)
    with closing(broker.app(waooaw_spool_folder=str(broker.folder / "elsewhere"))) as other:
        fact = MessageFact(
            message_id=known, event=MessageEvent.HANDLED, message=rebuild_message(app, known), handler="command"
        )
        other.ledger.spool.append([event_row(fact, other.settings.retention)])
        assert recover(other, agent, dry_run=True).recovered == [lost]


@pytest.mark.slow
def test_beat_and_the_command_recover(broker: Broker, app: AgentApp, tmp_path: Path) -> None:
    """The system's worker runs the recovery periodically, and `waooaw recover` runs it at once."""
    agent = declare_agent(broker, app)
    env = os.environ | {
        "CELERY_BROKER_URL": broker.url,
        "WAOOAW_DATABASE_URL": broker.database_url or "",
        "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
        "WAOOAW_RECOVER_SECONDS": "1",
        "WAOOAW_RECOVER_AFTER": "0.5",
    }
    [message_id] = send(app, agent)
    lose_everything(broker)
    command = [sys.executable, "-m", "waooaw_celery", "recover", "--agent", agent]
    until(lambda: recover(app, agent, dry_run=True).recovered, "its age")

    def run(*options: str) -> str:
        return subprocess.run([*command, *options], env=env, capture_output=True, text=True, check=True).stdout

    assert message_id in run("--dry-run")
    output = json.loads(run("--json"))
    assert (output["looked_for"], output["recovered"], output["error"]) == (1, [message_id], None)
    lose_everything(broker)
    celery = [sys.executable, "-m", "celery", "-A", "beat_schedule"]
    beat = [*celery, "beat", "--schedule", str(tmp_path / "schedule")]
    system = [*celery, "worker", "-n", f"{agent}-system@%h", "-c", "1", "--without-mingle", "--without-gossip"]
    processes = [spawn(args, log=tmp_path / "log", env=env, cwd=ROOT) for args in (beat, system)]
    try:
        until(lambda: queue_length(app, agent) == 1, "its recovery", 40)
    finally:
        end_all(processes)
    assert event_names(app, message_id).count("recovered") == 2
    assert "messages that the broker had lost" in (tmp_path / "log").read_text()


def test_an_invalid_agent_name_is_refused(app: AgentApp) -> None:
    """An invalid agent name is refused."""
    with pytest.raises(WaooawError, match="agent"):
        recover(app, "Not A Name")
