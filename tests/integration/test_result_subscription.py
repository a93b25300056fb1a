"""One subscription receives the results of all requests of a process, and none is lost with its connection."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from faults.servers import Valkey, lone_valkey
from redis import Redis
from support import Broker, until

from waooaw_celery import AgentApp
from waooaw_celery.errors import BackendUnavailable
from waooaw_celery.results import subscribed, subscription
from waooaw_celery.store.connection import store_url

#: The channels of single results.
CHANNELS = "celery-task-meta-*"
#: A user who may use these channels, as an ACL names them: a longer pattern is not allowed.
GUEST = "guest"


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """The result backend."""
    with lone_valkey() as server:
        server.client.acl_setuser(
            GUEST, enabled=True, nopass=True, categories=["+@all"], keys=["*"], channels=[CHANNELS]
        )
        yield server


@pytest.fixture(scope="module")
def broker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("subscription"))
    yield broker
    broker.clean()


def new_app(broker: Broker, url: str) -> AgentApp:
    return broker.app(result_backend=url, waooaw_redis_url=broker.redis_url)


@pytest.fixture
def app(broker: Broker, server: Valkey) -> Iterator[AgentApp]:
    app = new_app(broker, server.url)
    yield app
    app.close()


def store(client: Redis, message_id: str, result: Any, *, publish: bool = True) -> None:
    """Store a result as Celery's backend does, and publish it."""
    meta = json.dumps({"status": "SUCCESS", "result": result, "traceback": None, "task_id": message_id})
    client.set(f"celery-task-meta-{message_id}", meta, ex=60)
    if publish:
        client.publish(f"celery-task-meta-{message_id}", meta)


def expect_without_a_look(app: AgentApp, message_id: str) -> Future[Any]:
    """Wait for a result, without looking for it while the connection is well."""
    future = app.result_collector.expect(message_id, "nobody")
    pending = app.result_collector._pending.get(message_id)
    assert pending is not None
    pending.fetch_at = float("inf")
    return future


def subscribe_count(client: Redis) -> int:
    """Return how often anybody has subscribed or unsubscribed."""
    stats = client.info("commandstats")
    return sum(int(facts["calls"]) for name, facts in stats.items() if name.endswith("subscribe"))


def test_the_results_of_many_requests_need_one_subscription(app: AgentApp, server: Valkey) -> None:
    """The server gets no command for each request, and has no channel for each."""
    collector = app.result_collector
    collector.expect(collector.new_id(), "nobody")
    before, patterns = subscribe_count(server.client), server.client.pubsub_numpat()
    ids = [str(collector.new_id()) for _ in range(50)]
    futures = [collector.expect(id_, "nobody") for id_ in ids]
    for number, id_ in enumerate(ids):
        store(server.client, id_, number)
    assert [future.result(10).value for future in futures] == list(range(50))
    assert subscribe_count(server.client) == before
    assert server.client.pubsub_numpat() == patterns
    assert not server.client.pubsub_channels(CHANNELS)
    until(lambda: not server.client.exists(*(f"celery-task-meta-{id_}" for id_ in ids)), "the end of the results")


def test_processes_have_patterns_of_their_own(broker: Broker, app: AgentApp, server: Valkey) -> None:
    """An application gets no results of another one."""
    other = new_app(broker, server.url)
    try:
        theirs, ours = (each.result_collector.new_id() for each in (other, app))
        assert theirs[:15] != ours[:15]
        assert theirs[:15] == other.result_collector.new_id()[:15]
        assert len({app.result_collector.new_id() for _ in range(1000)}) == 1000
    finally:
        other.close()


def test_a_result_that_was_stored_while_the_connection_was_lost_arrives(app: AgentApp, server: Valkey) -> None:
    """The caller connects again, and looks what was stored meanwhile: it does not wait for its next look."""
    collector = app.result_collector
    first = collector.new_id()
    waits = collector.expect(first, "nobody")
    for number in range(5):
        id_ = collector.new_id()
        future = expect_without_a_look(app, id_)
        server.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        store(server.client, id_, number)
        assert future.result(10).value == number
    assert not waits.done()
    store(server.client, first, "first")
    assert waits.result(10).value == "first"


def test_a_connection_that_was_lost_while_nobody_waited_loses_nothing(
    app: AgentApp, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread sleeps then, and finds it out with the next request."""
    monkeypatch.setattr(subscribed, "LINGER_SECONDS", 0.0)
    collector = app.result_collector
    id_ = collector.new_id()
    future = collector.expect(id_, "nobody")
    store(server.client, id_, 1)
    assert future.result(10).value == 1
    until(lambda: not collector._has_work.is_set(), "the rest of the thread")
    server.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    id_ = collector.new_id()
    future = expect_without_a_look(app, id_)
    store(server.client, id_, 2)
    assert future.result(10).value == 2


def test_a_result_without_a_notice_arrives_before_the_deadline(app: AgentApp, server: Valkey) -> None:
    """It is looked for before the caller gives up, even if that is before the first regular look."""
    collector = app.result_collector
    id_ = collector.new_id()
    future = collector.expect(id_, "nobody", deadline=time.monotonic() + 0.9)
    store(server.client, id_, 7, publish=False)
    assert future.result(0.9).value == 7


def test_a_missed_notice_renews_the_subscription(app: AgentApp, server: Valkey) -> None:
    """Its connection may be dead without an error: the next result must not be late too."""
    collector = app.result_collector
    id_ = collector.new_id()
    future = collector.expect(id_, "nobody")
    before = subscribe_count(server.client)
    store(server.client, id_, 1, publish=False)
    assert future.result(10).value == 1
    until(lambda: subscribe_count(server.client) == before + 1, "another subscription")
    id_ = collector.new_id()
    future = collector.expect(id_, "nobody")
    store(server.client, id_, 2)
    assert future.result(10).value == 2


def test_garbage_on_a_channel_does_not_end_a_request(app: AgentApp, server: Valkey) -> None:
    """Anybody may publish. What is stored decides."""
    collector = app.result_collector
    id_ = collector.new_id()
    future = collector.expect(id_, "nobody")
    server.client.publish(f"celery-task-meta-{id_}", b"\x00{no json")
    store(server.client, id_, 3)
    assert future.result(10).value == 3


def test_a_user_with_a_name_subscribes_to_channels_one_by_one(broker: Broker, server: Valkey) -> None:
    """An ACL compares a pattern letter by letter. To try would be a refusal, which the server writes down."""
    server.client.acl_log_reset()
    app = new_app(broker, f"{server.url}?username={GUEST}&password=any")
    try:
        _check_single_channels(app, server)
        assert server.client.acl_log() == []
    finally:
        app.close()


def test_channels_are_subscribed_to_one_by_one_where_a_pattern_is_forbidden(broker: Broker) -> None:
    """An administrator may have restricted the user without a name too."""
    with lone_valkey() as server:
        server.client.execute_command("ACL", "SETUSER", "default", "resetchannels", f"&{CHANNELS}")
        app = new_app(broker, server.url)
        try:
            _check_single_channels(app, server)
            assert len(server.client.acl_log()) > 0
        finally:
            app.close()


def test_a_server_with_many_patterns_gets_no_further_one(
    app: AgentApp, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pattern costs the server time for each publish."""
    monkeypatch.setattr(subscription, "MAX_PATTERNS", 0)
    _check_single_channels(app, server)


def _check_single_channels(app: AgentApp, server: Valkey) -> None:
    """Check that results arrive over a channel for each, also after the connection was lost."""
    patterns = server.client.pubsub_numpat()
    collector = app.result_collector
    ids = [str(collector.new_id()) for _ in range(3)]
    futures = [expect_without_a_look(app, id_) for id_ in ids]
    until(lambda: len(server.client.pubsub_channels(CHANNELS)) == 3, "a channel for each")
    assert server.client.pubsub_numpat() == patterns
    store(server.client, ids[0], 0)
    assert futures[0].result(10).value == 0
    server.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    store(server.client, ids[1], 1)
    assert futures[1].result(10).value == 1
    until(lambda: len(server.client.pubsub_channels(CHANNELS)) == 1, "the end of two channels")
    store(server.client, ids[2], 2)
    assert futures[2].result(10).value == 2
    until(lambda: not server.client.pubsub_channels(CHANNELS), "the end of the last channel")


def test_a_request_is_refused_while_the_connection_is_lost(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is published for whose answer nobody can wait. When the server is back, requests are sent again."""
    monkeypatch.setattr(subscribed, "RECONNECT_SECONDS", 0.2)
    with lone_valkey() as server:
        app = new_app(broker, server.url)
        try:
            collector = app.result_collector
            future = collector.expect(collector.new_id(), "nobody")
            server.kill()
            until(lambda: not collector._source._connected.is_set(), "the loss of the connection")
            with pytest.raises(BackendUnavailable):
                collector.expect(collector.new_id(), "nobody")
            assert not future.done()
            server.start()
            id_ = collector.new_id()
            until(lambda: collector._source._connected.is_set(), "another connection")
            answered = collector.expect(id_, "nobody")
            store(server.client, str(id_), 1)
            assert answered.result(10).value == 1
        finally:
            app.close()


def test_requests_fail_when_the_server_stays_away(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread then sleeps, and connects again for the next request."""
    with lone_valkey() as server:
        app = broker.app(
            result_backend=server.url,
            waooaw_redis_url=broker.redis_url,
            result_backend_transport_options={"retry_policy": {"max_retries": 1}},
        )
        try:
            collector = app.result_collector
            future = collector.expect(collector.new_id(), "nobody")
            server.kill()
            assert future.exception(30) is not None
            until(lambda: not collector._has_work.is_set(), "the rest of the thread")
            server.start()
            id_ = collector.new_id()
            answered = collector.expect(id_, "nobody")
            store(server.client, str(id_), 1)
            assert answered.result(10).value == 1
        finally:
            app.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_has_its_own_subscription(app: AgentApp, server: Valkey) -> None:
    """Its ids begin in another way, and its results do not arrive in its parent."""
    collector = app.result_collector
    parent = str(collector.new_id())
    collector.expect(parent, "nobody")
    child = os.fork()
    if child == 0:  # nothing of the test runner may run here
        code = 1
        try:
            id_ = str(collector.new_id())
            future = collector.expect(id_, "nobody")
            store(Redis.from_url(store_url(server.url)), id_, 5)
            code = 0 if future.result(10).value == 5 and id_[:15] != parent[:15] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    id_ = collector.new_id()
    future = collector.expect(id_, "nobody")
    store(server.client, id_, 6)
    assert future.result(10).value == 6


def test_a_part_that_cannot_be_passed_on_fails_only_its_request(app: AgentApp, server: Valkey) -> None:
    """The callback of a stream raises what the backend raises in an outage: other requests go on."""
    collector = app.result_collector

    def refuse(_: Any) -> None:
        raise RuntimeError("Event loop is closed")

    other, streamed = str(collector.new_id()), str(collector.new_id())
    waiting, failing = collector.expect(other, "nobody"), collector.expect(streamed, "nobody", refuse)
    chunk = json.dumps({"status": "CHUNK", "result": [1, "part"], "traceback": None, "task_id": streamed})
    server.client.publish(f"celery-task-meta-{streamed}", chunk)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        failing.result(10)
    store(server.client, other, "fine")
    assert waiting.result(10).value == "fine"
