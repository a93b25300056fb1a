"""`waooaw doctor` finds the faults of Redis and RabbitMQ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from doctor_checks import look, worst
from faults.servers import RabbitMQ, Valkey, lone_rabbitmq, lone_valkey
from redis import Redis
from support import until

from waooaw_celery import create_app
from waooaw_celery.maintenance.diagnostics import broker as broker_checks
from waooaw_celery.maintenance.diagnostics.examination import CHECK_SECONDS, examine
from waooaw_celery.maintenance.diagnostics.finding import Finding, State
from waooaw_celery.maintenance.diagnostics.permissions import redis_permissions
from waooaw_celery.maintenance.diagnostics.redis_servers import redis_servers
from waooaw_celery.testing.embedded import free_port, valkey


@pytest.fixture(scope="module")
def redis() -> Iterator[Valkey]:
    """A Valkey that stores messages on disk, whose settings these tests change."""
    with lone_valkey() as server:
        yield server


@pytest.fixture
def configured(redis: Valkey) -> Iterator[Callable[..., None]]:
    """Return a function that changes a setting of the server for one test."""
    before: dict[str, str] = {}

    def configure(**values: object) -> None:
        for name, value in values.items():
            key = name.replace("_", "-")
            before.setdefault(key, redis.client.config_get(key)[key])
            redis.client.config_set(key, str(value))

    yield configure
    for key, value in reversed(before.items()):
        redis.client.config_set(key, value)


# --- Redis


def test_a_right_redis_is_ok(redis: Valkey) -> None:
    """Its version is shown, and nothing is left behind."""
    keys = redis.client.dbsize()
    found = look(redis.url, redis_servers, redis_permissions)
    assert [each.state for each in found] == [State.OK, State.OK]
    assert "Valkey 9" in found[0].sentence
    assert redis.client.dbsize() == keys


def test_a_redis_that_evicts_fails(redis: Valkey, configured: Callable[..., None]) -> None:
    """The policy allkeys-lru loses queues; with the setting that accepts it, and with others, it is a warning."""
    configured(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    assert "set it to noeviction" in worst(look(redis.url, redis_servers))
    found = look(redis.url, redis_servers, waooaw_allow_eviction=True)
    assert "set it to noeviction" in worst(found, State.WARN)
    configured(maxmemory_policy="volatile-lru")
    assert "volatile-lru" in worst(look(redis.url, redis_servers), State.WARN)


def test_a_redis_that_stores_nothing_is_warned_of(redis: Valkey, configured: Callable[..., None]) -> None:
    """The warning says what a crash would lose, and when the last snapshot was."""
    configured(appendonly="no")
    sentence = worst(look(redis.url, redis_servers), State.WARN)
    assert "Set appendonly yes" in sentence
    assert "they are lost" in sentence
    assert "no snapshot (RDB) since its start" in sentence
    until(lambda: not redis.client.info("persistence")["aof_rewrite_in_progress"], "the end of the rewrite")
    time.sleep(max(0.0, 2.1 - redis.client.info("server")["uptime_in_seconds"]))
    redis.client.save()
    assert "Its last snapshot (RDB) is 0 min old" in worst(look(redis.url, redis_servers), State.WARN)


def test_a_full_redis_fails(redis: Valkey, configured: Callable[..., None]) -> None:
    """It refuses messages; a warning comes before."""
    used = redis.client.info("memory")["used_memory"]
    configured(maxmemory=int(used * 1.05))
    found = look(redis.url, redis_servers)
    assert "of its memory limit" in worst(found, State.WARN) + worst(found)
    configured(maxmemory=1)
    assert "Raise maxmemory" in worst(look(redis.url, redis_servers))


def test_a_replica_fails(redis: Valkey) -> None:
    """It takes no writes; the finding names its master."""
    with lone_valkey() as replica:
        replica.client.execute_command("REPLICAOF", "127.0.0.1", "1")
        found = look(replica.url, redis_servers)
        assert "it is a replica, which takes no writes" in worst(found)
        config = {"waooaw_redis_url": replica.url, "waooaw_sender": "tests"}
        found = look(redis.url, redis_servers, **config)
        assert "it is a replica of 127.0.0.1:1, which takes no writes" in worst(found)


def test_missing_permissions_are_named() -> None:
    """A command, a key and a channel, each with what to grant; a command of workers only is a warning."""
    with valkey(port=free_port()) as url, Redis.from_url(url) as client:

        def restricted(*rules: str) -> list[Finding]:
            client.execute_command("ACL", "SETUSER", "lab", "reset", "on", ">secret", *rules)
            return look(url.replace("redis://", "redis://lab:secret@"), redis_permissions)

        everything = ("~*", "&*", "+@all")
        assert worst(restricted(*everything, "-hset", "-zadd")).count("ACL SETUSER lab +") == 2
        assert "ACL SETUSER lab +blpop" in worst(restricted(*everything, "-blpop"))
        assert "ACL SETUSER lab +xadd" in worst(restricted(*everything, "-xadd"), State.WARN)
        assert "~agent.waooaw-doctor" in worst(
            restricted("~waooaw*", "~unacked*", "~_kombu*", "~celery*", "&*", "+@all")
        )
        assert "the channel" in worst(restricted("~*", "+@all"))
        assert worst(restricted(*everything)) == ""
        info = look(url.replace("redis://", "redis://lab:secret@"), redis_servers)
        assert worst(info) == ""
        client.execute_command("ACL", "SETUSER", "lab", "-info")
        found = look(url.replace("redis://", "redis://lab:secret@"), redis_servers)
        assert "ACL SETUSER lab +info" in worst(found, State.WARN)


# --- RabbitMQ


@pytest.mark.rabbitmq
def test_rabbitmq_is_ok(amqp_url: str, redis: Valkey) -> None:
    """Its version is shown; it declares, confirms and returns a message."""
    with closing(create_app(broker_url=amqp_url, result_backend=redis.url)) as app:
        found = examine(app, [broker_checks.broker, broker_checks.publishing])
    assert [each.state for each in found] == [State.OK, State.OK]
    assert "RabbitMQ 3" in found[0].sentence or "RabbitMQ 4" in found[0].sentence


@pytest.mark.rabbitmq
@pytest.mark.slow
@pytest.mark.skipif(not RabbitMQ.is_installed, reason="needs a RabbitMQ of its own")
def test_faults_of_rabbitmq_are_found(redis: Valkey) -> None:
    """A wrong password, a missing permission, and an alarm of its memory."""
    with lone_rabbitmq() as server:

        def found(url: str) -> str:
            with closing(create_app(broker_url=url, result_backend=redis.url)) as app:
                return worst(examine(app, [broker_checks.broker, broker_checks.publishing]))

        assert found(server.url) == ""
        assert "refuses the login" in found(server.url.replace("guest:guest", "guest:wrong"))
        server._control("set_permissions", "-p", "/", "guest", "^none$", ".*", ".*")
        assert "lacks the permission to configure agent.*" in found(server.url)
        server._control("set_permissions", "-p", "/", "guest", ".*", ".*", "^none$")
        assert "lacks the permission to read agent.*" in found(server.url)
        server._control("set_permissions", "-p", "/", "guest", ".*", ".*", ".*")
        server.fill()
        assert "has not confirmed a message" in found(server.url)
        server.relieve()
        server.freeze()
        began = time.monotonic()
        assert "does not answer" in found(server.url)
        assert time.monotonic() - began < CHECK_SECONDS
