"""The result backend fails, is damaged, or sends nothing: each request has one outcome, in time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults.servers import Valkey, lone_valkey
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, aio
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import BackendUnavailable, RequestTimeout
from waooaw_celery.results import source
from waooaw_celery.testing.embedded import end

#: Seconds by which a call may exceed its timeout on a busy computer: less than the socket timeout of 3 s.
LATE = 2.5


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """The result backend, which the tests stop and freeze."""
    with lone_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def broker(redis_url: str, server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that stays, with the store on it. Results are on another server."""
    broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("answers"))
    yield broker
    broker.clean()


@pytest.fixture(scope="module")
def agent(broker: Broker, server: Valkey) -> Iterator[str]:
    app = broker.app()
    name = broker.name()
    worker = broker.start(
        name,
        app,
        *("-P", "threads", "-c", "100"),
        module="async_probe",
        env={"CELERY_RESULT_BACKEND": server.url, "WAOOAW_REDIS_URL": broker.redis_url},
    )
    app.close()
    yield name
    end(worker)


@pytest.fixture
def app(broker: Broker, server: Valkey) -> Iterator[AgentApp]:
    app = broker.app(result_backend=server.url, waooaw_redis_url=broker.redis_url)
    yield app
    app.close()


@contextmanager
def stopped(server: Valkey) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def frozen(server: Valkey) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def nap(app: AgentApp, agent: str, seconds: float, timeout: float, method: str = "nap") -> Any:
    """Request a nap, and return the response and the seconds it took."""
    began = time.monotonic()
    response = Requests(app).send_request(agent, method, {"seconds": seconds}, timeout=timeout)
    return response, time.monotonic() - began


def store_result(server: Valkey, message_id: str, result: Any, notify: bool = True) -> None:
    """Store a result as Celery's backend does, and notify the subscribers."""
    meta = {"status": "SUCCESS", "result": result, "traceback": None, "children": [], "task_id": message_id}
    server.client.set(f"celery-task-meta-{message_id}", json.dumps(meta), ex=3600)
    if notify:
        server.client.publish(f"celery-task-meta-{message_id}", json.dumps(meta))


def fetch_count(server: Valkey) -> int:
    """Return how often a result was fetched: several with one command, too."""
    stats = server.client.info("stats")
    return int(stats["keyspace_hits"] + stats["keyspace_misses"])


def publish_chunk(server: Valkey, message_id: str, number: int) -> None:
    """Publish a chunk of an answer, as a worker does, without storing it."""
    chunk = {"run": "r", "number": number, "chunk": number}
    meta = {"status": "CHUNK", "result": chunk, "traceback": None, "children": [], "task_id": message_id}
    server.client.publish(f"celery-task-meta-{message_id}", json.dumps(meta))


@contextmanager
def publishing_chunks(server: Valkey, message_id: str) -> Iterator[None]:
    """Publish chunks without a pause while the block runs."""
    ended = threading.Event()

    def run() -> None:
        number = 0
        while not ended.wait(0.02):
            publish_chunk(server, message_id, number)
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "busy"])
def test_fetched_result_waits_for_its_chunks(
    broker: Broker, server: Valkey, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks are published before the result is stored, but a fetch may see the result first."""
    if busy:  # on a slow computer there are pauses between the chunks
        monkeypatch.setattr(source, "ROUND_SECONDS", 1.0)
        monkeypatch.setattr(source, "CHUNKS_SECONDS", 60.0)
    nobody = broker.name()
    app = broker.app(result_backend=server.url, waooaw_redis_url=broker.redis_url, waooaw_agents=[nobody])
    with closing(app), ExitStack() as stack:
        stream, other = (stack.enter_context(Requests(app).stream(nobody, "count", timeout=20)) for _ in range(2))
        id_ = str(stream.message_id)
        with publishing_chunks(server, str(other.message_id)) if busy else nullcontext():
            assert not busy or next(other) == 0
            before = fetch_count(server)
            store_result(server, id_, {"chunks": 2, "run": "r", "result": "whole"}, notify=False)
            # One fetch for each request, and then another: earlier chunks of the first would have arrived.
            until(lambda: fetch_count(server) >= before + (4 if busy else 2), "fetches")
            for number in range(2):
                publish_chunk(server, id_, number)
        assert list(stream) == [0, 1]
        assert stream.result == "whole"


def test_backend_that_is_down_refuses_a_request(app: AgentApp, agent: str, server: Valkey) -> None:
    """Nothing is published without a backend for the answer. When it is back, requests are answered."""
    with stopped(server):
        began = time.monotonic()
        with pytest.raises(BackendUnavailable):
            nap(app, agent, 0, timeout=3)
        assert time.monotonic() - began < 3 + LATE
    assert nap(app, agent, 0, timeout=10)[0].ok


def test_backend_stops_during_a_request(app: AgentApp, agent: str, server: Valkey) -> None:
    """The request ends within its timeout, and the next one is answered."""
    assert nap(app, agent, 0, timeout=10)[0].ok
    killer = threading.Timer(0.5, server.kill)
    killer.start()
    try:
        response, seconds = nap(app, agent, 2, timeout=3)
    finally:
        killer.join()
        server.start()
    assert isinstance(response.error, BackendUnavailable | RequestTimeout)
    assert seconds < 3 + LATE
    assert nap(app, agent, 0, timeout=10)[0].ok


def test_backend_freezes_during_a_request(app: AgentApp, agent: str, server: Valkey) -> None:
    """The request ends with its timeout, not when the backend thaws."""
    assert nap(app, agent, 0, timeout=10)[0].ok
    freezer = threading.Timer(0.3, server.freeze)
    freezer.start()
    try:
        response, seconds = nap(app, agent, 0.8, timeout=2)
    finally:
        freezer.join()
        server.thaw()
    assert isinstance(response.error, RequestTimeout)
    assert seconds < 2 + LATE
    assert nap(app, agent, 0, timeout=10)[0].ok


def test_late_result_is_ignored(app: AgentApp, agent: str, server: Valkey) -> None:
    """It expires in the backend, and the next request gets its own result."""
    response, seconds = nap(app, agent, 4, timeout=0.5, method="nap_past_the_deadline")
    assert isinstance(response.error, RequestTimeout)
    assert seconds < 0.5 + LATE
    key = f"celery-task-meta-{response.message_id}"
    until(lambda: server.client.exists(key), "the late answer")
    assert 0 < server.client.ttl(key) <= 3600
    assert nap(app, agent, 0, timeout=10)[0].result == 0
    assert len(app.result_collector) == 0


def test_first_of_two_results_counts(app: AgentApp, agent: str, server: Valkey) -> None:
    """A result for a request that has ended changes nothing."""
    future = app.result_collector.expect("twice", "nobody")
    for result in (1, 2):
        store_result(server, "twice", result)
    assert future.result(10).value == 1
    assert len(app.result_collector) == 0


def test_damaged_result_fails_its_own_request_only(app: AgentApp, agent: str, server: Valkey) -> None:
    """Garbage in the backend fails one request, and others are answered."""
    broken, whole = app.result_collector.expect("broken", "nobody"), app.result_collector.expect("whole", "nobody")
    server.client.set("celery-task-meta-broken", b"\x00{no json")
    server.client.publish("celery-task-meta-broken", b"\x00{no json")
    assert broken.exception(10) is not None
    store_result(server, "whole", 1)
    assert whole.result(10).value == 1
    assert nap(app, agent, 0, timeout=10)[0].ok


def test_result_with_a_lost_notification_is_fetched(app: AgentApp, server: Valkey) -> None:
    """A result that was stored without a notification is found after a second."""
    future = app.result_collector.expect("unheard", "nobody")
    store_result(server, "unheard", 7, notify=False)
    assert future.result(10).value == 7


@pytest.mark.slow
def test_thousands_of_requests_leave_nothing_behind(app: AgentApp, agent: str, server: Valkey) -> None:
    """No keys or subscriptions stay in the backend, and the caller's memory does not grow."""
    requests = aio.RequestResponseHandler(app)
    batch_size = 500
    server.client.flushall()  # removes what other tests left

    async def ask(count: int) -> None:
        for _ in range(0, count, batch_size):
            asked = (requests.request(agent, "nap", {"seconds": 0}, timeout=60) for _ in range(batch_size))
            assert await asyncio.gather(*asked) == [0] * batch_size

    def emptied() -> bool:
        return not server.client.keys("celery-task-meta-*") and not server.client.pubsub_channels("celery-task*")

    asyncio.run(ask(1000))
    until(emptied, "the cleanup of the first requests")
    keys, memory = server.client.dbsize(), psutil.Process().memory_info().rss
    asyncio.run(ask(2000))
    until(emptied, "the cleanup of all requests")
    assert server.client.dbsize() == keys
    assert len(app.result_collector) == 0
    assert psutil.Process().memory_info().rss - memory < 10_000_000


def test_messages_need_no_result_backend(broker: Broker, agent: str, server: Valkey) -> None:
    """While the backend is down, messages are sent and handled."""
    app = broker.app(result_backend=server.url, waooaw_redis_url=broker.redis_url)
    with stopped(server):
        sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload={}))
        until(lambda: MessageBus(app).receipt(sent.message_id).status.final, "the final status")
    app.close()


def test_backend_that_sends_no_notices_is_asked(broker: Broker, tmp_path: Path) -> None:
    """A backend on files is asked for each result, which is removed when it was read."""
    app = broker.app(result_backend=f"file://{tmp_path}", waooaw_redis_url=broker.redis_url)
    with closing(app):
        ids = [str(app.result_collector.new_id()) for _ in range(3)]
        futures = [app.result_collector.expect(id_, "nobody") for id_ in ids]
        for number, id_ in enumerate(ids[:2]):
            app.backend.mark_as_done(id_, number)
        assert [future.result(10).value for future in futures[:2]] == [0, 1]
        app.backend.mark_as_failure(ids[2], ValueError("broken"))
        state, value, _ = futures[2].result(10)
        assert (state, type(value), str(value)) == ("FAILURE", ValueError, "broken")
        until(lambda: not list(tmp_path.iterdir()), "the end of the results")
