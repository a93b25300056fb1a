"""A worker that has work and makes no progress is found, logs its threads, and exits."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeAlias

import psutil
import pytest
from selection import takes_long
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType
from waooaw_celery.testing.embedded import end
from waooaw_celery.worker.health.stall_exit import EXIT_STALLED

Start: TypeAlias = Callable[..., tuple[str, subprocess.Popen[bytes]]]

#: Seconds without progress after which these workers count as stalled.
SECONDS = 2.0
#: Seconds within which a stalled worker exits, on a busy computer. One that is not connected has 39 s.
EXIT_SECONDS = 90.0

PREFORK, THREADS, SOLO = ("-P", "prefork", "-c", "2"), ("-P", "threads", "-c", "2"), ("-P", "solo")
GEVENT = ("-P", "gevent", "-c", "2")


@pytest.fixture(params=["valkey", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest) -> Broker:
    broker_of_kind: Broker = request.getfixturevalue(f"{request.param}_broker")
    return broker_of_kind


@pytest.fixture
def on_valkey(valkey_broker: Broker) -> Iterator[AgentApp]:
    app = valkey_broker.app()
    yield app
    app.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a worker of the probe, and return the agent's name and the process. It ends with the test."""
    with ExitStack() as workers:

        def _start(
            broker: Broker, app: AgentApp, *options: str, **settings: Any
        ) -> tuple[str, subprocess.Popen[bytes]]:
            name = broker.name()
            settings = {"waooaw_stall_seconds": SECONDS, "waooaw_heartbeat_seconds": 1.0} | settings
            running = broker.running(name, app, *options, module="stall_probe", **settings)
            return name, workers.enter_context(running)

        yield _start


def send(app: AgentApp, name: str, payload: object, type_: MessageType = MessageType.COMMAND) -> str:
    """Send a message, and return its id."""
    message = Message(from_agent="tests", to_agent=name, message_type=type_, payload=payload)
    MessageBus(app).send(message)
    return message.message_id


def command(app: AgentApp, name: str, fault: str, **arguments: float) -> None:
    """Give a worker a remote command once it receives any: with gevent, it may handle messages before."""
    node = f"{name}@{socket.gethostname()}"
    until(lambda: app.control.ping(destination=[node], timeout=1), "an answer to remote control")
    app.control.broadcast(fault, arguments, destination=[node])


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process has not ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def log_of(broker: Broker, name: str) -> str:
    """Return the log of a worker."""
    return (broker.folder / f"{name}.log").read_text()


def wait_for_stall_exit(broker: Broker, name: str, process: subprocess.Popen[bytes], reason: str) -> str:
    """Wait until a worker has exited as stalled for a reason, and return its log."""
    try:
        code = process.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it still runs: {log_of(broker, name)[-3000:]}")
    finally:
        end(process)
    log = log_of(broker, name)
    assert code == EXIT_STALLED, log[-3000:]
    assert reason in log
    assert log.count("the worker has stalled") == 1
    assert "Thread that consumes" in log
    return log


@pytest.mark.parametrize("fault", ["wedge_asleep", "wedge_busy"])
@pytest.mark.parametrize("pool", [PREFORK, THREADS, SOLO, GEVENT], ids=lambda pool: pool[1])
def test_a_worker_with_a_blocked_event_loop_exits(
    start: Start, valkey_broker: Broker, on_valkey: AgentApp, pool: tuple[str, ...], fault: str
) -> None:
    """The log shows the blocking code, the agent's state is STALLED, and no process stays behind."""
    name, process = start(valkey_broker, on_valkey, *pool)
    assert settled(on_valkey, send(on_valkey, name, {})) is MessageStatus.HANDLED
    children = psutil.Process(process.pid).children(recursive=True)
    command(on_valkey, name, fault)
    log = wait_for_stall_exit(valkey_broker, name, process, "the event loop has not responded for")
    assert f"in {fault}" in log
    assert on_valkey.registry.get(name).state(timedelta(minutes=1)) == "STALLED"
    until(lambda: not any(map(is_alive, children)), "the end of its processes")


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_the_event_loop_is_watched_on_rabbitmq_too(start: Start, rabbitmq_broker: Broker) -> None:
    """The same on RabbitMQ."""
    app = rabbitmq_broker.app()
    name, process = start(rabbitmq_broker, app, *PREFORK)
    assert settled(app, send(app, name, {})) is MessageStatus.HANDLED
    command(app, name, "wedge_asleep")
    wait_for_stall_exit(rabbitmq_broker, name, process, "the event loop has not responded for")
    app.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["before_consuming", pytest.param("before_connecting", marks=takes_long)])
def test_a_worker_that_never_consumes_exits(
    start: Start, valkey_broker: Broker, on_valkey: AgentApp, fault: str
) -> None:
    """The start has a deadline while the broker answers, with Celery's longest pause before the connection."""
    name, process = start(valkey_broker, on_valkey, env={"PROBE_WEDGE": fault})
    log = wait_for_stall_exit(valkey_broker, name, process, "the event loop has not responded for")
    assert "stall_probe.py" in log


@pytest.mark.parametrize("pool", ["LosingThreads", "LosingProcesses", "LosingSolo"])
def test_a_worker_with_lost_slots_exits(
    start: Start, valkey_broker: Broker, on_valkey: AgentApp, pool: str
) -> None:
    """The result of a handler is lost, so its message stays held and its slot is never freed."""
    name, process = start(valkey_broker, on_valkey, "-c", "2", worker_pool=f"stall_probe:{pool}")
    assert settled(on_valkey, send(on_valkey, name, {})) is MessageStatus.HANDLED
    lost = send(on_valkey, name, {"fail": "its result vanishes"})
    log = wait_for_stall_exit(valkey_broker, name, process, "slots are held by messages that no handler runs")
    assert lost in log


def test_a_worker_whose_pool_accepts_nothing_exits(
    start: Start, valkey_broker: Broker, on_valkey: AgentApp
) -> None:
    """Messages wait for the pool while its slots are free."""
    name, process = start(valkey_broker, on_valkey, "-c", "2", worker_pool="stall_probe:DeafThreads")
    send(on_valkey, name, {})
    wait_for_stall_exit(valkey_broker, name, process, "messages wait for the pool")


@pytest.mark.slow
@pytest.mark.parametrize("pool", [PREFORK, THREADS], ids=lambda pool: pool[1])
def test_a_worker_that_claims_nothing_exits(start: Start, broker: Broker, pool: tuple[str, ...]) -> None:
    """Messages wait in the queue, slots are free, and nothing is claimed."""
    app = broker.app()
    name, process = start(broker, app, *pool)
    assert settled(app, send(app, name, {})) is MessageStatus.HANDLED
    until(lambda: app.control.broadcast("wedge_deaf", reply=True), "the worker's reply")
    for _ in range(3):  # it may have claimed one, or two, before
        send(app, name, {})
    wait_for_stall_exit(broker, name, process, "messages wait in the queue")
    app.close()


@pytest.mark.slow
def test_a_stalled_worker_releases_messages_without_a_handler(
    start: Start, valkey_broker: Broker, on_valkey: AgentApp
) -> None:
    """With waooaw_on_stall = "log", another worker handles its lost message and none that it runs."""
    options = {"visibility_timeout": 4, "unacked_restore_interval": 1}
    name, process = start(
        *(valkey_broker, on_valkey, "-c", "3"),
        worker_pool="stall_probe:LosingThreads",
        waooaw_on_stall="log",
        broker_transport_options=options,
    )
    lost = send(on_valkey, name, {"fail": "its result vanishes"})
    long = send(on_valkey, name, {"sleep": 15})
    within = timedelta(minutes=1)
    until(lambda: on_valkey.registry.get(name).state(within) == "STALLED", "the state")
    later = send(on_valkey, name, {"sleep": 8})  # longer than its lease
    until(lambda: MessageBus(on_valkey).receipt(later).attempts, "it to begin")
    other = {"node": f"{name}-other", "module": "stall_probe", "broker_transport_options": options}

    def logs() -> str:
        return log_of(valkey_broker, name) + log_of(valkey_broker, f"{name}-other")

    with valkey_broker.running(name, on_valkey, **other):
        until(lambda: "is redelivered" in logs(), "it")
        assert settled(on_valkey, long) is MessageStatus.HANDLED
        assert settled(on_valkey, later) is MessageStatus.HANDLED
        assert f"'{lost}'" in logs()
        assert f"message '{long}'" not in logs()
        assert f"message '{later}'" not in logs()
        assert process.poll() is None


@pytest.mark.slow
def test_a_worker_that_recovers_logs_it(start: Start, valkey_broker: Broker, on_valkey: AgentApp) -> None:
    """With waooaw_on_stall = "log", it is STALLED while its event loop is blocked, and alive afterwards."""
    name, _ = start(valkey_broker, on_valkey, *PREFORK, waooaw_on_stall="log")
    within = timedelta(minutes=1)
    assert settled(on_valkey, send(on_valkey, name, {})) is MessageStatus.HANDLED
    command(on_valkey, name, "wedge_for", seconds=12)
    until(lambda: on_valkey.registry.get(name).state(within) == "STALLED", "the state")
    until(lambda: "makes progress again" in log_of(valkey_broker, name), "the end of it")
    until(lambda: on_valkey.registry.get(name).state(within) == "alive", "the state")
    assert log_of(valkey_broker, name).count("has stalled") == 1
    assert settled(on_valkey, send(on_valkey, name, {})) is MessageStatus.HANDLED


@pytest.mark.slow
def test_a_heartbeat_reports_progress(start: Start, valkey_broker: Broker, on_valkey: AgentApp) -> None:
    """It reports what the worker holds and runs, for how long, and when a message last started and ended."""
    name, _ = start(valkey_broker, on_valkey, *PREFORK)
    node = on_valkey.registry.get(name).workers[0]

    def progress_report() -> dict[str, object]:
        progress: dict[str, object] = on_valkey.registry.get(name).reports.get(node, {}).get("progress", {})
        return progress

    assert settled(on_valkey, send(on_valkey, name, {})) is MessageStatus.HANDLED
    until(lambda: progress_report().get("ended") == 1, "the first to end")
    long = send(on_valkey, name, {"sleep": 4})
    until(lambda: progress_report().get("running") == 1, "the second to start")
    assert progress_report()["slots"] == 2
    assert progress_report()["held"] == 1
    assert progress_report()["begun"] == 2
    until(lambda: (progress_report()["running_seconds"] or 0) > 1, "its time")  # type: ignore[operator]
    assert settled(on_valkey, long) is MessageStatus.HANDLED
    until(lambda: progress_report().get("ended") == 2, "the second to end")
    assert str(progress_report()["ended_at"]) >= str(progress_report()["begun_at"])
