"""Each alert of the fleet fires when its fault is caused on real servers, and most end when the fault ends.

The rules are those of the package, but without their `for`, and ten minutes are five seconds.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import pytest
from fleet_metrics import Prometheus, exporting, program, prometheus
from sqlalchemy import delete, text
from support import Broker, lone_database, note, until
from test_alert_rules import ALERTS, RULES

from waooaw_celery import AgentApp, Message, MessageBus, Priority
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.models import PurgeRow
from waooaw_celery.ledger.retention.removal import Removal, record_removal
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.workflow_models import WorkflowRow
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.monitoring.http_server import MonitoringServer, Reply
from waooaw_celery.testing.embedded import end, valkey

AGENT, NODE = "writer", "writer@host"
#: Metrics of workers, which this test serves itself.
WORKER = "waooaw_ledger_spool_rows {rows}\n"


@dataclass
class Fleet:
    """An application whose exporter a Prometheus with the rules scrapes."""

    broker: Broker
    app: AgentApp
    server: MonitoringServer
    prometheus: Prometheus
    spool_rows: list[int]

    def await_alert(self, name: str, seconds: float = 30) -> str:
        """Wait until an alert fires, and return its summary."""
        until(lambda: name in self.prometheus.firing(), f"{name} among {set(self.prometheus.firing())}", seconds)
        return str(self.prometheus.firing()[name][0]["annotations"]["summary"])

    def await_end(self, name: str, seconds: float = 30) -> None:
        """Wait until an alert no longer fires."""
        until(lambda: name not in self.prometheus.firing(), f"the end of {name}", seconds)

    def declare(self, ahead: float = 0.0, **report: object) -> None:
        """Send a heartbeat of the agent's worker."""
        clock = {"ahead": ahead, "error": 0.0, "reference": "x"}
        self.app.registry.declare(AGENT, ["command"], NODE, 600.0, report={"clock": clock, **report})

    def send(self, to: str = AGENT, **fields: object) -> None:
        """Send a message."""
        MessageBus(self.app).send(Message(from_agent="planner", to_agent=to, **fields))  # type: ignore[arg-type]

    def record(self, event: MessageEvent, error: str | None = None) -> None:
        """Record a message in the ledger with this event."""
        message = Message(from_agent="planner", to_agent=AGENT)
        self.app.ledger.begin_recording([(message, "command")])()
        note(self.app.ledger, message, event, error=error)
        self.app.ledger.flush()

    def empty(self, *keys: str) -> None:
        """Delete lists of the broker."""
        with self.app.connection_for_write() as connection, connection.channel() as channel:
            channel.client.delete(*keys)


@pytest.fixture(scope="module")
def fleet(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A healthy fleet: no alert fires."""
    program("prometheus")  # skips before anything else is started
    folder = tmp_path_factory.mktemp("faults")
    rules = re.sub(r"^ +for: .*\n", "", RULES.read_text(), flags=re.MULTILINE).replace("[10m]", "[5s]")
    (folder / "rules.yml").write_text(rules)
    with ExitStack() as stack:
        url = stack.enter_context(valkey())
        broker = Broker(url, url, folder, stack.enter_context(lone_database(postgres_url)))
        app = stack.enter_context(closing(broker.app(waooaw_agents=[AGENT])))
        schema.upgrade(app.database)
        record_removal(app.database, Removal(rule="purge: in the test"), app.reference_clock.now())
        exporter = stack.enter_context(exporting(app, interval=0.5))
        server = MonitoringServer(exporter.routes(), 0, "127.0.0.1")
        stack.callback(server.stop)
        rows = [0]
        worker = MonitoringServer(
            {"/metrics": lambda: Reply(200, WORKER.format(rows=rows[0]).encode(), "text/plain; version=0.0.4")},
            *(0, "127.0.0.1"),
        )
        stack.callback(worker.stop)
        for each in (server, worker):
            each.start()
        targets = {"waooaw": server.port, "waooaw-workers": worker.port}
        scraping = stack.enter_context(prometheus(folder, targets, folder / "rules.yml"))
        found = Fleet(broker, app, server, scraping, rows)
        found.declare()
        up = 'count(waooaw_exporter_source_up == 1) == 6 and count(up{job=~"waooaw.*"} == 1) == 2'
        until(lambda: scraping.query(up) and not scraping.firing(), "a healthy fleet", 60)
        yield found


def lose(fleet: Fleet) -> None:
    fleet.record(MessageEvent.FAILED, "lost: it was recovered 5 times, and is not in the broker")


def recover(fleet: Fleet) -> None:
    fleet.record(MessageEvent.RECOVERED, "not in the broker")


def bury(fleet: Fleet) -> None:
    fleet.app.dead_letters.add(f"agent.{AGENT}", "ValueError: x", b"{}")


def send_urgent(fleet: Fleet) -> None:
    fleet.send(priority=Priority.URGENT, sent_at=fleet.app.now() - timedelta(minutes=1))


def send_low(fleet: Fleet) -> None:
    fleet.send(priority=Priority.LOW, ttl_seconds=90_000, sent_at=fleet.app.now() - timedelta(hours=1))


def empty_queue(fleet: Fleet) -> None:
    ranks = [priority.rank for priority in Priority]
    fleet.empty(*(f"agent.{AGENT}\x06\x16{rank}" if rank else f"agent.{AGENT}" for rank in ranks))


def expire(fleet: Fleet) -> None:
    for _ in range(5):
        fleet.record(MessageEvent.EXPIRED)


def fill_system_queue(fleet: Fleet) -> None:
    with fleet.app.connection_for_write() as connection, connection.channel() as channel:
        channel.client.lpush("waooaw.system", *["{}"] * 21)


def stall(fleet: Fleet) -> None:
    fleet.declare(stalled="no progress for 60 s")


def open_breaker(fleet: Fleet) -> None:
    fleet.app.breakers.open_by_hand(AGENT, by="ada")


def close_breaker(fleet: Fleet) -> None:
    fleet.app.breakers.close_by_hand(AGENT)


def stick(fleet: Fleet) -> None:
    row = {"workflow_id": str(uuid4()), "name": f"{AGENT}.order", "agent": AGENT, "status": "stuck", "priority": 1}
    row |= {"run": 1, "input_digest": "", "conversation_id": "c", "created_at": fleet.app.now(), "fence": 0}
    row |= {"retention": "90 days", "takeovers": 0, "last_change": 0, "inputs": 0}
    with fleet.app.database.begin("write a workflow") as connection:
        connection.execute(WorkflowRow.__table__.insert(), [row])  # type: ignore[attr-defined]


def unstick(fleet: Fleet) -> None:
    with fleet.app.database.begin("delete the workflows") as connection:
        connection.execute(delete(WorkflowRow))


def skew(fleet: Fleet) -> None:
    fleet.declare(ahead=-4.0)


def spool(fleet: Fleet) -> None:
    fleet.spool_rows[0] = 7


def drain(fleet: Fleet) -> None:
    fleet.spool_rows[0] = 0


def forget_purge(fleet: Fleet) -> None:
    with fleet.app.database.begin("forget the purge") as connection:
        connection.execute(delete(PurgeRow))
    record_removal(fleet.app.database, Removal(rule="purge: long ago"), fleet.app.now() - timedelta(days=3))


def purge(fleet: Fleet) -> None:
    Retention(fleet.app.database).purge()


def rename(fleet: Fleet, old: str, new: str) -> None:
    with fleet.app.database.begin("rename a table") as connection:
        connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


def break_ledger(fleet: Fleet) -> None:
    rename(fleet, "waooaw_workflows", "moved_workflows")


def repair_ledger(fleet: Fleet) -> None:
    rename(fleet, "moved_workflows", "waooaw_workflows")


#: The alert, how to cause its fault, how to end it (None: it ends after five minutes), and words of its summary.
FAULTS: list[tuple[str, Callable[[Fleet], None], Callable[[Fleet], None] | None, str]] = [
    ("WaooawMessagesRecovered", recover, None, "1 messages were recovered"),
    ("WaooawMessagesLost", lose, None, "1 messages failed as lost"),
    ("WaooawDeadLettersRising", bury, lambda _: None, "1 more dead letters"),
    ("WaooawUrgentQueueOld", send_urgent, empty_queue, "An urgent message to writer has waited for 1m"),
    ("WaooawQueueOld", send_low, empty_queue, "A message of priority low to writer has waited for 1h"),
    ("WaooawExpiredShare", expire, None, "% of the messages that ended lately have expired"),
    (
        "WaooawHousekeepingWaits",
        fill_system_queue,
        lambda fleet: fleet.empty("waooaw.system"),
        "21 periodic tasks",
    ),
    ("WaooawAgentUnhealthy", stall, Fleet.declare, "The agent writer is unhealthy"),
    ("WaooawBreakerOpen", open_breaker, close_breaker, "Requests to writer are refused"),
    ("WaooawWorkflowStuck", stick, unstick, "1 workflows of writer.order are stuck"),
    ("WaooawClockSkew", skew, Fleet.declare, "The clock of writer@host differs by 4s"),
    ("WaooawLedgerSpool", spool, drain, "7 rows wait on"),
    ("WaooawPurgeOverdue", forget_purge, purge, "not been purged for 3d"),
    ("WaooawSourceDown", break_ledger, repair_ledger, "The exporter cannot read workflows"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("alert", "cause", "cure", "summary"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_told_and_its_end_too(
    fleet: Fleet,
    alert: str,
    cause: Callable[[Fleet], None],
    cure: Callable[[Fleet], None] | None,
    summary: str,
) -> None:
    """The alert fires with a summary that names what is concerned."""
    assert alert not in fleet.prometheus.firing()
    try:
        cause(fleet)
        assert summary in fleet.await_alert(alert)
    finally:
        if cure is not None:
            cure(fleet)
    if cure is not None:
        fleet.await_end(alert)


@pytest.mark.slow
def test_an_agent_whose_only_worker_was_killed(fleet: Fleet) -> None:
    """Messages wait for it, and no worker lives; a new worker ends the alert."""
    name = fleet.broker.name()
    process = fleet.broker.start(name, fleet.app, "-P", "solo")
    try:
        process.send_signal(signal.SIGKILL)
        fleet.send(name)
        assert fleet.await_alert("WaooawNoWorker", 60) == f"1 messages wait for {name}, which has no worker"
        again = fleet.broker.start(name, fleet.app, "-P", "solo", node=f"{name}-2")
        try:
            fleet.await_end("WaooawNoWorker")
        finally:
            end(again)
    finally:
        end(process)


@pytest.mark.slow
def test_an_exporter_that_ends(fleet: Fleet) -> None:
    """It is the last test of the file: nothing else can be told any more."""
    fleet.server.stop()
    assert "(waooaw) cannot be scraped" in fleet.await_alert("WaooawTargetDown")
    fleet.await_alert("WaooawExporterAbsent", 60)


def test_each_alert_is_tried() -> None:
    """No alert of the package is missing here."""
    others = {"WaooawNoWorker", "WaooawTargetDown", "WaooawExporterAbsent"}
    assert {fault[0] for fault in FAULTS} | others == set(ALERTS)
