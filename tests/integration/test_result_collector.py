"""The result backend goes away, lies, or has nothing to say: each request has one outcome, in time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any

import psutil
import pytest
from faults.servers import Valkey, lone_valkey
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.agents import aio
from waooaw_celery.embedded import end
from waooaw_celery.errors import BackendUnavailable, RequestTimeout
from waooaw_celery.results import collector as answers

#: Seconds by which a call may be late: the bound that is promised.
LATE = 0.5


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """The result backend, which goes away."""
    with lone_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def broker(redis_url: str, server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker with the store on it, which stays, and answers over a server of their own."""
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


def nap(app: AgentApp, agent: str, seconds: float, timeout: float) -> Any:
    """Ask for a nap, and return what came of it and after how many seconds."""
    began = time.monotonic()
    response = Requests(app).send_request(agent, "nap", {"seconds": seconds}, timeout=timeout)
    return response, time.monotonic() - began


def store(server: Valkey, message_id: str, result: Any, tell: bool = True) -> None:
    """Store an answer as Celery's backend does, and tell whoever has subscribed."""
    meta = {"status": "SUCCESS", "result": result, "traceback": None, "children": [], "task_id": message_id}
    server.client.set(f"celery-task-meta-{message_id}", json.dumps(meta), ex=3600)
    if tell:
        server.client.publish(f"celery-task-meta-{message_id}", json.dumps(meta))


def looks(server: Valkey) -> int:
    """Return how often somebody looked for an answer."""
    calls: int = server.client.info("commandstats").get("cmdstat_get", {}).get("calls", 0)
    return calls


def tell_part(server: Valkey, message_id: str, number: int) -> None:
    """Tell a part of an answer, as a worker does, and not keep it."""
    said = {"run": "r", "number": number, "chunk": number}
    meta = {"status": "CHUNK", "result": said, "traceback": None, "children": [], "task_id": message_id}
    server.client.publish(f"celery-task-meta-{message_id}", json.dumps(meta))


@contextmanager
def telling_parts(server: Valkey, message_id: str) -> Iterator[None]:
    """Tell parts without a pause while the block runs."""
    ended = threading.Event()

    def tell() -> None:
        number = 0
        while not ended.wait(0.02):
            tell_part(server, message_id, number)
            number += 1

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "busy"])
def test_an_answer_that_is_found_waits_for_its_parts(
    broker: Broker, server: Valkey, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are told before the end is stored; whoever asks may see the end first, on a busy line long before."""
    if busy:  # this computer may be slow: what is told without a pause has pauses
        monkeypatch.setattr(answers, "_ROUND_SECONDS", 1.0)
        monkeypatch.setattr(answers, "_CHUNKS_SECONDS", 60.0)
    nobody = broker.name()
    app = broker.app(result_backend=server.url, waooaw_redis_url=broker.redis_url, waooaw_agents=[nobody])
    with closing(app), ExitStack() as stack:
        stream, other = (stack.enter_context(Requests(app).stream(nobody, "count", timeout=20)) for _ in range(2))
        id_ = str(stream.message_id)
        with telling_parts(server, str(other.message_id)) if busy else nullcontext():
            assert not busy or next(other) == 0
            asked = looks(server)
            store(server, id_, {"chunks": 2, "run": "r", "result": "whole"}, tell=False)
            # One each, and then the other's: those of the first would have come before.
            until(lambda: looks(server) >= asked + (4 if busy else 2), "looks")
            for number in range(2):
                tell_part(server, id_, number)
        assert list(stream) == [0, 1]
        assert stream.result == "whole"


def test_a_backend_that_is_away_before_is_told_at_once(app: AgentApp, agent: str, server: Valkey) -> None:
    """Nothing is published for which no answer could come; when the backend is back, requests are answered."""
    with stopped(server):
        began = time.monotonic()
        with pytest.raises(BackendUnavailable):
            nap(app, agent, 0, timeout=3)
        assert time.monotonic() - began < 3 + LATE
    assert nap(app, agent, 0, timeout=10)[0].ok


def test_a_backend_that_goes_away_meanwhile_ends_the_waiting(app: AgentApp, agent: str, server: Valkey) -> None:
    """The request ends with BackendUnavailable, no later than its timeout, and the next one is answered."""
    assert nap(app, agent, 0, timeout=10)[0].ok
    killer = threading.Timer(0.5, server.kill)
    killer.start()
    response, seconds = nap(app, agent, 2, timeout=3)
    killer.join()
    server.start()
    assert isinstance(response.error, BackendUnavailable | RequestTimeout)
    assert seconds < 3 + LATE
    assert nap(app, agent, 0, timeout=10)[0].ok


def test_a_backend_that_freezes_meanwhile_is_a_timeout(app: AgentApp, agent: str, server: Valkey) -> None:
    """The waiting ends when its time is over, and not when the backend wakes up."""
    assert nap(app, agent, 0, timeout=10)[0].ok
    threading.Timer(0.3, server.freeze).start()
    response, seconds = nap(app, agent, 0.8, timeout=2)
    server.thaw()
    assert isinstance(response.error, RequestTimeout)
    assert seconds < 2 + LATE
    assert nap(app, agent, 0, timeout=10)[0].ok


def test_an_answer_that_comes_too_late_is_nobodys(app: AgentApp, agent: str, server: Valkey) -> None:
    """It expires in the backend, and the next request gets its own."""
    response, seconds = nap(app, agent, 1.5, timeout=0.5)
    assert isinstance(response.error, RequestTimeout)
    assert seconds < 0.5 + LATE
    key = f"celery-task-meta-{response.message_id}"
    until(lambda: server.client.exists(key), "the late answer")
    assert 0 < server.client.ttl(key) <= 3600
    assert nap(app, agent, 0, timeout=10)[0].result == 0
    assert len(app.result_collector) == 0


def test_of_two_answers_the_first_counts(app: AgentApp, agent: str, server: Valkey) -> None:
    """What is published for a request that has ended changes nothing."""
    future = app.result_collector.expect("twice", "nobody")
    for result in (1, 2):
        store(server, "twice", result)
    assert future.result(10).value == 1
    assert len(app.result_collector) == 0


def test_a_damaged_answer_is_the_failure_of_its_own_request_only(
    app: AgentApp, agent: str, server: Valkey
) -> None:
    """Garbage in the backend ends one waiting with BackendUnavailable, and others are answered."""
    broken, whole = app.result_collector.expect("broken", "nobody"), app.result_collector.expect("whole", "nobody")
    server.client.set("celery-task-meta-broken", b"\x00{no json")
    server.client.publish("celery-task-meta-broken", b"\x00{no json")
    assert broken.exception(10) is not None
    store(server, "whole", 1)
    assert whole.result(10).value == 1
    assert nap(app, agent, 0, timeout=10)[0].ok


def test_an_answer_whose_news_was_lost_is_asked_for(app: AgentApp, server: Valkey) -> None:
    """A result that was stored without anybody being told is found after a second."""
    future = app.result_collector.expect("unheard", "nobody")
    store(server, "unheard", 7, tell=False)
    assert future.result(10).value == 7


def test_thousands_of_requests_leave_nothing_behind(app: AgentApp, agent: str, server: Valkey) -> None:
    """Neither keys nor subscriptions in the backend, nor memory that grows, in the process that asked."""
    requests = aio.RequestResponseHandler(app)
    turn = 500
    server.client.flushall()  # what other tests left

    async def ask(count: int) -> None:
        for _ in range(0, count, turn):
            asked = (requests.request(agent, "nap", {"seconds": 0}, timeout=60) for _ in range(turn))
            assert await asyncio.gather(*asked) == [0] * turn

    def emptied() -> bool:
        return not server.client.keys("celery-task-meta-*") and not server.client.pubsub_channels("celery-task*")

    asyncio.run(ask(1000))
    until(emptied, "the forgetting of the first requests")
    keys, memory = server.client.dbsize(), psutil.Process().memory_info().rss
    asyncio.run(ask(2000))
    until(emptied, "the forgetting of all requests")
    assert server.client.dbsize() == keys
    assert len(app.result_collector) == 0
    assert psutil.Process().memory_info().rss - memory < 10_000_000


def test_a_message_needs_no_result_backend(broker: Broker, agent: str, server: Valkey) -> None:
    """With the backend away, messages are sent and handled."""
    app = broker.app(result_backend=server.url, waooaw_redis_url=broker.redis_url)
    with stopped(server):
        sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload={}))
        until(lambda: MessageBus(app).receipt(sent.message_id).status.final, "the end of the message")
    app.close()
