"""The Redis transport with a real Sentinel, also after a failover."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError
from redis_channels import Broker, Reader, new_queue, send
from support import until

from waooaw_celery.testing.embedded import _valkey_binary, free_port, running, valkey

MASTER = {"master_name": "agents", "sentinel_kwargs": {"socket_timeout": 2.0}}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[str, Any, int]]:
    """A server with a replica and a Sentinel: its URL, a client of the Sentinel, and the replica's port."""
    port, replica_port, sentinel_port = free_port(), free_port(), free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor agents 127.0.0.1 {port} 1\nsentinel down-after-milliseconds agents 1000\n"
    )
    replica = valkey(
        port=replica_port, options=["--replicaof", "127.0.0.1", str(port), "--repl-diskless-sync-delay", "0"]
    )
    command = [str(_valkey_binary()), str(conf), "--sentinel"]
    sentinel: Any = Redis(port=sentinel_port, decode_responses=True)

    def ready() -> bool:
        with suppress(RedisError):
            return bool(sentinel.sentinel_slaves("agents")) and master_port(sentinel) == port
        return False

    with valkey(port=port) as url, replica, running(command, log=tmp_path / "sentinel.log"):
        until(ready, "the sentinel to know both servers")
        yield url, sentinel, replica_port
        sentinel.close()


def master_port(sentinel: Any) -> int:
    """Return the port of the master that the Sentinel lists, which redis-py uses.

    By name, the Sentinel reports the new master a moment earlier; a message that is sent in between is lost.
    """
    return int(sentinel.sentinel_masters()["agents"]["port"])


def is_replicated(server: Any) -> bool:
    """Return whether the replica has everything that was written: WAIT covers only its own client's writes."""
    _, replicas = server.pipeline(transaction=False).set("last", "written").wait(1, 500).execute()
    return bool(replicas == 1)


@pytest.mark.slow
def test_messages_follow_a_failover(watched: tuple[str, Any, int]) -> None:
    """Messages from before a failover are read from the new master, and new messages go there."""
    url, sentinel, replica_port = watched
    broker, queue = Broker(url), new_queue()
    address = f"sentinel://127.0.0.1:{sentinel.connection_pool.connection_kwargs['port']}/0"
    send(broker.connect(url=address, **MASTER), queue, "before", "also before")
    reader = Reader(broker.connect(url=address, **MASTER), queue, prefetch=1)
    assert reader.take(1) == ["before"]
    reader.messages[0].ack()
    until(lambda: broker.unacked_count() == 0, "the acknowledgement")
    reader.connection.close()
    until(lambda: is_replicated(broker.redis), "the replica to have it all")
    sentinel.sentinel_failover("agents")
    until(lambda: master_port(sentinel) == replica_port, "the failover")
    send(broker.connect(url=address, **MASTER), queue, "after")
    reader = Reader(broker.connect(url=address, **MASTER), queue)
    assert reader.take(2) == ["also before", "after"]
    assert type(reader.channel).__name__ == "SentinelChannel"
    broker.close()
