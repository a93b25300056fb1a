"""Follow-ups of a handler (errbacks, callbacks, chains, replies) are sent, kept for later, or dead-lettered."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from postgres_server import Server
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import AgentApp, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.testing.embedded import end, valkey

#: Its tests list dead letters: those of RabbitMQ are shared.
pytestmark = pytest.mark.usefixtures("dead_letters_alone")

POOLS = ("solo", "threads", "prefork", "gevent")
SECONDS = 40.0


@dataclass
class PoolWorker:
    """An agent's worker with two slots, or with one in the solo pool."""

    name: str
    process: subprocess.Popen[bytes]
    app: AgentApp
    log: Path
    pool: str

    def handler(self, name: str, *args: Any) -> Any:
        """Return a signature of one of its handlers."""
        return self.app.signature(f"{self.name}.{name}", args=args)

    def send_failing(self, count: int, text: str = "no", **options: Any) -> list[str]:
        """Send commands whose handlers fail, and return their ids."""
        command = self.handler("command", {"fail": text, **options.pop("payload", {})})
        return [command.clone().apply_async(**options).id for _ in range(count)]

    def follow_ups(self, message_id: str) -> list[DeliveryReceipt]:
        """Return the receipts of the follow-ups of a message, once there are some and all have ended."""
        found: list[DeliveryReceipt] = []

        def ended() -> bool:
            records = MessageAuditTrail(self.app.ledger).conversation(message_id)
            found[:] = [each.receipt for each in records if each.receipt.message_id != message_id]
            return bool(found) and all(each.status.final for each in found)

        until(ended, f"the end of the follow-ups of {message_id}")
        return found

    def assert_healthy(self) -> None:
        """Check that each slot handles messages: more requests than slots are answered."""
        requests = RequestResponseHandler(self.app)
        for number in range(3):
            assert requests.request(self.name, "echo", {"value": number}, timeout=SECONDS) == number
        assert self.process.poll() is None

    def notes(self) -> list[str]:
        """Return the arguments with which its handler ``note`` was called, in any of its processes."""
        requests = RequestResponseHandler(self.app)
        with suppress(StoreUnavailable):  # the ledger may not be back yet
            return [each for _ in range(4) for each in requests.request(self.name, "notes", timeout=SECONDS)]
        return []


@pytest.fixture(scope="module")
def valkey_broker(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Valkey whose memory can be filled, with the ledger in a server that can be stopped."""
    with valkey() as url:
        broker = Broker(url, url, tmp_path_factory.mktemp("follow-ups"), server.url)
        app = broker.app()
        schema.upgrade(app.database)
        app.close()
        yield broker


@pytest.fixture(scope="module", params=[*POOLS, pytest.param("threads on RabbitMQ", marks=pytest.mark.rabbitmq)])
def worker(request: pytest.FixtureRequest, valkey_broker: Broker) -> Iterator[PoolWorker]:
    """One worker in each pool, for all tests of this file."""
    broker, pool = valkey_broker, request.param.partition(" ")[0]
    if pool != request.param:
        url = request.getfixturevalue("amqp_url")
        broker = Broker(url, broker.redis_url, broker.folder, broker.database_url)
    app, name = broker.app(), broker.name()
    options = ("-P", pool) if pool == "solo" else ("-P", pool, "-c", "2")
    process = broker.start(name, app, *options, module="pool_probe")
    yield PoolWorker(name, process, app, broker.folder / f"{name}.log", request.param)
    end(process)
    app.close()
    if broker is not valkey_broker:
        broker.clean()


@pytest.mark.slow
def test_an_errback_to_an_unknown_agent_is_a_dead_letter(worker: PoolWorker) -> None:
    """The message fails with its own error, its errback becomes a dead letter, and the worker continues."""
    unknown_agent = f"{worker.name}-ghost"
    unknown_handler = worker.app.signature(f"{unknown_agent}.note", queue=f"agent.{unknown_agent}")
    for message_id in worker.send_failing(4, link_error=unknown_handler):
        assert settled(worker.app, message_id) is MessageStatus.FAILED
        assert MessageBus(worker.app).receipt(message_id).error == "ValueError: no"
        [errback] = worker.follow_ups(message_id)
        assert errback.status is MessageStatus.DEAD
        assert "is not known" in (errback.error or "")
    if worker.app.driver == "redis":  # others may be reading the dead letters of RabbitMQ
        assert len(worker.app.dead_letters.list(queue=f"agent.{unknown_agent}")) == 4
    worker.assert_healthy()


@pytest.mark.slow
def test_follow_ups_wait_for_the_ledger(worker: PoolWorker, server: Server, tmp_path: Path) -> None:
    """Errbacks, a chain's next step and a reply of an outage of the ledger are sent when it is back."""
    asked, stepped = tmp_path / "asked", tmp_path / "stepped"
    (tmp_path / "failed").mkdir()
    worker.handler("ask", f"replied {tmp_path.name}", str(asked)).apply_async()
    until(asked.exists, "the start of the request")
    payload = {"sleep": 0.5, "touch": str(tmp_path / "failed")}
    ids = worker.send_failing(2, link_error=worker.handler("note"), payload=payload)
    step = worker.handler("slow", 0.5, f"chained {tmp_path.name}", str(stepped))
    second = (step | worker.handler("note")).apply_async()
    first, last = second.parent.id, second.id
    packed = tmp_path / "packed"
    pack = worker.app.signature("shop.pack", args=(tmp_path.name,), immutable=True)
    ordinary = (worker.handler("slow", 0.5, "", str(packed)) | pack).apply_async()
    server.stop()
    try:
        for path in (asked, stepped, packed):
            until(Path(f"{path}.ended").exists, f"the end of {path.name}")
        until(lambda: len(list((tmp_path / "failed").iterdir())) == 2, "the end of the failing handlers")
    finally:
        server.start()
    for message_id in ids:
        assert settled(worker.app, message_id) is MessageStatus.FAILED
    for message_id in (first, last):
        assert settled(worker.app, message_id) is MessageStatus.HANDLED
    wanted = {*ids, f"chained {tmp_path.name}", f"replied {tmp_path.name}"}
    until(lambda: wanted <= set(worker.notes()), "all follow-ups")
    assert "it is kept and retried" in worker.log.read_text()
    if worker.app.driver == "redis":  # others may be reading the dead letters of RabbitMQ
        # Only other workers would know the ordinary task; it was published to the worker's default queue.
        until(lambda: ordinary.id in {each.message_id for each in worker.app.dead_letters.list()}, "shop.pack")
    worker.assert_healthy()


def test_an_errback_waits_for_a_full_broker(worker: PoolWorker, valkey_broker: Broker, tmp_path: Path) -> None:
    """While Valkey is full, messages end. Their errbacks and dead letters are stored afterwards."""
    if worker.pool not in ("threads", "prefork"):
        pytest.skip("two pools are enough")
    payload = {"sleep": 1.5, "touch": str(tmp_path)}
    ids = worker.send_failing(2, link_error=worker.handler("note"), payload=payload)
    bus = MessageBus(worker.app)
    for message_id in ids:
        until(lambda id_=message_id: bus.receipt(id_).status is MessageStatus.DELIVERED, "the beginning")
    with Redis.from_url(valkey_broker.url.replace("redis+socket", "unix")) as client:
        client.config_set("maxmemory", 1)
        try:
            for message_id in ids:
                assert settled(worker.app, message_id) is MessageStatus.FAILED
        finally:
            client.config_set("maxmemory", 0)
    until(lambda: set(ids) <= set(worker.notes()), "the errbacks")
    until(
        lambda: set(ids) <= {each.message_id for each in worker.app.dead_letters.list(agent=worker.name)},
        "letters",
    )
    worker.assert_healthy()


def test_errbacks_are_called_for_lost_handlers(worker: PoolWorker, request: pytest.FixtureRequest) -> None:
    """After a time limit or a lost process, errbacks are called once. Those to unknown agents are dead letters."""
    ends = {"prefork": ("hang", "leave"), "gevent": ("hang",)}.get(worker.pool, ())
    if not ends:
        pytest.skip("this pool enforces no time limits and has no processes")
    phantom = f"{worker.name}-phantom"
    unknown_agent = worker.app.signature(f"{phantom}.note", queue=f"agent.{phantom}")
    for name in ends:
        message_id = worker.handler(name).apply_async(link_error=[worker.handler("note"), unknown_agent]).id
        assert settled(worker.app, message_id) is MessageStatus.FAILED
        error = MessageBus(worker.app).receipt(message_id).error or ""
        assert error.startswith(("TimeLimitExceeded", "WorkerLostError")), error
        until(lambda id_=message_id: id_ in worker.notes(), f"the errback of {name}")
    letters = worker.app.dead_letters
    until(lambda: len(letters.list(queue=f"agent.{worker.name}-phantom")) == len(ends), "the dead letters")
    worker.assert_healthy()
