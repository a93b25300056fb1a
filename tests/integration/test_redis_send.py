"""On one Redis for broker and receipts, a send is one script: it records and publishes, or it does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from proxy import Proxy, proxied
from redis import Redis
from support import settled

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, create_app
from waooaw_celery.errors import (
    BrokerUnavailable,
    InvalidMessage,
    RateLimitExceeded,
    SenderPaused,
    StoreUnavailable,
    UnknownMessage,
)
from waooaw_celery.testing.embedded import free_port, valkey

NAME = "one-trip"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a server that only these tests use."""
    with valkey(port=free_port()) as url:
        yield url


@pytest.fixture
def server(url: str) -> Iterator[Any]:
    """A client of it, whose databases are empty."""
    with closing(Redis.from_url(url, decode_responses=True)) as client:
        client.flushall()
        yield client


@pytest.fixture
def make_app(server: Any, url: str) -> Iterator[Callable[..., AgentApp]]:
    """Return a function that makes an application."""
    made: list[AgentApp] = []

    def make(broker_url: str = url, **settings: Any) -> AgentApp:
        app = create_app(broker_url=broker_url, result_backend=broker_url, waooaw_agents=[NAME], **settings)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


def message(**fields: Any) -> Message:
    """Return a message to the agent."""
    return Message(**({"from_agent": "tests", "to_agent": NAME, "payload": {"n": 1}} | fields))


def queued(server: Any) -> int:
    """Return how many messages wait."""
    return sum(server.llen(key) for key in server.keys(f"*agent.{NAME}*") if not key.endswith("bell"))


def calls_of(server: Any, call: Callable[[], object]) -> dict[str, int]:
    """Return how often a call made the server run each command that clients send."""
    server.config_resetstat()
    call()
    stats = server.info("commandstats")
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("limit", [None, "100000/hour"])
def test_a_send_is_one_round_trip(
    make_app: Callable[..., AgentApp], server: Any, count: int, limit: str | None
) -> None:
    """The receipt, the rate limit and the queue are served by one script."""
    settings = {} if limit is None else {"waooaw_rate_limit": limit}
    bus = MessageBus(make_app(**settings))
    bus.send_many([message() for _ in range(count)])
    server.script_flush()
    bus.send_many([message() for _ in range(count)])  # over a server that does not know the script any more
    calls = calls_of(server, lambda: bus.send_many([message() for _ in range(count)]))
    assert calls["evalsha"] == 1
    assert "eval" not in calls
    assert "multi" not in calls
    assert calls["lpush"] <= 2  # the messages and the doorbell
    assert queued(server) == 3 * count
    assert server.zcard("waooaw:messages") == 3 * count


def test_a_message_is_sent_once(make_app: Callable[..., AgentApp], server: Any) -> None:
    """A second send is refused with the status, and so are all messages that are sent with it."""
    bus, sent, other = MessageBus(make_app()), message(), message()
    bus.send(sent)
    with pytest.raises(InvalidMessage, match=f"message {sent.message_id} was sent already and is sent"):
        bus.send(sent)
    with pytest.raises(InvalidMessage, match="was sent already"):
        bus.send_many([other, sent])
    assert queued(server) == 1
    with pytest.raises(UnknownMessage):
        bus.receipt(other.message_id)
    bus.send(other)
    assert queued(server) == 2


def test_a_pending_message_may_be_sent_again(make_app: Callable[..., AgentApp], server: Any) -> None:
    """It was recorded, and the broker never had it."""
    app, sent = make_app(), message()
    app.receipts.begin_recording([(sent, "command")])()
    assert app.receipts.get(sent.message_id).status is MessageStatus.PENDING
    MessageBus(app).send(sent)
    assert app.receipts.get(sent.message_id).status is MessageStatus.SENT
    assert queued(server) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_full_server_has_nothing_of_a_refused_message(
    make_app: Callable[..., AgentApp], server: Any, count: int
) -> None:
    """Neither the message nor a receipt, which the error says for certain; it can be sent later."""
    bus, messages = MessageBus(make_app()), [message() for _ in range(count)]
    bus.send(message())
    server.config_set("maxmemory", 1)
    try:
        with pytest.raises(
            BrokerUnavailable, match=f"{count} message.* not published: Redis refused LPUSH"
        ) as full:
            bus.send_many(messages)
    finally:
        server.config_set("maxmemory", 0)
    assert not full.value.uncertain
    assert queued(server) == 1
    assert server.zcard("waooaw:messages") == 1
    bus.send_many(messages)
    assert queued(server) == 1 + count


def test_a_replica_has_nothing_of_a_refused_message(make_app: Callable[..., AgentApp], server: Any) -> None:
    """As a full server. The circuit breaker opens."""
    bus = MessageBus(make_app())
    bus.send(message())
    server.replicaof("127.0.0.1", "1")
    try:
        for _ in range(3):
            with pytest.raises(BrokerUnavailable, match="READONLY") as refused:
                bus.send(message())
            assert not refused.value.uncertain
    finally:
        server.replicaof("NO", "ONE")
    assert queued(server) == 1


@pytest.mark.parametrize(
    ("denied", "error", "grant"),
    [
        ("lpush", BrokerUnavailable, r"\+lpush"),
        ("hset", StoreUnavailable, r"\+hset"),
        ("expire", StoreUnavailable, r"\+expire"),
    ],
)
def test_a_user_without_a_permission_does_nothing_by_halves(
    make_app: Callable[..., AgentApp], server: Any, url: str, denied: str, error: type[Exception], grant: str
) -> None:
    """What the script has done is undone, and the error names the command."""
    app = make_app(url.replace("redis://", "redis://lab:secret@"))
    server.execute_command("ACL", "SETUSER", "lab", "reset", "on", ">secret", "~*", "&*", "+@all")
    bus = MessageBus(app)
    bus.send(message())
    before = sorted(server.keys("waooaw:message:*")), queued(server), server.zcard("waooaw:messages")
    server.execute_command("ACL", "SETUSER", "lab", f"-{denied}")
    with pytest.raises(error, match=grant) as refused:
        bus.send(message())
    assert not getattr(refused.value, "uncertain", False)
    assert (sorted(server.keys("waooaw:message:*")), queued(server), server.zcard("waooaw:messages")) == before
    server.execute_command("ACL", "SETUSER", "lab", f"+{denied}")
    bus.send(message())
    assert queued(server) == 2


def test_a_message_over_the_rate_limit_is_not_recorded(make_app: Callable[..., AgentApp], server: Any) -> None:
    """It is refused by the script that would have sent it. With ``wait`` it is sent later."""
    bus = MessageBus(make_app(waooaw_rate_limit="2/second"))
    bus.send_many([message(), message()])
    refused = message()
    with pytest.raises(RateLimitExceeded) as error:
        bus.send(refused)
    assert 0 < error.value.retry_after <= 1.1
    assert queued(server) == 2
    with pytest.raises(UnknownMessage):
        bus.receipt(refused.message_id)
    bus.send(refused, wait=5)
    assert queued(server) == 3


def test_a_paused_sender_is_refused(make_app: Callable[..., AgentApp], server: Any) -> None:
    """Before the script is called."""
    app = make_app()
    app.restrictions.pause("tests", by="ada")
    with pytest.raises(SenderPaused):
        MessageBus(app).send(message())
    assert queued(server) == 0


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with proxied(url) as proxy:
        yield proxy


@pytest.mark.parametrize("settings", [{}, {"waooaw_rate_limit": "1000/hour"}], ids=["unlimited", "limited"])
def test_a_lost_reply_does_not_send_a_message_twice(
    make_app: Callable[..., AgentApp], server: Any, proxy: Proxy, settings: dict[str, Any]
) -> None:
    """The script runs again over a new connection, and finds that it has sent the message."""
    bus = MessageBus(make_app(proxy.url, **settings))
    bus.send(message())
    proxy.lose_answer(b"EVALSHA")
    receipt = bus.send(message())
    assert proxy.lost.is_set()
    assert receipt.status is MessageStatus.SENT
    assert queued(server) == 2
    assert bus.receipt(receipt.message_id).status is MessageStatus.SENT


def test_a_lost_reply_to_a_message_with_an_id_of_its_own_is_uncertain(
    make_app: Callable[..., AgentApp], server: Any, proxy: Proxy
) -> None:
    """An earlier call may have sent it: the caller is told that it is not known, and the queue has it once."""
    bus = MessageBus(make_app(proxy.url))
    bus.send(message())
    proxy.lose_answer(b"EVALSHA")
    with pytest.raises(BrokerUnavailable, match="my-order") as lost:
        bus.send(message(message_id="my-order"))
    assert lost.value.uncertain
    assert queued(server) == 2


def test_a_key_prefix_holds(make_app: Callable[..., AgentApp], server: Any) -> None:
    """Every key has it."""
    options = {"broker_transport_options": {"global_keyprefix": "lab:"}}
    bus = MessageBus(make_app(waooaw_rate_limit="1000/hour", **options))
    bus.send(message(ttl_seconds=5))
    bus.send_many([message(), message()])
    assert [key for key in server.keys("*") if not key.startswith("lab:")] == []
    assert queued(server) == 3


def test_receipts_on_another_database_take_the_usual_way(
    make_app: Callable[..., AgentApp], server: Any, url: str
) -> None:
    """The same server with another database is another place: a script cannot reach it."""
    bus = MessageBus(make_app(waooaw_redis_url=f"{url.rpartition('/')[0]}/1"))
    receipt = bus.send(message())
    assert bus.receipt(receipt.message_id).status is MessageStatus.SENT
    assert queued(server) == 1
    assert server.zcard("waooaw:messages") == 0


def test_a_worker_handles_what_a_script_has_sent(broker: Any, probe: str) -> None:
    """The receipt follows the message as for any other."""
    with closing(broker.app()) as app:
        receipt = MessageBus(app).send(Message(from_agent="tests", to_agent=probe, payload={}))
        assert settled(app, receipt.message_id) is MessageStatus.HANDLED
