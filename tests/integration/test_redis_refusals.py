"""A Redis that answers and refuses: a replica takes no writes, and a user lacks a permission."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from process_pool import waooaw
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RateLimiter, RequestResponseHandler
from waooaw_celery.errors import BrokerUnavailable, StoreUnavailable, WaooawError
from waooaw_celery.testing.embedded import end, free_port, valkey


@pytest.fixture(scope="module")
def own_broker(ledger_broker: Broker) -> Iterator[Broker]:
    """A server that only these tests use, and the ledger: it tells what became of refused messages."""
    with valkey(port=free_port()) as url:
        yield Broker(url, ledger_broker.redis_url, ledger_broker.folder, ledger_broker.database_url)


@pytest.fixture(scope="module")
def server(own_broker: Broker) -> Iterator[Any]:
    """A client of it."""
    with closing(Redis.from_url(own_broker.url)) as client:
        yield client


@pytest.fixture
def demote(server: Any) -> Iterator[Callable[[], None]]:
    """Return a function that makes the server a replica, as a failover does. The test ends with a master."""
    yield lambda: server.replicaof("127.0.0.1", "1")
    server.replicaof("NO", "ONE")


def message(name: str, **payload: object) -> Message:
    return Message(from_agent="tests", to_agent=name, payload=payload)


def calls(app: AgentApp, name: str) -> dict[str, Callable[[], object]]:
    """Return the calls that send to an agent."""
    bus, requests = MessageBus(app), RequestResponseHandler(app)
    return {
        "send": lambda: bus.send(message(name)),
        "send_many": lambda: bus.send_many([message(name) for _ in range(3)]),
        "request": lambda: requests.request(name, "echo", {"value": 1}, timeout=10),
        "delay": lambda: app.signature(f"{name}.command", args=({},)).delay(),
    }


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "new"])
@pytest.mark.parametrize("verb", ["send", "send_many", "request", "delay"])
def test_replica_refuses_for_certain_and_is_logged_once(
    own_broker: Broker,
    server: Any,
    demote: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    verb: str,
    connected: bool,
) -> None:
    """Also over a connection that was open before. Later calls are refused at once, until the pause is over."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        app.conf.waooaw_agents = [name]
        if connected:
            MessageBus(app).send(message(name))
        before = server.llen(f"agent.{name}\x06\x166")
        demote()
        call = calls(app, name)[verb]
        with caplog.at_level(logging.WARNING):
            for number in range(5):
                with pytest.raises(BrokerUnavailable, match="READONLY") as refused:
                    call()
                assert refused.value.uncertain is False, number
        actions = [record.__dict__.get("action") for record in caplog.records]
        assert actions.count("broker_refuses") == 1
        assert server.llen(f"agent.{name}\x06\x166") == before
        server.replicaof("NO", "ONE")
        until(lambda: works(MessageBus(app).send, message(name)), "the end of the pause")


def works(call: Callable[..., object], *args: object) -> bool:
    """Return whether a call succeeds."""
    try:
        call(*args)
    except WaooawError:
        return False
    return True


def test_message_that_a_replica_refused_is_failed(own_broker: Broker, demote: Callable[[], None]) -> None:
    """So recovery does not publish what the sender perhaps sends again."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        app.conf.waooaw_agents = [name]
        bus, refused = MessageBus(app), message(name)
        bus.send(message(name))
        demote()
        with pytest.raises(BrokerUnavailable):
            bus.send(refused)
        assert settled(app, refused.message_id) is MessageStatus.FAILED
        assert "READONLY" in (bus.receipt(refused.message_id).error or "")


def test_delays_alone_end_the_pause(own_broker: Broker, server: Any, demote: Callable[[], None]) -> None:
    """A program that never calls ``send`` notices too that the broker is back."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        app.conf.waooaw_agents = [name]
        delay = calls(app, name)["delay"]
        delay()
        demote()
        assert not works(delay)
        server.replicaof("NO", "ONE")
        until(lambda: works(delay), "the end of the pause", 15)


@pytest.mark.slow
def test_worker_waits_for_a_replica_to_become_a_master(
    own_broker: Broker, server: Any, demote: Callable[[], None]
) -> None:
    """It says why, does not restart its consumer many times a second, and goes on by itself."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        worker = own_broker.start(name, app)
        log = own_broker.folder / f"{name}.log"
        try:
            bus = MessageBus(app)
            assert settled(app, bus.send(message(name)).message_id) is MessageStatus.HANDLED
            demote()
            until(lambda: log.read_text().count("READONLY") >= 2, "two attempts")
            server.replicaof("NO", "ONE")
            until(lambda: works(bus.send, message(name)), "the end of the pause")
            assert settled(app, bus.send(message(name)).message_id) is MessageStatus.HANDLED
        finally:
            end(worker)
        text = log.read_text()
        assert "Frequent restarts" not in text
        assert text.count("READONLY") <= 8


@pytest.fixture
def restricted(server: Any, own_broker: Broker) -> Callable[..., str]:
    """Return a function that restricts a user by these rules, and returns the URL with its name."""

    def restrict(*rules: str) -> str:
        server.execute_command("ACL", "SETUSER", "lab", "reset", "on", ">secret", *rules)
        return own_broker.url.replace("redis://", "redis://lab:secret@")

    return restrict


@pytest.mark.parametrize(
    ("rules", "grant"),
    [
        (["~lab:*", "&*", "+@all"], "~waooaw:agents"),
        (["~*", "&*", "+@all", "-hset"], r"\+hset"),
        (["~*", "&*", "+@all", "-smembers"], r"\+smembers"),
    ],
    ids=["key", "command in a pipeline", "command"],
)
def test_store_names_the_missing_permission(
    restricted: Callable[..., str], tmp_path: Path, rules: list[str], grant: str
) -> None:
    """Which command or key, and what to grant; not that somebody should check whether the server runs."""
    url = restricted(*rules)
    with closing(Broker(url, url, tmp_path).app()) as app:
        registry = app.registry
        use = registry.all if grant.endswith("smembers") else partial(registry.declare, "nobody", ["echo"], "w", 5)
        with pytest.raises(StoreUnavailable, match=grant) as refused:
            use()
        assert "ACL SETUSER" in str(refused.value)
        assert "Check that it runs" not in str(refused.value)


def test_limits_name_the_missing_permission(restricted: Callable[..., str], tmp_path: Path) -> None:
    """The script of the rate limits uses two keys."""
    url = restricted("~lab:*", "+@all")
    with closing(Broker(url, url, tmp_path).app(waooaw_rate_limit="1/second")) as app:
        limiter: RateLimiter = app.limiter
        with pytest.raises(StoreUnavailable, match=r"~waooaw:quota:\{tests\}"):
            limiter.check_limit("tests")


@pytest.mark.parametrize("verb", ["send", "delay"])
@pytest.mark.parametrize(
    ("rules", "grant"),
    [
        (["~other:*", "&*", "+@all"], "~waooaw.probe"),
        (["~*", "&*", "+@all", "-lpush"], r"\+lpush"),
        (["~*", "&*", "+@all", "-@scripting"], r"\+script"),
    ],
    ids=["key", "command", "scripts"],
)
def test_broker_names_the_missing_permission(
    own_broker: Broker, restricted: Callable[..., str], rules: list[str], grant: str, verb: str
) -> None:
    """A refused message was not published, which is certain."""
    with closing(own_broker.app(broker_url=restricted(*rules), waooaw_agents=["nobody"])) as app:
        with pytest.raises(BrokerUnavailable, match=grant) as refused:
            calls(app, "nobody")[verb]()
        assert not refused.value.uncertain
        assert "ACL SETUSER" in str(refused.value)


@pytest.mark.slow
def test_worker_without_a_permission_says_so_and_waits(own_broker: Broker, restricted: Callable[..., str]) -> None:
    """When the permission is granted, it goes on."""
    rules = ["~*", "&*", "+@all"]
    broker = Broker(restricted(*rules, "-blpop"), own_broker.redis_url, own_broker.folder, own_broker.database_url)
    with closing(own_broker.app()) as app:
        name = broker.name()
        worker = broker.start(name, app)
        log = broker.folder / f"{name}.log"
        try:
            until(lambda: log.read_text().count("+blpop") >= 2, "two refusals")
            restricted(*rules)
            assert settled(app, MessageBus(app).send(message(name)).message_id) is MessageStatus.HANDLED
        finally:
            end(worker)
        assert "Frequent restarts" not in log.read_text()


@pytest.mark.parametrize(
    ("command", "denied"),
    [("queues", "llen"), ("dead list", "xrevrange"), ("doctor", "time")],
    ids=lambda value: value,
)
def test_commands_name_the_missing_permission(
    own_broker: Broker, restricted: Callable[..., str], command: str, denied: str
) -> None:
    """In a sentence, and not in a traceback."""
    env = {
        "CELERY_BROKER_URL": restricted("~*", "&*", "+@all", f"-{denied}"),
        "CELERY_RESULT_BACKEND": own_broker.redis_url,
        "WAOOAW_AGENTS": "nobody",
        "COLUMNS": "500",
    }
    done = waooaw(*command.split(), env=env)
    output = done.stdout + done.stderr
    assert done.returncode == (1 if command == "doctor" else 3)  # a server refuses; doctor has findings
    assert f"ACL SETUSER lab +{denied}" in output
    assert "Traceback" not in output
