"""Handlers that end while Redis is away: their messages are acknowledged afterwards, and not handled again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_workers import plant
from proxy import proxied
from support import until

from waooaw_celery.testing.embedded import valkey

#: Seconds of a lease: longer than the outage, so that no other worker may take the messages.
LEASE = 40
OPTIONS = {
    "visibility_timeout": LEASE,
    "unacked_restore_interval": 0.5,
    "socket_timeout": 2.0,
    "socket_connect_timeout": 2.0,
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a server that only these tests use."""
    with valkey() as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 9.0], ids=["before the channel closes", "after it has closed"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_handlers_that_end_during_an_outage_are_not_repeated(
    url: str, tmp_path: Path, pool: str, seconds: float
) -> None:
    """Nothing but the acknowledgement tells the broker that a message of a plain Celery task was handled."""
    with proxied(url) as proxy, plant(url, tmp_path, transport_options=OPTIONS) as workers:
        behind = {"CELERY_BROKER_URL": f"redis://127.0.0.1:{proxy.port}/0"}
        # Celery's heartbeat waits for the broker, and would keep the channel from closing.
        workers.start("-P", pool, "-c", "2", "--without-heartbeat", env=behind)
        labels = ["one"] if pool == "solo" else ["one", "two"]
        for label in labels:
            workers.send(label, seconds)
        for label in labels:
            workers.wait(label, "began")
        proxy.freeze(also_new=True)
        for label in labels:
            workers.wait(label, "ended")
        until(lambda: "a channel was closed without Redis" in log(tmp_path), "it to notice the outage")
        proxy.cut()  # what is under way is lost
        proxy.thaw()
        workers.send("later")
        workers.wait("later")
        until(lambda: (workers.waiting(), workers.held()) == ([], 0), "the acknowledgements", LEASE + 30)
        assert sorted(workers.labels()) == sorted([*labels, "later"])


def log(folder: Path) -> str:
    """Return the logs of all workers."""
    return "".join(path.read_text() for path in folder.glob("*.log"))
