"""What follows a handler's end (errbacks, callbacks, chains, replies) is sent, or kept, or told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from outages import Server, lone_server
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import AgentApp, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.audit import schema
from waooaw_celery.embedded import end, valkey
from waooaw_celery.errors import StoreUnavailable

POOLS = ("solo", "threads", "prefork", "gevent")
SECONDS = 40.0


@dataclass
class Pooled:
    """An agent's worker with two slots, or one in the solo pool."""

    name: str
    process: subprocess.Popen[bytes]
    app: AgentApp
    log: Path
    pool: str

    def handler(self, name: str, *args: Any) -> Any:
        """Return a call of one of its handlers."""
        return self.app.signature(f"{self.name}.{name}", args=args)

    def failing(self, count: int, text: str = "no", **options: Any) -> list[str]:
        """Have as many commands fail as this, and return their ids."""
        command = self.handler("command", {"fail": text, **options.pop("do", {})})
        return [command.clone().apply_async(**options).id for _ in range(count)]

    def assert_well(self) -> None:
        """Each slot handles messages: more of them than there are slots are answered."""
        requests = RequestResponseHandler(self.app)
        for number in range(3):
            assert requests.request(self.name, "echo", {"value": number}, timeout=SECONDS) == number
        assert self.process.poll() is None

    def told(self) -> list[str]:
        """Return with what its handler ``note`` was called, in any of its processes."""
        requests = RequestResponseHandler(self.app)
        with suppress(StoreUnavailable):  # the ledger is only just back
            return [each for _ in range(4) for each in requests.request(self.name, "told", timeout=SECONDS)]
        return []


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with lone_server() as server:
        yield server


@pytest.fixture(scope="module")
def broker(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Valkey whose memory is full at times, with the ledger in a server that goes away."""
    with valkey() as url:
        broker = Broker(url, url, tmp_path_factory.mktemp("follow-ups"), server.url)
        app = broker.app()
        schema.upgrade(app.database)
        app.close()
        yield broker


@pytest.fixture(scope="module", params=POOLS)
def pooled(request: pytest.FixtureRequest, broker: Broker) -> Iterator[Pooled]:
    """One worker in each pool, for all tests of this file."""
    app, name = broker.app(), broker.name()
    options = ("-P", request.param) if request.param == "solo" else ("-P", request.param, "-c", "2")
    process = broker.start(name, app, *options, module="pool_probe")
    yield Pooled(name, process, app, broker.folder / f"{name}.log", request.param)
    end(process)
    app.close()


def test_an_errback_to_nobody_is_a_dead_letter(pooled: Pooled) -> None:
    """The message fails with its own error, its errback becomes a dead letter, and the worker goes on."""
    ghost = f"{pooled.name}-ghost"
    for message_id in pooled.failing(4, link_error=pooled.app.signature(f"{ghost}.note")):
        assert settled(pooled.app, message_id) is MessageStatus.FAILED
        assert MessageBus(pooled.app).receipt(message_id).error == "ValueError: no"
    until(lambda: len(pooled.app.dead_letters.list(queue=f"agent.{ghost}")) == 4, "the errbacks' dead letters")
    assert "no agent" in pooled.app.dead_letters.list(queue=f"agent.{ghost}")[0].reason
    pooled.assert_well()


def test_an_errback_waits_for_the_ledger(pooled: Pooled, server: Server, tmp_path: Path) -> None:
    """Each errback of a message that fails while the ledger is away is called when the ledger is back."""
    do = {"sleep": 1.5, "touch": str(tmp_path)}
    ids = pooled.failing(3, link_error=pooled.handler("note"), do=do)
    bus = MessageBus(pooled.app)
    until(lambda: bus.receipt(ids[0]).status is MessageStatus.DELIVERED, "the first beginning")
    server.stop()
    try:
        until(lambda: len(list(tmp_path.iterdir())) == 3, "the last handler's end")
    finally:
        server.start()
    for message_id in ids:
        assert settled(pooled.app, message_id) is MessageStatus.FAILED
    until(lambda: set(ids) <= set(pooled.told()), "the errbacks")
    assert "is kept and sent when that is possible" in pooled.log.read_text()
    pooled.assert_well()


def test_an_errback_waits_for_memory(pooled: Pooled, broker: Broker, tmp_path: Path) -> None:
    """While Valkey takes nothing more, messages end; their errbacks and dead letters are there when it does."""
    slots = 1 if "solo" in pooled.pool else 2
    do = {"sleep": 2.5, "touch": str(tmp_path)}
    ids = pooled.failing(slots, link_error=pooled.handler("note"), do=do)
    bus = MessageBus(pooled.app)
    for message_id in ids:
        until(lambda id_=message_id: bus.receipt(id_).status is MessageStatus.DELIVERED, "the beginning")
    with Redis.from_url(broker.url.replace("redis+socket", "unix")) as client:
        client.config_set("maxmemory", 1)
        try:
            for message_id in ids:
                assert settled(pooled.app, message_id) is MessageStatus.FAILED
        finally:
            client.config_set("maxmemory", 0)
    until(lambda: set(ids) <= set(pooled.told()), "the errbacks")
    until(
        lambda: set(ids) <= {each.message_id for each in pooled.app.dead_letters.list(agent=pooled.name)},
        "letters",
    )
    pooled.assert_well()


def test_the_next_step_of_a_chain_waits_for_the_ledger(pooled: Pooled, server: Server, tmp_path: Path) -> None:
    """The first step is HANDLED, once, and the second one is called when the ledger is back."""
    step = pooled.handler("slow", 1.5, f"chained {tmp_path.name}", str(tmp_path / "began"))
    result = (step | pooled.handler("note")).apply_async()
    first = result.parent.id
    until((tmp_path / "began").exists, "the beginning")
    server.stop()
    try:
        until((tmp_path / "began.ended").exists, "the end of the first step")
    finally:
        server.start()
    assert settled(pooled.app, first) is MessageStatus.HANDLED
    assert settled(pooled.app, result.id) is MessageStatus.HANDLED
    until(lambda: f"chained {tmp_path.name}" in pooled.told(), "the second step")
    pooled.assert_well()


def test_what_ends_without_its_handler_calls_its_errbacks(pooled: Pooled, request: pytest.FixtureRequest) -> None:
    """At a time limit, and when a process is gone, errbacks are called once; those to nobody are dead letters."""
    ends = {"prefork": ("hang", "leave"), "gevent": ("hang",)}.get(pooled.pool, ())
    if not ends:
        pytest.skip("this pool has neither time limits of its own nor processes")
    ghost = pooled.app.signature(f"{pooled.name}-phantom.note")
    for name in ends:
        message_id = pooled.handler(name).apply_async(link_error=[pooled.handler("note"), ghost]).id
        assert settled(pooled.app, message_id) is MessageStatus.FAILED
        error = MessageBus(pooled.app).receipt(message_id).error or ""
        assert error.startswith(("TimeLimitExceeded", "WorkerLostError")), error
        until(lambda id_=message_id: id_ in pooled.told(), f"the errback of {name}")
    letters = pooled.app.dead_letters
    until(lambda: len(letters.list(queue=f"agent.{pooled.name}-phantom")) == len(ends), "the dead letters")
    pooled.assert_well()


def test_a_reply_waits_for_the_ledger(pooled: Pooled, server: Server, tmp_path: Path) -> None:
    """The answer to a request that is to come as a message comes when the ledger is back."""
    asked = pooled.app.signature(f"{pooled.name}.ask", args=(f"replied {tmp_path.name}", str(tmp_path / "began")))
    asked.apply_async()
    until((tmp_path / "began").exists, "the beginning")
    server.stop()
    try:
        until((tmp_path / "began.ended").exists, "the end of the handler")
    finally:
        server.start()
    until(lambda: f"replied {tmp_path.name}" in pooled.told(), "the reply")
    pooled.assert_well()
