"""With the default settings: how soon a dead worker's message is redelivered, and when a worker counts as dead."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from plain_workers import Plant, plant
from proxy import proxied
from support import pass_time, until

from waooaw_celery.app.celery_defaults import TRANSPORT_DEFAULTS
from waooaw_celery.broker.redis.scripts import TOUCH
from waooaw_celery.testing.embedded import valkey

POOLS = ("prefork", "threads", "solo")
#: Seconds that a busy computer may add to the promised time.
TOLERANCE = 4.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a server that only these tests use."""
    with valkey() as url:
        yield url


@pytest.fixture
def workers(url: str, tmp_path: Path) -> Iterator[Plant]:
    """Workers on three pools, each running a handler of 16 s, and an idle worker with room for all three."""
    with plant(url, tmp_path, transport_options=TRANSPORT_DEFAULTS["redis"]) as workers:
        workers.start_all([("-P", pool) for pool in POOLS])
        for pool in POOLS:
            workers.send(pool, 16)
        until(lambda: sorted(workers.labels("began")) == sorted(POOLS), "all of them to start")
        assert len({fact["worker"] for fact in workers.effects("began")}) == len(POOLS)
        workers.start("-P", "prefork", "-c", str(len(POOLS)))
        try:
            yield workers
        finally:
            for process in workers.processes.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # a warm shutdown would take the handler's 16 s


def send_signal(workers: Plant, number: signal.Signals) -> float:
    """Send a signal to all processes of the three workers, and return the time."""
    for process in list(workers.processes.values())[: len(POOLS)]:
        os.killpg(process.pid, number)
    return time.monotonic()


def seconds_until_started_again(workers: Plant, since: float, seconds: float) -> list[float]:
    """Wait until each message is started a second time, and return after how many seconds that was."""
    until(lambda: len(workers.labels("began")) == 2 * len(POOLS), "the second start of each", seconds)
    assert sorted(workers.labels("began")[len(POOLS) :]) == sorted(POOLS)
    return [fact["at"] - since for fact in workers.effects("began")[len(POOLS) :]]


@pytest.mark.slow
def test_message_of_a_killed_worker_is_started_again_within_15_seconds(workers: Plant) -> None:
    """After SIGKILL of its worker, each message is started again within 15 s."""
    killed_at = send_signal(workers, signal.SIGKILL)
    assert max(seconds_until_started_again(workers, killed_at, 15 + TOLERANCE)) < 15 + TOLERANCE


@pytest.mark.slow
def test_message_of_a_terminated_worker_is_started_again_within_5_seconds(workers: Plant) -> None:
    """After SIGTERM and then SIGKILL it is started again within 5 s of the kill, and not before the kill."""
    for process in list(workers.processes.values())[: len(POOLS)]:
        process.send_signal(signal.SIGTERM)
    pass_time(4)  # between SIGTERM and SIGKILL
    assert len(workers.labels("began")) == len(POOLS)
    killed_at = send_signal(workers, signal.SIGKILL)
    assert max(seconds_until_started_again(workers, killed_at, 5 + TOLERANCE)) < 5 + TOLERANCE


@pytest.mark.slow
def test_worker_paused_for_ten_seconds_keeps_its_messages(workers: Plant) -> None:
    """No other worker starts its messages during the pause or afterwards."""
    send_signal(workers, signal.SIGSTOP)
    try:
        pass_time(10)  # nothing may happen meanwhile
    finally:
        send_signal(workers, signal.SIGCONT)
    until(lambda: sorted(workers.labels()) == sorted(POOLS), "the end of all")
    until(lambda: workers.held() == 0, "acknowledging")
    assert sorted(workers.labels("began")) == sorted(POOLS)


@pytest.mark.slow
def test_server_pause_longer_than_a_lease_redelivers_nothing(url: str, tmp_path: Path) -> None:
    """After a pause of the server, living workers get time to renew their leases first."""
    options = {"visibility_timeout": 4, "unacked_restore_interval": 0.5, "socket_timeout": 2.0}
    with proxied(url) as proxy, plant(url, tmp_path, transport_options=options) as workers:
        through = {"CELERY_BROKER_URL": proxy.url}
        workers.start("-P", "threads", env=through)
        workers.send("long", 10)
        workers.wait("long", "began")
        workers.start("-P", "threads", env=through)
        proxy.freeze(also_new=True)
        try:
            pass_time(6)
        finally:
            proxy.thaw()
        workers.wait("long", seconds=40)
        until(lambda: workers.held() == 0, "acknowledging")
        assert workers.labels("began") == ["long"]


@pytest.mark.slow
def test_server_pause_during_a_shutdown_redelivers_nothing(url: str, tmp_path: Path) -> None:
    """The leases of a worker that shuts down are shorter than the pause: others give it time to renew them."""
    options = TRANSPORT_DEFAULTS["redis"] | {"socket_timeout": 20.0}
    with ExitStack() as stack:
        proxies = [stack.enter_context(proxied(url)) for _ in range(2)]
        workers = stack.enter_context(plant(url, tmp_path, transport_options=options))
        through = [{"CELERY_BROKER_URL": f"redis://127.0.0.1:{proxy.port}"} for proxy in proxies]
        ending = workers.start("-P", "threads", env=through[0])
        workers.send("long", 14)
        workers.wait("long", "began")
        workers.start("-P", "threads", env=through[1])
        workers.processes[ending].send_signal(signal.SIGTERM)
        until(lambda: shortest_lease_age(workers) > 8, "the shorter lease")
        for proxy in proxies:
            proxy.freeze(also_new=True)
        time.sleep(5)
        proxies[1].thaw()
        time.sleep(1)  # the worker that shuts down is the last one to reach the server again
        proxies[0].thaw()
        workers.wait("long", seconds=40)
        until(lambda: workers.held() == 0, "acknowledging")
        assert workers.labels("began") == ["long"]


def shortest_lease_age(workers: Plant) -> float:
    """Return how many seconds ago, by the server's clock, the newest lease counts as renewed."""
    now, microseconds = workers.redis.time()
    newest = workers.redis.zrange(f"{workers.unacked}-index", -1, -1, withscores=True)
    return float(now + microseconds / 1e6 - newest[0][1]) if newest else 0.0


@pytest.mark.slow
def test_leases_are_renewed_with_one_command(url: str, tmp_path: Path) -> None:
    """A worker that holds 40 messages renews them with one command, and at most every 3 s."""
    settings = {"worker_prefetch_multiplier": 40}
    with plant(url, tmp_path, settings=settings, transport_options=TRANSPORT_DEFAULTS["redis"]) as workers:
        workers.start("-P", "threads")
        for number in range(40):
            workers.send(number, 3)
        until(lambda: workers.held() == 40, "the claims")
        seen: list[float] = []

        def watch(monitor: Any) -> None:
            for command in monitor.listen():
                if TOUCH.digest in command["command"]:
                    seen.append(time.monotonic())
                if "enough" in command["command"]:
                    return

        with workers.redis.monitor() as monitor:
            thread = threading.Thread(target=watch, args=(monitor,), daemon=True)
            thread.start()
            until(lambda: len(seen) == 3, "three renewals", 20)
            workers.redis.get("enough")
            thread.join(10)
        assert not thread.is_alive()
        assert all(later - earlier > 2.5 for earlier, later in pairwise(seen))
