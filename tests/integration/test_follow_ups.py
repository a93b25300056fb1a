"""What follows a handler's end (errbacks, callbacks, chains, replies) is sent, or kept, or told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from postgres_server import Server, lone_server
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import AgentApp, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.embedded import end, valkey
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.message import DeliveryReceipt

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

    def follow_ups(self, message_id: str) -> list[DeliveryReceipt]:
        """Return the receipts of what a message has caused, when there are some and they have ended."""
        found: list[DeliveryReceipt] = []

        def ended() -> bool:
            records = MessageAuditTrail(self.app.ledger).conversation(message_id)
            found[:] = [each.receipt for each in records if each.receipt.message_id != message_id]
            return bool(found) and all(each.status.final for each in found)

        until(ended, f"the end of what {message_id} has caused")
        return found

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
def valkey_broker(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Valkey whose memory is full at times, with the ledger in a server that goes away."""
    with valkey() as url:
        broker = Broker(url, url, tmp_path_factory.mktemp("follow-ups"), server.url)
        app = broker.app()
        schema.upgrade(app.database)
        app.close()
        yield broker


@pytest.fixture(scope="module", params=[*POOLS, pytest.param("threads on RabbitMQ", marks=pytest.mark.rabbitmq)])
def pooled(request: pytest.FixtureRequest, valkey_broker: Broker) -> Iterator[Pooled]:
    """One worker in each pool, for all tests of this file."""
    broker, pool = valkey_broker, request.param.partition(" ")[0]
    if pool != request.param:
        url = request.getfixturevalue("amqp_url")
        broker = Broker(url, broker.redis_url, broker.folder, broker.database_url)
    app, name = broker.app(), broker.name()
    options = ("-P", pool) if pool == "solo" else ("-P", pool, "-c", "2")
    process = broker.start(name, app, *options, module="pool_probe")
    yield Pooled(name, process, app, broker.folder / f"{name}.log", request.param)
    end(process)
    app.close()
    if broker is not valkey_broker:
        broker.clean()


def test_an_errback_to_nobody_is_a_dead_letter(pooled: Pooled) -> None:
    """The message fails with its own error, its errback becomes a dead letter, and the worker goes on."""
    ghost = f"{pooled.name}-ghost"
    for message_id in pooled.failing(4, link_error=pooled.app.signature(f"{ghost}.note")):
        assert settled(pooled.app, message_id) is MessageStatus.FAILED
        assert MessageBus(pooled.app).receipt(message_id).error == "ValueError: no"
        [errback] = pooled.follow_ups(message_id)
        assert errback.status is MessageStatus.DEAD
        assert "no agent" in (errback.error or "")
    if pooled.app.driver == "redis":  # others may look through the letters of RabbitMQ
        assert len(pooled.app.dead_letters.list(queue=f"agent.{ghost}")) == 4
    pooled.assert_well()


def test_what_follows_waits_for_the_ledger(pooled: Pooled, server: Server, tmp_path: Path) -> None:
    """Errbacks, a chain's next step and a reply that are due while the ledger is away come when it is back."""
    asked, stepped = tmp_path / "asked", tmp_path / "stepped"
    (tmp_path / "failed").mkdir()
    pooled.handler("ask", f"replied {tmp_path.name}", str(asked)).apply_async()
    until(asked.exists, "the beginning of what is asked")
    do = {"sleep": 0.5, "touch": str(tmp_path / "failed")}
    ids = pooled.failing(2, link_error=pooled.handler("note"), do=do)
    step = pooled.handler("slow", 0.5, f"chained {tmp_path.name}", str(stepped))
    second = (step | pooled.handler("note")).apply_async()
    first, last = second.parent.id, second.id
    server.stop()
    try:
        for path in (asked, stepped):
            until(Path(f"{path}.ended").exists, f"the end of {path.name}")
        until(lambda: len(list((tmp_path / "failed").iterdir())) == 2, "the end of what fails")
    finally:
        server.start()
    for message_id in ids:
        assert settled(pooled.app, message_id) is MessageStatus.FAILED
    for message_id in (first, last):
        assert settled(pooled.app, message_id) is MessageStatus.HANDLED
    wanted = {*ids, f"chained {tmp_path.name}", f"replied {tmp_path.name}"}
    until(lambda: wanted <= set(pooled.told()), "all that follows")
    assert "is kept and sent when that is possible" in pooled.log.read_text()
    pooled.assert_well()


def test_an_errback_waits_for_memory(pooled: Pooled, valkey_broker: Broker, tmp_path: Path) -> None:
    """While Valkey takes nothing more, messages end; their errbacks and dead letters are there when it does."""
    if pooled.pool not in ("threads", "prefork"):
        pytest.skip("two pools tell enough")
    do = {"sleep": 1.5, "touch": str(tmp_path)}
    ids = pooled.failing(2, link_error=pooled.handler("note"), do=do)
    bus = MessageBus(pooled.app)
    for message_id in ids:
        until(lambda id_=message_id: bus.receipt(id_).status is MessageStatus.DELIVERED, "the beginning")
    with Redis.from_url(valkey_broker.url.replace("redis+socket", "unix")) as client:
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
