"""The size of a running worker's pool: read, changed by command, and scaled by what waits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_pool import waooaw
from proxy import Proxy
from support import Broker, pass_time, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler, aio
from waooaw_celery.agents import AgentPool, InvalidMessage, NotScalable, NoWorker, UnknownAgent
from waooaw_celery.testing.embedded import end_all

pytestmark = pytest.mark.slow


class Gate:
    """Messages whose handlers run until a file exists."""

    def __init__(self, app: AgentApp, agent: str, folder: Path) -> None:
        self.app, self.agent, self.folder = app, agent, folder
        self.open = folder / "open"
        self.sent: list[str] = []

    def send(self, count: int) -> None:
        """Send this many messages."""
        for _ in range(count):
            payload = {"hold": str(self.open), "began": str(self.folder)}
            message = Message(from_agent="tests", to_agent=self.agent, payload=payload)
            self.sent.append(MessageBus(self.app).send(message).message_id)

    def began(self) -> list[str]:
        """Return the message and the process of each handler that began, one entry a run."""
        return sorted(each.name for each in self.folder.iterdir() if each.suffix == ".began")

    def running(self, count: int) -> None:
        """Wait until this many handlers have begun."""
        until(lambda: len(self.began()) >= count, f"{count} handlers")

    def finish(self) -> None:
        """Open the gate, and check that each message was handled exactly once."""
        self.open.touch()
        bus = MessageBus(self.app)
        for message_id in self.sent:
            until(lambda each=message_id: bus.receipt(each).status.final, "the end of all messages")  # type: ignore[misc]
            assert bus.receipt(message_id).status is MessageStatus.HANDLED
        begun = [name.split("_")[0] for name in self.began()]
        assert sorted(begun) == sorted(self.sent)


@pytest.fixture
def gate(broker: Broker, app: AgentApp, tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(app, broker.name(), tmp_path)
    yield gate
    gate.open.touch()


def test_a_grown_pool_handles_more_messages_at_once(broker: Broker, app: AgentApp, gate: Gate) -> None:
    """A worker of one process that grows to three runs three handlers at once, and no more."""
    with broker.running(gate.agent, app, "-P", "prefork", module="scaling_probe"):
        pool = AgentPool(app, gate.agent)
        gate.send(5)
        gate.running(1)
        size = pool.grow(2)
        assert size.total == 3
        gate.running(3)
        until(lambda: pool.size().workers[node(size)].busy == 3, "three busy processes")
        pass_time(1.0)
        assert len(gate.began()) == 3
        gate.finish()


def node(size: object) -> str:
    """Return the name of the only worker."""
    (name,) = size.workers  # type: ignore[attr-defined]
    return str(name)


def test_a_shrunk_pool_interrupts_no_handler(broker: Broker, app: AgentApp, gate: Gate) -> None:
    """Four busy processes shrink to one: all four handlers end, then one message is handled at a time."""
    with broker.running(gate.agent, app, "-P", "prefork", "-c", "4", module="scaling_probe"):
        pool = AgentPool(app, gate.agent)
        gate.send(4)
        gate.running(4)
        size = pool.resize(1)
        assert (size.total, size.workers[node(size)].leaving) == (1, 3)
        gate.finish()
        until(lambda: pool.size().workers[node(size)].leaving == 0, "the end of three processes")
        second = Gate(app, gate.agent, gate.folder / "second")
        second.folder.mkdir()
        second.send(3)
        second.running(1)
        pass_time(1.0)
        assert len(second.began()) == 1
        second.finish()


def test_a_pool_that_shrinks_and_grows_under_load_loses_nothing(
    broker: Broker, app: AgentApp, tmp_path: Path
) -> None:
    """Hundreds of short messages are each handled once while the size changes all the time."""
    name = broker.name()
    with broker.running(name, app, "-P", "prefork", "-c", "4", module="scaling_probe"):
        pool, bus = AgentPool(app, name), MessageBus(app)
        sent: list[str] = []
        for round_ in range(12):
            messages = [
                Message(from_agent="tests", to_agent=name, payload={"began": str(tmp_path), "seconds": 0.02})
                for _ in range(40)
            ]
            sent += [each.message_id for each in bus.send_many(messages)]
            pool.resize((1, 4, 2, 6)[round_ % 4])
        for message_id in sent:
            until(lambda each=message_id: bus.receipt(each).status.final, "the end of all messages", 60)  # type: ignore[misc]
            assert bus.receipt(message_id).status is MessageStatus.HANDLED
        begun = [each.name.split("_")[0] for each in tmp_path.iterdir()]
        assert sorted(begun) == sorted(sent)


def test_a_process_that_is_given_up_ends_in_order(ledger_broker: Broker, tmp_path: Path) -> None:
    """An idle process ends as with its worker: it sends Celery's signal, at which outcomes are written."""
    app, name = ledger_broker.app(), ledger_broker.name()
    with ledger_broker.running(
        name, app, "-P", "prefork", "-c", "3", module="scaling_probe", env={"SCALING_ENDED": str(tmp_path)}
    ):
        AgentPool(app, name).resize(1)
        until(lambda: len(list(tmp_path.iterdir())) == 2, "the end of two processes")
        assert RequestResponseHandler(app).request(name, "echo", {"value": 1}) == 1
    app.close()


def test_a_size_is_spread_over_the_workers(broker: Broker, app: AgentApp) -> None:
    """Two workers share a total; each keeps one place, and what cannot be shared so is refused."""
    name = broker.name()
    processes = []
    try:
        for number in range(2):
            processes.append(broker.start(name, app, node=f"{name}-{number}", module="scaling_probe"))
        pool = AgentPool(app, name, timeout=30)
        assert sorted(each.size for each in pool.resize(5).workers.values()) == [2, 3]
        assert sorted(each.size for each in pool.grow(2).workers.values()) == [3, 4]
        assert sorted(each.size for each in pool.shrink(3).workers.values()) == [2, 2]
        assert pool.size().total == asyncio.run(aio.AgentPool(app, name, timeout=30).size()).total == 4
        with pytest.raises(InvalidMessage, match="must be at least 2, not 1"):
            pool.resize(1)
        with pytest.raises(InvalidMessage, match="it can lose at most 2, not 3"):
            pool.shrink(3)
        limits = pool.autoscale(1, 5).workers.values()
        assert sorted((each.minimum, each.maximum) for each in limits) == [(1, 2), (1, 3)]
    finally:
        end_all(processes)


@pytest.mark.parametrize("kind", ["solo", "threads"])
def test_a_pool_that_cannot_change_its_size_is_refused(ledger_broker: Broker, kind: str) -> None:
    """The error names the worker and its pool, and says what to do."""
    app, name = ledger_broker.app(), ledger_broker.name()
    with ledger_broker.running(name, app, "-P", kind, module="scaling_probe"):
        pool = AgentPool(app, name, timeout=30)
        assert pool.size().total == 1
        for change in (pool.grow, pool.resize, lambda: pool.autoscale(1, 2)):
            with pytest.raises(NotScalable, match=f"has the pool '{kind}'.*start it with --pool prefork"):
                change(2) if change in (pool.grow, pool.resize) else change()  # type: ignore[call-arg]
        assert pool.size().total == 1
    app.close()


def test_a_gevent_pool_grows_and_shrinks(ledger_broker: Broker, tmp_path: Path) -> None:
    """Its new size is the number of handlers that run at once."""
    app, name = ledger_broker.app(), ledger_broker.name()
    gate = Gate(app, name, tmp_path)
    with ledger_broker.running(name, app, "-P", "gevent", "-c", "2", module="scaling_probe"):
        pool = AgentPool(app, name, timeout=30)
        gate.send(4)
        gate.running(2)
        assert pool.grow(2).total == 4
        gate.running(4)
        assert pool.shrink(3).total == 1
        gate.finish()
    app.close()


def test_errors_say_what_to_do(ledger_broker: Broker) -> None:
    """An unknown agent, no worker, a worker that does not answer, and a wrong number are told apart."""
    app, name = ledger_broker.app(), ledger_broker.name()
    with pytest.raises(UnknownAgent):
        AgentPool(app, "nobody-at-all").size()
    process = ledger_broker.start(name, app, module="scaling_probe")
    pool = AgentPool(app, name, timeout=30)
    for wrong in (0, -1, True, 1.5, "2"):
        with pytest.raises(InvalidMessage, match="must be a whole number from 1"):
            pool.resize(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="at most 1000"):
        pool.resize(5000)
    with pytest.raises(InvalidMessage, match="minimum must be at most maximum"):
        pool.autoscale(3, 2)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(NoWorker, match=f"{name}@.* did not answer within 0.5 s"):
            AgentPool(app, name, timeout=0.5).size()
    finally:
        os.kill(process.pid, signal.SIGCONT)
    end_all([process])
    with pytest.raises(NoWorker, match=f"no worker of '{name}' runs"):
        pool.size()
    app.close()


@pytest.mark.parametrize("at_start", [True, False])
def test_a_backlog_grows_the_pool_and_idleness_shrinks_it(
    broker: Broker, app: AgentApp, gate: Gate, at_start: bool
) -> None:
    """With --autoscale, or told so while it runs, a worker grows up to its limit and back to its least size."""
    options = ["--autoscale=3,1"] if at_start else []
    env = {"AUTOSCALE_KEEPALIVE": "2"}
    with broker.running(gate.agent, app, "-P", "prefork", *options, module="scaling_probe", env=env):
        pool = AgentPool(app, gate.agent)
        if not at_start:
            pool.autoscale(1, 3)
        size = pool.size()
        worker = size.workers[node(size)]
        assert (worker.size, worker.minimum, worker.maximum) == (1, 1, 3)
        with pytest.raises(NotScalable, match="scales its pool itself, from 1 to 3"):
            pool.resize(2)
        gate.send(6)
        gate.running(3)
        pass_time(1.5)
        assert len(gate.began()) == 3, "it fetched more than it handles"
        gate.finish()
        until(lambda: pool.size().total == 1, "the least size")
        assert RequestResponseHandler(app).request(gate.agent, "echo", {"value": 1}) == 1
        assert pool.autoscale(2, 2).total == 2
        assert pool.resize(4).total == 4


def test_one_message_that_waits_grows_the_pool_only_when_it_is_old(ledger_broker: Broker, tmp_path: Path) -> None:
    """The setting waooaw_autoscale_age says how long a message may wait behind a busy pool."""
    app, name = ledger_broker.app(), ledger_broker.name()
    gate = Gate(app, name, tmp_path)
    arguments = {"module": "scaling_probe", "waooaw_autoscale_age": 4.0}
    with ledger_broker.running(name, app, "-P", "prefork", "--autoscale=3,1", **arguments):
        gate.send(2)
        gate.running(1)
        pass_time(2.0)
        assert AgentPool(app, name).size().total == 1
        gate.running(2)
        assert AgentPool(app, name).size().total == 2
        gate.finish()
    app.close()


def test_a_pool_is_scaled_by_command(ledger_broker: Broker) -> None:
    """`waooaw scale` shows and changes the size, and `waooaw agents` has it with the next heartbeat."""
    app, name = ledger_broker.app(), ledger_broker.name()
    env = {"CELERY_BROKER_URL": ledger_broker.url, "WAOOAW_DATABASE_URL": str(ledger_broker.database_url)}
    with ledger_broker.running(name, app, "-P", "prefork", module="scaling_probe"):
        assert f"{name}: 1 at once" in waooaw("scale", name, env=env).stdout
        found = json.loads(waooaw("scale", name, "3", "--json", env=env).stdout)
        assert (found["agent"], found["total"]) == (name, 3)
        assert [each["kind"] for each in found["workers"].values()] == ["prefork"]

        def shown() -> int:
            rows = json.loads(waooaw("agents", "--json", env=env).stdout)
            (size,) = [each["pool_size"] for each in rows if each["agent"]["name"] == name]
            return int(size)

        until(lambda: shown() == 3, "the heartbeat")
        assert "2 to 4" in waooaw("scale", name, "--min", "2", "--max", "4", env=env).stdout
        wrong = waooaw("scale", name, "0", env=env)
        assert (wrong.returncode, "from 1 to 100000, not 0" in wrong.stderr) == (1, True)
        assert waooaw("scale", name, "2", "--min", "1", env=env).returncode == 2
    app.close()


def test_an_autoscaler_survives_an_outage_of_the_broker(broker: Broker, app: AgentApp, gate: Gate) -> None:
    """It says that it is blind, says when it is back, and then grows the pool again."""
    proxy = Proxy(broker.url)
    cut = Broker(proxy.url, broker.redis_url, broker.folder, broker.database_url)
    try:
        with cut.running(gate.agent, app, "-P", "prefork", "--autoscale=3,1", module="scaling_probe") as process:
            log = broker.folder / f"{gate.agent}.log"
            proxy.freeze(also_new=True)
            until(lambda: "cannot look into the queues" in log.read_text(), "the outage", 60)
            proxy.thaw()
            until(lambda: "looks into the queues again" in log.read_text(), "the end of the outage", 60)
            gate.send(4)
            until(lambda: len(gate.began()) >= 3, "three handlers", 60)
            gate.finish()
            assert process.poll() is None
    finally:
        proxy.close()
