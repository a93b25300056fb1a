"""The poller of a worker's event loop, which also watches the descriptors of the pool."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from kombu.utils.eventio import ERR, READ
from plain_workers import plant
from proxy import Proxy, proxied
from redis_channels import Broker, Reader, new_queue, send
from support import until

from waooaw_celery.testing.embedded import valkey


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a server that only these tests use."""
    with valkey() as url:
        yield url


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with proxied(url) as proxy:
        yield proxy


@pytest.mark.parametrize("kind", ["ours", "kombu"])
@pytest.mark.parametrize("state", ["readable", "hung up"])
def test_foreign_descriptor_does_not_end_the_wait_for_a_message(url: str, kind: str, state: str) -> None:
    """An event on a descriptor that belongs to no channel does not end ``drain_events``; a message does."""
    queue = new_queue()
    with closing(Broker(url)) as broker:
        reader = Reader(broker.connect(kind), queue)
        theirs, ours = os.pipe()
        try:
            os.write(ours, b"a result of the pool")
            if state == "hung up":
                os.read(theirs, 100)
                os.close(ours)
            reader.connection.transport.cycle.poller.register(theirs, READ | ERR)
            began_at = time.monotonic()
            with pytest.raises(TimeoutError):
                reader.connection.drain_events(timeout=0.5)
            assert time.monotonic() - began_at >= 0.5
            send(broker.connect(kind), queue, "a message")
            assert reader.take(1) == ["a message"]
        finally:
            os.close(theirs)
            with suppress(OSError):
                os.close(ours)


@pytest.mark.slow
def test_pool_process_dies_while_the_connections_are_lost(url: str, proxy: Proxy, tmp_path: Path) -> None:
    """The new pool process reports itself while the worker reconnects and searches for its neighbours."""
    with plant(url, tmp_path) as made:
        node = made.start("-P", "prefork", "-c", "2", env={"CELERY_BROKER_URL": proxy.url}, mingles=True)
        made.send("before")
        made.wait("before")
        [before] = made.effects("ended")
        parent = made.processes[node]
        for round_ in range(2):
            # The worker sees the lost connections first, and the dead process when it reconnects.
            parent.send_signal(signal.SIGSTOP)
            proxy.cut()
            os.kill(before["pid"], signal.SIGKILL)
            parent.send_signal(signal.SIGCONT)
            made.send(round_)
            made.wait(round_)
            before = next(fact for fact in made.effects("ended") if fact["label"] == round_)
            until(lambda: made.held() == 0, "acknowledging")
        assert parent.poll() is None
        log = (tmp_path / f"{node}.log").read_text()
        assert log.count("mingle: all alone") == 3
