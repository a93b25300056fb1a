"""How soon a message is begun again whose worker is gone, and what does not count as gone; with the defaults."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from plain_workers import Plant, plant
from proxy import proxied
from support import until

from waooaw_celery.broker.redis.scripts import TOUCH
from waooaw_celery.embedded import valkey
from waooaw_celery.settings import TRANSPORT_DEFAULTS

POOLS = ("prefork", "threads", "solo")
#: Seconds that a busy computer may add to what is promised.
BUSY = 4.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of these tests' own."""
    with valkey() as url:
        yield url


@pytest.fixture
def made(url: str, tmp_path: Path) -> Iterator[Plant]:
    """Workers of three pools that each run a handler of 16 s, and an idle one that has room for all of it."""
    with plant(url, tmp_path, transport_options=TRANSPORT_DEFAULTS["redis"]) as made:
        made.start_all([("-P", pool) for pool in POOLS])
        for pool in POOLS:
            made.send(pool, 16)
        until(lambda: sorted(made.labels("began")) == sorted(POOLS), "all of them to begin")
        assert len({fact["worker"] for fact in made.effects("began")}) == len(POOLS)
        made.start("-P", "prefork", "-c", str(len(POOLS)))
        yield made
        for process in made.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # to its end it would take its handler's 16 s


def send_signal(made: Plant, number: signal.Signals) -> float:
    """Send a signal to all processes of the three workers, and return when that was."""
    for process in list(made.processes.values())[: len(POOLS)]:
        os.killpg(process.pid, number)
    return time.monotonic()


def begun_again(made: Plant, since: float, seconds: float) -> list[float]:
    """Wait until each message is begun a second time, and return after how many seconds that was."""
    until(lambda: len(made.labels("began")) == 2 * len(POOLS), "the second beginnings", seconds)
    assert sorted(made.labels("began")[len(POOLS) :]) == sorted(POOLS)
    return [fact["at"] - since for fact in made.effects("began")[len(POOLS) :]]


def test_what_a_killed_worker_ran_is_begun_again_soon(made: Plant) -> None:
    """Within 15 s."""
    killed_at = send_signal(made, signal.SIGKILL)
    assert max(begun_again(made, killed_at, 15 + BUSY)) < 15 + BUSY


def test_what_a_worker_ran_that_was_told_to_end_is_begun_again_sooner(made: Plant) -> None:
    """Within 5 s of its kill; while it lives, nobody else begins with it."""
    for process in list(made.processes.values())[: len(POOLS)]:
        process.send_signal(signal.SIGTERM)
    time.sleep(4)  # the grace that it is given
    assert len(made.labels("began")) == len(POOLS)
    killed_at = send_signal(made, signal.SIGKILL)
    assert max(begun_again(made, killed_at, 5 + BUSY)) < 5 + BUSY


def test_a_worker_that_stands_still_for_ten_seconds_keeps_what_it_runs(made: Plant) -> None:
    """Nobody else begins with it meanwhile, or afterwards."""
    send_signal(made, signal.SIGSTOP)
    time.sleep(10)  # what is tested is what does not happen meanwhile
    send_signal(made, signal.SIGCONT)
    until(lambda: sorted(made.labels()) == sorted(POOLS), "the end of all")
    until(lambda: made.held() == 0, "acknowledging")
    assert sorted(made.labels("began")) == sorted(POOLS)


def test_a_server_that_stands_still_for_longer_than_a_lease_takes_nothing_from_anybody(
    url: str, tmp_path: Path
) -> None:
    """Those who look for leases that are over wait after a gap until the living have renewed theirs."""
    options = {"visibility_timeout": 4, "unacked_restore_interval": 0.5, "socket_timeout": 2.0}
    with proxied(url) as proxy, plant(url, tmp_path, transport_options=options) as made:
        through = {"CELERY_BROKER_URL": f"redis://127.0.0.1:{proxy.port}"}
        made.start("-P", "threads", env=through)
        made.send("long", 10)
        made.wait("long", "began")
        made.start("-P", "threads", env=through)
        proxy.freeze(also_new=True)
        time.sleep(6)
        proxy.thaw()
        made.wait("long", seconds=40)
        until(lambda: made.held() == 0, "acknowledging")
        assert made.labels("began") == ["long"]


def test_leases_are_renewed_together_and_not_often(url: str, tmp_path: Path) -> None:
    """A worker that holds 40 messages renews them with one command, and not more often than every 3 s."""
    settings = {"worker_prefetch_multiplier": 40}
    with plant(url, tmp_path, settings=settings, transport_options=TRANSPORT_DEFAULTS["redis"]) as made:
        made.start("-P", "threads")
        for number in range(40):
            made.send(number, 3)
        until(lambda: made.held() == 40, "the claims")
        seen: list[float] = []

        def watch(monitor: Any) -> None:
            for command in monitor.listen():
                if TOUCH.digest in command["command"]:
                    seen.append(time.monotonic())
                if "enough" in command["command"]:
                    return

        with made.redis.monitor() as monitor:
            thread = threading.Thread(target=watch, args=(monitor,), daemon=True)
            thread.start()
            until(lambda: len(seen) == 3, "three renewals", 20)
            made.redis.get("enough")
            thread.join(10)
        assert not thread.is_alive()
        assert all(later - earlier > 2.5 for earlier, later in pairwise(seen))
