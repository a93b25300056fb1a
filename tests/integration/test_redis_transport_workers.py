"""Celery workers on the Redis transport and on Kombu's own: what both guarantee."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from plain_workers import Plant, plant
from redis import Redis
from redis.exceptions import RedisError
from support import until

from waooaw_celery.testing.embedded import running, valkey

both = pytest.mark.parametrize("kind", ["ours", "kombu"])
FAST = {"health_check_interval": 1, "socket_timeout": 3.0}
#: Short leases: messages of a worker whose server died come back soon.
SHORT_LEASES = FAST | {"visibility_timeout": 3, "unacked_restore_interval": 0.5, "unacked_restore_throttle": 1}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a server that only these tests use: they close its connections."""
    with valkey() as url:
        yield url


@pytest.fixture(scope="module", params=["ours", "kombu"])
def worker(
    request: pytest.FixtureRequest, url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Plant, str]]:
    """A worker on each transport, shared by several tests, and its name."""
    with plant(url, tmp_path_factory.mktemp("workers"), request.param, transport_options=FAST) as made:
        yield made, made.start()


def ids(items: list[bytes]) -> list[str]:
    """Return the task ids of raw items."""
    return [json.loads(item)["headers"]["id"] for item in items]


def answers_ping(made: Plant, node: str) -> bool:
    """Return whether a worker answers a ping, over a connection that may also have been closed."""
    with suppress(*made.app.connection_for_read().connection_errors):
        return bool(made.app.control.ping(destination=[node], timeout=0.5))
    return False


def test_remote_control_reaches_a_worker(worker: tuple[Plant, str]) -> None:
    """A worker answers a ping, lists its running tasks, and revokes a running and a waiting task."""
    made, node = worker
    control = made.app.control
    assert control.inspect(destination=[node], timeout=10).ping() == {node: {"ok": "pong"}}
    running_one = made.send("running", 60)
    made.wait("running", "began")
    [active] = control.inspect(destination=[node], timeout=10).active()[node]
    assert (active["id"], active["delivery_info"]["redelivered"]) == (running_one.id, False)
    waiting_one = made.send("waiting")
    control.revoke(waiting_one.id, destination=[node], reply=True, timeout=10)
    control.revoke(running_one.id, terminate=True, signal="SIGKILL", destination=[node], reply=True, timeout=10)
    made.send("after")
    made.wait("after")
    assert made.labels() == ["after"]
    until(lambda: (made.waiting(), made.held()) == ([], 0), "the end of both")


@pytest.mark.slow
def test_tasks_with_a_countdown_do_not_block_others(worker: tuple[Plant, str]) -> None:
    """More tasks with a countdown than the prefetch count block no other task, and run when they are due."""
    made, _ = worker
    sent_at = time.monotonic()
    for number in range(5):
        made.send(["due", number], countdown=5)
    made.send("at once")
    made.wait(["due", 4])
    first_due = min(at for at, label in enumerate(made.labels()) if label[0] == "due")
    assert made.labels().index("at once") < first_due
    until(lambda: made.held() == 0, "acknowledging")
    due = [fact for fact in made.effects("ended") if fact["label"][0] == "due"]
    assert sorted(fact["label"][1] for fact in due) == list(range(5))
    assert all(fact["at"] - sent_at > 4.8 for fact in due)


def test_pool_process_publishes_while_its_parent_consumes(worker: tuple[Plant, str]) -> None:
    """The parent consumes each message that a forked pool process publishes, once."""
    made, _ = worker
    labels = [["spread", number] for number in range(60)]
    made.app.tasks["plain.spread"].delay(labels)
    made.wait(labels[-1])
    until(lambda: made.held() == 0, "acknowledging")
    assert [label for label in made.labels() if label[0] == "spread"] == labels


def test_worker_reconnects_after_client_kill(worker: tuple[Plant, str]) -> None:
    """After CLIENT KILL of all connections, waiting tasks run, and remote control answers again."""
    made, node = worker
    for number in range(3):
        made.redis.execute_command("CLIENT", "KILL", "TYPE", "normal")
        made.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        made.send(["cut", number])
        made.wait(["cut", number])
    until(lambda: answers_ping(made, node), "an answer to ping")
    until(lambda: (made.waiting(), made.held()) == ([], 0), "acknowledging")


@pytest.mark.slow
@both
def test_warm_shutdown_returns_prefetched_messages(url: str, tmp_path: Path, kind: str) -> None:
    """SIGTERM lets the running handler finish. Prefetched messages go back to the front of the queue."""
    with plant(url, tmp_path, kind, {"worker_prefetch_multiplier": 4}) as made:
        sent = [made.send(number, 4 if number == 0 else 0).id for number in range(8)]
        before = made.waiting()
        node = made.start()
        made.wait(0, "began")
        until(lambda: made.held() == 4, "the prefetched messages")
        made.processes[node].send_signal(signal.SIGTERM)
        assert made.processes[node].wait(20) == 0
        assert made.labels() == [0]
        after = made.waiting()
        assert (ids(after) if kind == "ours" else sorted(ids(after), key=sent.index)) == sent[1:]
        assert after[3:] == before[4:]
        for old, new in zip(
            before[1:4], sorted(after[:3], key=lambda item: sent.index(ids([item])[0])), strict=True
        ):
            assert json.loads(new)["body"] == json.loads(old)["body"]
        assert made.held() == 0


@both
def test_cold_shutdown_returns_every_message(url: str, tmp_path: Path, kind: str) -> None:
    """SIGQUIT ends the handler. Its message goes back, marked as redelivered, and so do all others."""
    with plant(url, tmp_path, kind) as made:
        sent = [made.send(number, 60).id for number in range(3)]
        node = made.start()
        made.wait(0, "began")
        made.processes[node].send_signal(signal.SIGQUIT)
        made.processes[node].wait(20)
        until(lambda: ids(made.waiting()) == sent, "all to wait again")
        assert json.loads(made.waiting()[0])["headers"]["redelivered"]
        assert (made.labels(), made.held()) == ([], 0)


class PersistentServer:
    """A server with persistence that can be killed and started again."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/s"
        self.url = f"redis+socket://{self.path}"
        self._folder = folder
        self._stack = ExitStack()
        self._process: Any = None

    def start(self) -> None:
        """Start the server, and wait until it has loaded its data."""
        from waooaw_celery.testing.embedded import _valkey_binary

        command = [str(_valkey_binary()), "--port", "0", "--unixsocket", self.path, "--dir", self._folder]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self._process = self._stack.enter_context(running(command, log=Path(self._folder, "log")))
        until(self._answers, "the start of the server")

    def _answers(self) -> bool:
        try:
            with Redis(unix_socket_path=self.path) as client:
                return bool(client.ping())
        except RedisError:
            return False

    def kill(self) -> None:
        """Kill the server."""
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        """End the server."""
        self._stack.close()


@contextmanager
def persistent_server() -> Iterator[PersistentServer]:
    """Run a server with persistence while the block runs."""
    with TemporaryDirectory(prefix="waooaw-") as folder:
        server = PersistentServer(folder)
        server.start()
        try:
            yield server
        finally:
            server.close()


@both
def test_worker_survives_a_restart_of_its_server(tmp_path: Path, kind: str) -> None:
    """A server that is killed and restarted still has the messages, and the same worker runs them all."""
    with persistent_server() as server, plant(server.url, tmp_path, kind, transport_options=SHORT_LEASES) as made:
        node = made.start()
        made.send("before")
        made.wait("before")
        for number in range(10):  # the first runs until the server is back, and is acknowledged then
            made.send(number, 2.0 if number == 0 else 0.3)
        made.wait(0, "began")
        server.kill()
        server.start()
        made.wait(9)
        made.send("after")
        made.wait("after")
        until(lambda: made.held() == 0, "acknowledging")
        assert set(map(str, made.labels())) >= {*map(str, range(10)), "before", "after"}
        assert made.processes[node].poll() is None


@pytest.mark.slow
def test_workers_of_both_transports_share_a_queue(url: str, tmp_path: Path) -> None:
    """A worker on each transport run each task exactly once, whichever transport published it."""
    with plant(url, tmp_path, "ours") as made:
        nodes = [made.start(kind=kind) for kind in ("ours", "kombu")]
        stock = Plant(url, tmp_path, "kombu", made.settings)
        for number in range(100):
            (made if number % 2 else stock).send(number)
        until(lambda: len(made.labels()) >= 100, "all to be run")
        until(lambda: (made.waiting(), made.held()) == ([], 0), "acknowledging")
        assert sorted(made.labels()) == list(range(100))
        assert {fact["worker"] for fact in made.effects("ended")} == set(nodes)
        stock.close()


@pytest.mark.slow
def test_idle_worker_sends_few_commands(tmp_path: Path) -> None:
    """An idle worker sends its server less than four commands a second."""
    with valkey() as url, plant(url, tmp_path, "ours") as made:
        made.start()
        made.send("first")
        made.wait("first")

        def sent() -> int:
            stats = made.redis.info("commandstats")
            return sum(
                int(stats[f"cmdstat_{name}"]["calls"]) for name in WORKER_COMMANDS if f"cmdstat_{name}" in stats
            )

        before, began = sent(), time.monotonic()
        until(lambda: time.monotonic() - began > 4, "four seconds")
        rate = (sent() - before) / (time.monotonic() - began)
        assert 0.5 < rate < 4


#: The commands that a worker sends. The others in the server's statistics are called by scripts.
WORKER_COMMANDS = ("evalsha", "eval", "blpop", "brpop", "ping", "psubscribe", "publish", "multi", "exec", "hello")


def test_worker_reports_its_own_pool_process(worker: tuple[Plant, str]) -> None:
    """A pool process reports its worker as its parent: the tests above rely on it."""
    made, node = worker
    made.send("who")
    made.wait("who")
    [fact] = [fact for fact in made.effects("ended") if fact["label"] == "who"]
    assert fact["worker"] == node
    assert fact["parent"] == made.processes[node].pid
    assert fact["pid"] != os.getpid()
