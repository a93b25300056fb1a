"""The transport to whichever server a real sentinel names, also after a fail-over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from channels import Broker, Reader, a_queue, send
from redis import Redis
from redis.exceptions import RedisError
from support import until

from waooaw_celery.embedded import _valkey_binary, free_port, running, valkey

MASTER = {"master_name": "agents", "sentinel_kwargs": {"socket_timeout": 2.0}}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[str, Any, int]]:
    """A server with a replica and a sentinel: its URL, a client of the sentinel, and the replica's port."""
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
            return bool(sentinel.sentinel_slaves("agents")) and current(sentinel) == port
        return False

    with valkey(port=port) as url, replica, running(command, log=tmp_path / "sentinel.log"):
        until(ready, "the sentinel to know both servers")
        yield url, sentinel, replica_port
        sentinel.close()


def current(sentinel: Any) -> int:
    """Return the port of the server that the sentinel lists, which is what redis-py goes by.

    By name it tells the new one a moment earlier; what is sent in between is lost with the old one.
    """
    return int(sentinel.sentinel_masters()["agents"]["port"])


def replicated(server: Any) -> bool:
    """Return whether the replica has all that was written so far: WAIT asks only for what its own client wrote."""
    _, replicas = server.pipeline(transaction=False).set("last", "written").wait(1, 500).execute()
    return bool(replicas == 1)


def test_messages_follow_a_failover(watched: tuple[str, Any, int]) -> None:
    """What was sent before a fail-over is read from the new server, to which new messages go as well."""
    url, sentinel, replica_port = watched
    broker, queue = Broker(url), a_queue()
    address = f"sentinel://127.0.0.1:{sentinel.connection_pool.connection_kwargs['port']}/0"
    send(broker.connect(url=address, **MASTER), queue, "before", "also before")
    reader = Reader(broker.connect(url=address, **MASTER), queue, prefetch=1)
    assert reader.take(1) == ["before"]
    reader.got[0].ack()
    until(lambda: broker.held() == 0, "forgetting")
    reader.connection.close()
    until(lambda: replicated(broker.redis), "the replica to have it all")
    sentinel.sentinel_failover("agents")
    until(lambda: current(sentinel) == replica_port, "the fail-over")
    send(broker.connect(url=address, **MASTER), queue, "after")
    reader = Reader(broker.connect(url=address, **MASTER), queue)
    assert reader.take(2) == ["also before", "after"]
    assert type(reader.channel).__name__ == "SentinelChannel"
    broker.close()
