"""Legitimate waits never count as a stall. Each wait here lasts three times as long as the limit."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial

import pytest
from postgres_server import Server, lone_server
from proxy import Proxy, proxied
from support import Broker, pass_time, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, RequestResponseHandler
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database import upgrade as schema

SECONDS = 2.0
WAIT = 3 * SECONDS
#: Seconds for everything after an outage: Celery waits up to 32 s before it reconnects.
AFTER_OUTAGE = 90.0

POOLS = {
    "prefork": ("-P", "prefork", "-c", "2"),
    "threads": ("-P", "threads", "-c", "2"),
    "solo": ("-P", "solo"),
    "gevent": ("-P", "gevent", "-c", "2"),
}


@dataclass
class Fleet:
    """A worker in each pool, whose connections to the broker pass a proxy."""

    broker: Broker
    app: AgentApp
    proxy: Proxy
    server: Server
    workers: dict[str, subprocess.Popen[bytes]]

    def node(self, name: str) -> str:
        """Return the node name of an agent's worker."""
        return f"{name}@{socket.gethostname()}"

    def command(self, command: Callable[..., object], name: str) -> None:
        """Send a command about an agent's queue to its worker, again until the worker answers."""
        options = {"destination": [self.node(name)], "reply": True, "timeout": 5}
        until(lambda: command(f"agent.{name}", **options), f"the answer of {name}", AFTER_OUTAGE)

    def send(self, payload: object, type_: MessageType = MessageType.COMMAND) -> list[str]:
        """Send a message to each agent, and return the ids."""
        ids = []
        for name in self.workers:
            message = Message(from_agent="tests", to_agent=name, message_type=type_, payload=payload)
            until(partial(self._is_sent, message), "a message to be sent", AFTER_OUTAGE)
            ids.append(message.message_id)
        return ids

    def _is_sent(self, message: Message) -> bool:
        with suppress(AuditUnavailable):  # the test's application notices a little later that the ledger is back
            MessageBus(self.app).send(message)
            return True
        return False

    def assert_handled(self, ids: list[str]) -> None:
        """Wait until messages are handled."""
        until(
            lambda: all(MessageBus(self.app).receipt(id_).status.final for id_ in ids),
            "the final statuses",
            AFTER_OUTAGE,
        )
        assert {settled(self.app, id_) for id_ in ids} == {MessageStatus.HANDLED}

    def assert_healthy(self) -> None:
        """Check that no worker has exited or counted as stalled."""
        for name, process in self.workers.items():
            log = (self.broker.folder / f"{name}.log").read_text()
            assert process.poll() is None, log[-3000:]
            assert "has stalled" not in log, log[-3000:]
            assert "a check of the watchdog failed" not in log, log[-3000:]


@pytest.fixture(scope="module")
def fleet(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers with Valkey behind a proxy, and a ledger of their own."""
    with lone_server() as server, proxied(valkey_url) as proxy:
        folder = tmp_path_factory.mktemp("no-stall")
        direct = Broker(valkey_url, valkey_url, folder, server.url)
        app = direct.app()
        schema.upgrade(app.database)
        broker = Broker(proxy.url, valkey_url, folder, server.url)
        settings = {"waooaw_stall_seconds": SECONDS, "waooaw_heartbeat_seconds": 1.0}
        with closing(app), ExitStack() as running:
            workers = {}
            for options in POOLS.values():
                name = broker.name()
                worker = broker.running(name, app, *options, module="stall_probe", **settings)
                workers[name] = running.enter_context(worker)
            yield Fleet(direct, app, proxy, server, workers)


@pytest.fixture(scope="module")
def valkey_url(redis_url: str) -> str:
    """The Valkey of all tests."""
    return redis_url


@pytest.mark.slow
def test_long_handlers_and_waiting_messages_are_no_stall(fleet: Fleet) -> None:
    """Every slot runs a long handler while messages wait in the queue. Then the queue is empty."""
    ids = [id_ for seconds in (WAIT, WAIT, 0, 0) for id_ in fleet.send({"sleep": seconds})]
    fleet.assert_handled(ids)
    pass_time(WAIT)
    fleet.assert_healthy()


@pytest.mark.slow
def test_a_paused_agent_is_no_stall(fleet: Fleet) -> None:
    """An operator has cancelled its consumer: messages wait, and slots are free."""
    try:
        for name in fleet.workers:
            fleet.command(fleet.app.control.cancel_consumer, name)
        rounds = [fleet.send({}) for _ in range(3)]
        pass_time(WAIT)
        fleet.assert_healthy()
        # A worker may have claimed one message before the command arrived.
        for ids in zip(*rounds, strict=True):
            assert not all(MessageBus(fleet.app).receipt(id_).status.final for id_ in ids)
    finally:
        for name in fleet.workers:
            fleet.command(fleet.app.control.add_consumer, name)
    fleet.assert_handled([id_ for ids in rounds for id_ in ids])


@pytest.mark.slow
def test_a_rate_limit_and_countdowns_are_no_stall(fleet: Fleet) -> None:
    """A task is limited to one message in six seconds, which fill all slots. Others wait until they are due."""
    ids = [id_ for _ in range(3) for id_ in fleet.send({}, MessageType.ACK)]
    for name in fleet.workers:
        ids.append(fleet.app.send_task(f"{name}.command", ({},), countdown=WAIT).id)
    fleet.assert_handled(ids)
    fleet.assert_healthy()


@pytest.mark.slow
def test_a_coroutine_that_blocks_its_event_loop_is_no_stall(fleet: Fleet) -> None:
    """A handler runs, so it is no stall. The log warns of it."""
    requests = RequestResponseHandler(fleet.app)
    for pool, name in zip(POOLS, fleet.workers, strict=True):
        assert requests.request(name, "think", {"seconds": 2 * WAIT}, timeout=60) == 2 * WAIT
        log = (fleet.broker.folder / f"{name}.log").read_text()
        assert log.count("a handler has blocked the event loop") == 1
        assert "in think" in log or pool == "gevent"  # there the greenlet sleeps, and its thread runs others
    fleet.assert_healthy()


@pytest.mark.slow
def test_a_suspended_computer_is_no_stall(fleet: Fleet) -> None:
    """The workers' processes are stopped for some seconds, with messages in their queues."""
    try:
        for process in fleet.workers.values():
            process.send_signal(signal.SIGSTOP)
        ids = fleet.send({})
        pass_time(WAIT)
    finally:
        for process in fleet.workers.values():
            process.send_signal(signal.SIGCONT)
    fleet.assert_handled(ids)
    fleet.assert_healthy()


@pytest.mark.parametrize("outage", ["frozen", "cut"])
@pytest.mark.slow
def test_an_outage_of_the_broker_is_no_stall(fleet: Fleet, outage: str) -> None:
    """Its connections freeze, or are cut again and again, while messages wait."""
    ids = fleet.send({"sleep": 1})
    if outage == "frozen":
        fleet.proxy.freeze(also_new=True)
        try:
            pass_time(WAIT)
        finally:
            fleet.proxy.thaw()
    else:
        ends_at = time.monotonic() + WAIT
        until(lambda: fleet.proxy.cut() or time.monotonic() > ends_at, "some seconds")  # type: ignore[func-returns-value]
    ids += fleet.send({})
    fleet.assert_handled(ids)
    fleet.assert_healthy()


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["stopped", "frozen"])
def test_an_outage_of_the_ledger_is_no_stall(fleet: Fleet, outage: str) -> None:
    """Its database is stopped or frozen while messages are handled and wait."""
    ids = [id_ for _ in range(3) for id_ in fleet.send({"sleep": 1})]
    actions: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "stopped": (fleet.server.stop, fleet.server.start),
        "frozen": (fleet.server.freeze, fleet.server.thaw),
    }
    start_outage, end_outage = actions[outage]
    start_outage()
    try:
        pass_time(2 * WAIT)
    finally:
        end_outage()
    fleet.assert_handled(ids)
    fleet.assert_healthy()


@pytest.mark.slow
def test_a_warm_shutdown_is_no_stall(fleet: Fleet) -> None:
    """The workers get SIGTERM while long handlers run, which come to their end."""
    ids = fleet.send({"sleep": WAIT})
    until(
        lambda: all(MessageBus(fleet.app).receipt(id_).status is MessageStatus.DELIVERED for id_ in ids),
        "the handlers to start",
    )
    for process in fleet.workers.values():
        process.send_signal(signal.SIGTERM)
    codes = {process.wait(60) for process in fleet.workers.values()}
    assert codes == {0}
    fleet.assert_handled(ids)
    for name in fleet.workers:
        assert "has stalled" not in (fleet.broker.folder / f"{name}.log").read_text()
