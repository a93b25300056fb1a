"""The errors of callers when the broker is full, or a connection is lost during a publish."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from proxy import Proxy, proxied
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import BrokerUnavailable, UnknownMessage
from waooaw_celery.testing.embedded import end

THREADS = 20


@pytest.fixture(scope="module")
def server(own_broker: Broker) -> Iterator[Any]:
    """A client of it."""
    with closing(Redis.from_url(own_broker.url.replace("redis+socket://", "unix://"))) as client:
        yield client


def calls(app: AgentApp, name: str) -> dict[str, Callable[[], object]]:
    """Return the calls that send to an agent."""
    bus, requests = MessageBus(app), RequestResponseHandler(app)
    return {
        "send": lambda: bus.send(message(name)),
        "send_many": lambda: bus.send_many([message(name) for _ in range(3)]),
        "request": lambda: requests.request(name, "echo", {"value": 1}, timeout=10),
        "delay": lambda: app.signature(f"{name}.command", args=({},)).delay(),
    }


def message(name: str) -> Message:
    """Return a message to an agent."""
    return Message(from_agent="tests", to_agent=name, payload={})


def errors_of_threads(call: Callable[[], object], threads: int = THREADS, times: int = 5) -> list[Exception]:
    """Make a call in several threads, and return what it raised."""
    raised: list[Exception] = []

    def run() -> None:
        for _ in range(times):
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the test checks the types
                raised.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
        assert not thread.is_alive()
    return raised


@pytest.mark.parametrize("verb", ["send", "send_many", "request"])
def test_full_broker_refuses_with_uncertain_false(own_broker: Broker, server: Any, verb: str) -> None:
    """Every call fails with the reason, nothing is handled later, and afterwards sending works again."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        app.conf.waooaw_agents = [name]
        call = calls(app, name)[verb]
        server.config_set("maxmemory", 1)
        try:
            raised = errors_of_threads(call)
        finally:
            server.config_set("maxmemory", 0)
        assert len(raised) == THREADS * 5
        assert {type(error) for error in raised} == {BrokerUnavailable}
        assert {getattr(error, "uncertain", None) for error in raised} == {False}
        assert all("Redis refused LPUSH" in str(error) for error in raised)
        assert not server.keys(f"agent.{name}*")
        worker = own_broker.start(name, app)
        try:
            assert errors_of_threads(call, times=1) == []
        finally:
            end(worker)


def test_receipt_of_a_refused_message_is_failed(own_broker: Broker, server: Any) -> None:
    """So recovery does not publish a message whose sender got an error."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        app.conf.waooaw_agents = [name]
        bus, refused = MessageBus(app), message(name)
        server.config_set("maxmemory", 1)
        try:
            with pytest.raises(BrokerUnavailable):
                bus.send(refused)
        finally:
            server.config_set("maxmemory", 0)
        assert settled(app, refused.message_id) is MessageStatus.FAILED
        assert "Redis refused LPUSH" in (bus.receipt(refused.message_id).error or "")


@pytest.fixture
def proxy(own_broker: Broker) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with proxied(own_broker.url) as proxy:
        yield proxy


@pytest.mark.parametrize("verb", ["send", "send_many", "request", "delay"])
def test_connection_lost_during_a_declaration_is_replaced(own_broker: Broker, proxy: Proxy, verb: str) -> None:
    """The producer continues over a new connection, with a new channel."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        worker = own_broker.start(name, app)
        try:
            with closing(own_broker.app(broker_url=proxy.url)) as sender:
                call = calls(sender, name)[verb]
                proxy.lose_answer(b"LLEN")  # the command of the declaration
                call()
                assert proxy.lost.is_set()
                call()
        finally:
            end(worker)


def test_exhausted_connection_pool_refuses_a_message(own_broker: Broker) -> None:
    """The error names the setting, and the message was not recorded."""
    with closing(own_broker.app(broker_pool_limit=1, broker_pool_acquire_timeout=0.2)) as app:
        name = own_broker.name()
        app.conf.waooaw_agents = [name]
        refused = message(name)
        with app.producer_or_acquire(), pytest.raises(BrokerUnavailable, match="broker_pool_limit") as failed:
            MessageBus(app).send(refused)
        assert not failed.value.uncertain
        with pytest.raises(UnknownMessage):
            MessageBus(app).receipt(refused.message_id)
        MessageBus(app).send(refused)


def test_connection_pool_never_shares_a_connection(own_broker: Broker, server: Any) -> None:
    """Also after failures, and after producers waited in vain for a connection."""
    with closing(own_broker.app(broker_pool_limit=3, broker_pool_acquire_timeout=0.05)) as app:
        name = own_broker.name()
        app.conf.waooaw_agents = [name]
        call = calls(app, name)["send"]
        server.config_set("maxmemory", 1)
        try:
            errors = errors_of_threads(call)
            with app.pool.acquire(), app.pool.acquire(), app.pool.acquire():
                errors += errors_of_threads(call, 3)
            assert [error for error in errors if not isinstance(error, BrokerUnavailable)] == []
            assert len(errors) == (THREADS + 3) * 5
        finally:
            server.config_set("maxmemory", 0)
        until(lambda: not app.pool._dirty, "the connections")
        free = [connection for connection in app.pool._resource.queue if not callable(connection)]
        assert free
        assert len(free) == len({id(connection) for connection in free})
        call()
