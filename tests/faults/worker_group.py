"""One queue with its worker, which a test publishes to, kills and accounts for.

The driver appends each id with its outcome to one file, the handlers append their effects to another. Both files
survive every kill. When the fault is over and the queue is empty, the two are compared.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from celery.exceptions import CeleryError
from kombu.exceptions import OperationalError
from process_pool import spawn
from redis import RedisError

from faults.app import QUEUE, WORK, make_app
from faults.servers import Valkey, lone_valkey
from waooaw_celery.broker.redis.dead_lettering import DEAD_LETTERS_KEY
from waooaw_celery.testing.embedded import end

ROOT = Path(__file__).parents[2]

#: Seconds that anything in another process may take.
WAIT_SECONDS = 60.0
#: Messages that the load publishes per second.
RATE = 50.0
#: Seconds that the load's handlers take, in turns, so that faults meet idle and busy workers.
HANDLER_SECONDS = (0.0, 0.01, 0.02, 0.03)
#: Seconds of a lease: short, so that a test can kill many workers.
LEASE = 2.0
#: Seconds for an answer of the server.
TIMEOUT = 2.0
OPTIONS: dict[str, Any] = {
    "visibility_timeout": LEASE,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    # If a worker of plain Celery is killed while it restores messages, its lock stops the others for five minutes.
    "unacked_mutex_expire": 3,
    "socket_timeout": TIMEOUT,
}


class Effect(NamedTuple):
    """One line that a handler recorded: ``begun`` or ``done``, the process, the time, whether redelivered."""

    what: str
    id: str
    pid: int
    at: float
    redelivered: bool


@dataclass
class Account:
    """What became of all messages that were published.

    Attributes:
        published: calls of the publisher.
        accepted: calls that returned.
        unknown: calls that raised an error, which leaves the outcome open.
        handled: messages whose handler returned.
        dead: ids of dead letters.
        lost: ids of accepted messages that are neither handled nor dead.
        twice: messages whose handler returned more than once.
        recoveries: seconds from a worker's death until another worker handled the messages that it held.
        slowest: the longest call of the publisher, in seconds.
    """

    published: int = 0
    accepted: int = 0
    unknown: int = 0
    handled: int = 0
    dead: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    duplicated: int = 0
    recoveries: list[float] = field(default_factory=list)
    slowest: float = 0.0

    def __iadd__(self, other: Account) -> Account:
        """Add the account of another group, whose messages have other ids."""
        for name in ("published", "accepted", "unknown", "handled", "twice"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dead |= other.dead
        self.lost |= other.lost
        self.recoveries += other.recoveries
        self.slowest = max(self.slowest, other.slowest)
        return self


class WorkerGroup:
    """One worker after the other on one queue.

    Args:
        server: the broker.
        folder: for logs and accounts.
        pool: ``prefork`` or ``solo``.
        processes: of the pool.
        name: how the ids of its messages begin; lanes on one server and folder share queue and accounts.
        prefetch: messages that a worker fetches ahead for each process.
        options: further ones of the transport.
    """

    def __init__(
        self,
        server: Valkey,
        folder: Path,
        *,
        pool: str = "prefork",
        processes: int = 1,
        name: str = "m",
        prefetch: int = 1,
        **options: Any,
    ) -> None:
        self.server = server
        self.name = name
        self.log = folder / "worker.log"
        self._effects = folder / "effects"
        self._ledger = folder / "ledger"
        self._command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "faults.app", "worker"]
        self._command += ["-P", pool, "-c", str(processes), "--prefetch-multiplier", str(prefetch)]
        # Neither is of use to a lone worker, and each costs a second.
        self._command += ["--without-mingle", "--without-gossip", "-l", "WARNING"]
        self._options = OPTIONS | options
        self._app = make_app(server.url, **self._options)
        self._count = 0
        self._lock = threading.Lock()
        self._deaths: list[tuple[float, set[str]]] = []
        self._slowest = 0.0
        self.worker: subprocess.Popen[bytes] | None = None

    # --- publishing

    def publish(self, *, seconds: float = 0.0, task: str = WORK) -> str:
        """Publish a message, record the outcome, and return the id.

        Args:
            seconds: how long the handler takes.
            task: name of the handler.
        """
        with self._lock:
            self._count += 1
            id_ = f"{self.name}{self._count}"
        args = (seconds,) if task == WORK else ()
        began = time.monotonic()
        try:
            self._app.send_task(task, args, task_id=id_)
            outcome = "accepted"
        except (OperationalError, CeleryError, RedisError, OSError):
            outcome = "unknown"
        self._slowest = max(self._slowest, time.monotonic() - began)
        _append(self._ledger, f"{id_} {outcome}\n")
        return id_

    @contextmanager
    def load(self, rate: float = RATE) -> Iterator[None]:
        """Publish messages at a steady rate while the block runs.

        Args:
            rate: messages per second.
        """
        over = threading.Event()

        def publish() -> None:
            for seconds in cycle(HANDLER_SECONDS):
                if over.wait(1 / rate):
                    return
                self.publish(seconds=seconds)

        thread = threading.Thread(target=publish, name="load")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "a publisher hangs"

    # --- the worker

    def start(self) -> None:
        """Start a worker, publish a message, and return when the worker has begun any message."""
        env = os.environ | {
            "PYTHONPATH": str(ROOT / "tests"),
            "CELERY_BROKER_URL": self.server.url,
            "FAULTS_OPTIONS": json.dumps(self._options),
            "FAULTS_EFFECTS": str(self._effects),
        }
        began = time.monotonic()
        assert self.worker is None
        self.worker = spawn(self._command, log=self.log, env=env, cwd=ROOT)
        self.publish()
        self.until(lambda: any(effect.at > began for effect in self.effects()), "the start of the worker")

    def send(self, signal_: signal.Signals) -> None:
        """Send a signal to the worker's parent process."""
        assert self.worker is not None
        self.worker.send_signal(signal_)

    def kill(self) -> None:
        """Kill the worker's parent process, and record the messages that it held."""
        assert self.worker is not None
        self.worker.kill()
        self.reap()

    def reap(self) -> None:
        """Wait for the end of the worker, and record the messages that it held."""
        assert self.worker is not None
        worker, self.worker = self.worker, None
        worker.wait(WAIT_SECONDS)
        end(worker)  # and its process group
        self._deaths.append((time.monotonic(), self.held()))

    def until(self, condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until a condition is true.

        Raises:
            AssertionError: the condition was still false after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                end_of_log = self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""
                raise AssertionError(f"{what} did not happen within {seconds:g} s: {end_of_log}")
            time.sleep(0.02)

    def progress(self, seconds: float, what: str) -> None:
        """Wait until any handler returns.

        Args:
            seconds: how long to wait.
            what: what is waited for, for the error.
        """
        now = time.monotonic()
        self.until(
            lambda: any(effect.at > now for effect in self.effects() if effect.what == "done"), what, seconds
        )
        assert self.worker is None or self.worker.poll() is None, "the worker ended"

    # --- accounts

    def effects(self) -> list[Effect]:
        """Return the effects that the handlers recorded."""
        if not self._effects.exists():
            return []
        found = []
        for line in self._effects.read_text().splitlines():
            what, id_, pid, at, redelivered = line.split()
            found.append(Effect(what, id_, int(pid), float(at), redelivered == "1"))
        return found

    def outcomes(self) -> dict[str, str]:
        """Return the outcome of each id: ``accepted`` or ``unknown``."""
        return dict(line.split() for line in self._ledger.read_text().split("\n")[:-1])

    def handled(self, *ids: str) -> bool:
        """Return whether the handlers of all these messages returned."""
        return set(ids) <= {effect.id for effect in self.effects() if effect.what == "done"}

    def redelivered_flags(self, id_: str) -> list[bool]:
        """Return, for each time that a message was begun, whether it was marked as redelivered."""
        return [effect.redelivered for effect in self.effects() if (effect.what, effect.id) == ("begun", id_)]

    def waiting(self) -> list[dict[str, Any]]:
        """Return the messages in the queue."""
        return [json.loads(raw) for raw in self.server.client.lrange(QUEUE, 0, -1)]

    def held(self) -> set[str]:
        """Return the ids of the unacknowledged messages."""
        return {json.loads(noted)[0]["headers"]["id"] for noted in self.server.client.hvals("unacked")}

    def overdue(self) -> set[str]:
        """Return the ids of the messages whose lease has ended."""
        client = self.server.client
        seconds, microseconds = client.time()
        tags = client.zrangebyscore("unacked_index", "-inf", seconds + microseconds / 1e6 - LEASE)
        noted = client.hmget("unacked", tags) if tags else []
        return {json.loads(note)[0]["headers"]["id"] for note in noted if note}

    def dead(self) -> set[str]:
        """Return the ids of the dead letters."""
        found = self.server.client.xrange(DEAD_LETTERS_KEY)
        return {json.loads(letter[b"raw"])["headers"]["id"] for _, letter in found}

    def drain(self, patience: float = WAIT_SECONDS) -> None:
        """Wait until no message waits or is unacknowledged for half a second."""
        empty_since: list[float] = []

        def settled() -> bool:
            if self.server.client.llen(QUEUE) or self.server.client.hlen("unacked"):
                empty_since.clear()
                return False
            empty_since.append(time.monotonic())
            return empty_since[-1] - empty_since[0] > 0.5

        self.until(settled, "an empty queue", patience)

    def account(self) -> Account:
        """Compare the published messages with the handled ones, when the queue is empty."""
        outcomes = self.outcomes()
        ends: dict[str, list[float]] = {}
        for effect in self.effects():
            if effect.what == "done":
                ends.setdefault(effect.id, []).append(effect.at)
        dead = self.dead()
        counts = Counter(outcomes.values())
        recoveries = []
        for died_at, held in self._deaths:
            for id_ in held:
                recoveries += [at - died_at for at in ends.get(id_, ()) if at > died_at][:1]
        return Account(
            published=len(outcomes),
            accepted=counts["accepted"],
            unknown=counts["unknown"],
            handled=len(ends),
            dead=dead,
            lost={id_ for id_, outcome in outcomes.items() if outcome == "accepted"} - ends.keys() - dead,
            duplicated=sum(len(times) > 1 for times in ends.values()),
            recoveries=recoveries,
            slowest=self._slowest,
        )

    def close(self) -> None:
        """End the worker, and close the connections."""
        if self.worker is not None:
            with suppress(ProcessLookupError):
                self.worker.send_signal(signal.SIGCONT)
            self.worker.kill()
            end(self.worker)
        self._app.close()


@contextmanager
def own_worker_group(folder: Path, **options: Any) -> Iterator[WorkerGroup]:
    """Make a worker group on its own server, and close both after the block.

    Args:
        folder: folder for logs and effects.
        options: arguments of `WorkerGroup`.
    """
    with lone_valkey() as server:
        group = WorkerGroup(server, folder, **options)
        try:
            yield group
        finally:
            group.close()


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)
