"""Streamed answers of real workers, over Redis and over RabbitMQ's own result backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from support import Broker

from waooaw_celery import AgentApp, aio
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import RemoteError, RequestTimeout, StreamBroken, UnknownMethod
from waooaw_celery.testing.embedded import end_all

BACKENDS = ["redis", pytest.param("rpc", marks=pytest.mark.rabbitmq)]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The result backend: Redis, or RabbitMQ, which delivers answers and stores none."""
    return str(request.param)


@pytest.fixture(scope="module")
def backend_broker(backend: str, request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue("rabbitmq_broker" if backend == "rpc" else "ledger_broker")
    return found


@pytest.fixture
def broker(backend_broker: Broker) -> Broker:
    return backend_broker


def settings(backend_broker: Broker, backend: str) -> dict[str, Any]:
    return {"result_backend": "rpc://", "waooaw_redis_url": backend_broker.redis_url} if backend == "rpc" else {}


@pytest.fixture
def app(backend_broker: Broker, backend: str) -> Iterator[AgentApp]:
    app = backend_broker.app(**settings(backend_broker, backend))
    yield app
    app.close()


@pytest.fixture(scope="module", params=["plain", "async"])
def agent(backend_broker: Broker, backend: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of an agent whose methods are generators, or async generators in a thread pool."""
    app = backend_broker.app(**settings(backend_broker, backend))
    name, kind = backend_broker.name(), str(request.param)
    options = ("-P", "threads", "-c", "50") if kind == "async" else ("-c", "2")
    env = {"CELERY_RESULT_BACKEND": "rpc://"} if backend == "rpc" else {}
    module = "async_probe" if kind == "async" else "probe"
    worker = backend_broker.start(name, app, *options, module=module, env=env, **settings(backend_broker, backend))
    yield name
    end_all([worker])
    app.close()


def numbers(chunks: Any) -> list[int]:
    return [chunk["number"] for chunk in chunks]


def test_parts_arrive_in_order_before_the_final_result(app: AgentApp, agent: str) -> None:
    """Each part is read once, and the generator's final result is the stream's."""
    with Requests(app).stream(agent, "count", {"to": 200}, timeout=20) as stream:
        assert numbers(stream) == list(range(200))
    assert stream.result == {"counted": 200}
    assert len(app.result_collector) == 0


def test_a_part_arrives_when_it_is_yielded(app: AgentApp, agent: str) -> None:
    """The first part arrives long before the last one exists."""
    began = time.monotonic()
    with Requests(app).stream(agent, "count", {"to": 4, "pause": 0.5}, timeout=20) as stream:
        assert next(stream) == {"number": 0}
        first = time.monotonic() - began
        assert numbers(stream) == [1, 2, 3]
    assert time.monotonic() - began >= first + 1.5


def test_parts_are_awaited(app: AgentApp, agent: str) -> None:
    """Forty streams on one event loop are complete and in order."""
    requests = aio.RequestResponseHandler(app)

    async def one(to: int) -> tuple[list[int], Any]:
        stream = requests.stream(agent, "count", {"to": to, "pause": 0.01}, timeout=60)
        return numbers([chunk async for chunk in stream]), stream.result

    async def several() -> list[tuple[list[int], Any]]:
        return await asyncio.gather(*(one(to) for to in range(40)))

    taken = asyncio.run(asyncio.wait_for(several(), 100))
    assert taken == [(list(range(to)), {"counted": to}) for to in range(40)]


def test_a_plain_request_gets_all_parts_at_once(app: AgentApp, agent: str) -> None:
    """request() returns the final result, or a list of the parts if there is none."""
    requests = Requests(app)
    assert requests.request(agent, "count", {"to": 3}, timeout=20) == {"counted": 3}
    assert requests.request(agent, "letters", {"text": "abc"}, timeout=20) == ["a", "b", "c"]


def test_a_method_that_yields_nothing_is_a_stream_without_parts(app: AgentApp, agent: str) -> None:
    """The result of a plain method is the final result of a stream."""
    with Requests(app).stream(agent, "nap", {"seconds": 0}, timeout=20) as stream:
        assert list(stream) == []
    assert stream.result == 0


def test_an_error_of_the_generator_follows_its_parts(app: AgentApp, agent: str) -> None:
    """The parts before it are read, then it is raised; so it is for a part that cannot be encoded."""
    taken: list[Any] = []
    with pytest.raises(RemoteError, match="ValueError: no 2"):
        taken.extend(Requests(app).stream(agent, "count", {"to": 5, "fail_at": 2}, timeout=20))
    assert numbers(taken) == [0, 1]
    with pytest.raises(RemoteError, match=r"InvalidMessage: chunk 1"):
        list(Requests(app).stream(agent, "yield_a_set", timeout=20))


def test_the_timeout_is_from_part_to_part(app: AgentApp, agent: str) -> None:
    """A stream may last longer than its timeout; the time between two parts may not."""
    stream = Requests(app).stream(agent, "count", {"to": 6, "pause": 0.4}, timeout=1.5)
    assert numbers(stream) == list(range(6))
    began = time.monotonic()
    with pytest.raises(RequestTimeout, match="no further part"):
        list(Requests(app).stream(agent, "count", {"to": 2, "pause": 5}, timeout=1))
    assert time.monotonic() - began < 4


def test_a_handler_cannot_relay_a_stream_of_its_own_agent(app: AgentApp, agent: str) -> None:
    """The circular request is refused at once."""
    error = Requests(app).stream(agent, "relay", {"to_agent": agent, "to": 3}, timeout=20)
    with pytest.raises(RemoteError, match="CircularRequest"):
        list(error)


def test_an_unknown_method_is_refused_before_a_stream_is_sent(app: AgentApp, agent: str) -> None:
    """The error is raised at once, or when the first part is awaited."""
    with pytest.raises(UnknownMethod):
        Requests(app).stream(agent, "no_such_method")

    async def first() -> Any:
        return await anext(aio.RequestResponseHandler(app).stream(agent, "no_such_method"))

    with pytest.raises(UnknownMethod):
        asyncio.run(first())


def test_a_stream_whose_agent_began_again_is_broken(backend_broker: Broker, probe: str) -> None:
    """After its process was killed, the agent answers anew; parts of two answers are not mixed."""
    taken: list[Any] = []
    with closing(backend_broker.app()) as app, pytest.raises(StreamBroken, match="its handler was started again"):
        taken.extend(Requests(app).stream(probe, "count_and_die", timeout=30))
    assert taken == [0, 1]
