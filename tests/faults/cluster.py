"""The cluster of a fault test: a broker, an audit database, a driver and workers.

The driver appends each outcome to one file, the handlers append their effects to another. Both files survive every
kill. When a fault is over and all messages have ended, `Cluster.account` compares both with the audit.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from kombu import Connection
from postgres_server import Server as Postgres
from process_pool import spawn
from proxy import Proxy, proxied

from faults import effects
from faults.account import PROGRESS, Account, Outcome, verify
from faults.servers import Server, Valkey
from faults.stacks import Agents, Plain, Stack, environment, new_name
from waooaw_celery.broker.dead_letters.queue import DeadLetterQueue
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.testing.embedded import end

#: Seconds that anything in another process may take on a busy computer.
WAIT_SECONDS = 60.0
#: Messages that the load sends per second.
RATE = 50.0
#: Seconds that the load's handlers take, in turns, so that faults meet idle and busy workers.
HANDLER_SECONDS = (0.0, 0.01, 0.02, 0.03)
#: Seconds without any activity after which messages are counted.
QUIET = 0.7


@dataclass(eq=False)
class Worker:
    """A Celery worker.

    Attributes:
        process: its parent process.
        name: name of its node.
        held: ids of the messages that it had begun and not finished when it died.
        died: when it died, by the monotonic clock.
    """

    process: subprocess.Popen[bytes]
    name: str
    held: set[str] = field(default_factory=set)
    died: float = 0.0


class Cluster:
    """One agent (or one queue of a plain Celery application), with its driver and workers.

    Args:
        is_product: whether it is an agent, or a plain Celery application.
        broker: its broker.
        postgres: the server of its audit, in which it gets its own database.
        folder: folder for its files.
        lines: whether the driver and the workers reach the broker through proxies, one each.
        processes: size of a worker's pool.
    """

    def __init__(
        self,
        is_product: bool,
        broker: Server,
        postgres: Postgres,
        folder: Path,
        *,
        lines: bool = False,
        processes: int = 2,
        **settings: Any,
    ) -> None:
        self.broker, self.postgres, self.folder, self.processes = broker, postgres, folder, processes
        self.rabbitmq = not isinstance(broker, Valkey)
        name = new_name()
        postgres.run(f"CREATE DATABASE {name}")
        self._database = name
        url = database_url(postgres.url).set(database=name).render_as_string(hide_password=False)
        self._exits = ExitStack()
        self.driver_proxy = self._line() if lines else None
        self.worker_proxy = self._line() if lines else None
        driver_url = self._url_through(self.driver_proxy)
        self.stack: Stack = (
            Agents(name, driver_url, url, folder, **settings)
            if is_product
            else Plain(name, driver_url, url, folder)
        )
        self.stack.prepare()
        self.workers: list[Worker] = []
        self.reaped: list[Worker] = []
        self.outcomes: dict[str, Outcome] = {}
        self.broken: list[str] = []
        self.probes: list[float] = []
        self._known: set[str] = set()
        self._effects = folder / f"effects-{name}"
        self._ledger = (folder / f"driver-{name}").open("a", buffering=1)
        self._nodes = 0

    @property
    def is_product(self) -> bool:
        """Return whether the workers run agents of the product."""
        return self.stack.is_product

    # --- sending

    def send(self, do: str = "work", seconds: float = 0.0, *, ttl: float | None = 300.0, **more: Any) -> str:
        """Send a message, record the outcome, and return the id.

        Args:
            do: what the handler does, see `effects.act`.
            seconds: how long the handler takes.
            ttl: seconds after which the message expires; None: never.
            more: further values of the payload.
        """
        return self.send_payload({"do": do, "seconds": seconds, **more}, ttl=ttl)

    def send_payload(self, payload: Any, *, ttl: float | None = 300.0, id_: str | None = None) -> str:
        """Send a message with any payload, record the outcome, and return the id."""
        id_ = id_ or str(uuid4())
        began = time.monotonic()
        try:
            self.stack.send(id_, payload, ttl)
            what, reason = "accepted", ""
        except self.stack.uncertain as error:
            what = "unknown" if getattr(error, "uncertain", True) else "refused"
            reason = type(error).__name__
        except self.stack.refusing as error:
            what, reason = "refused", type(error).__name__
        except Exception as error:  # noqa: BLE001 - an undocumented error is a violation
            what, reason = "broke", f"{type(error).__name__}: {error}"
        self.note(id_, Outcome(what, reason, time.monotonic() - began))
        return id_

    def note(self, id_: str, outcome: Outcome) -> None:
        """Record the outcome of a message."""
        self.outcomes[id_] = outcome
        self._ledger.write(f"{id_} {outcome.what} {outcome.reason!r} {outcome.seconds:.3f}\n")

    @contextmanager
    def load(self, rate: float = RATE, *, ttl: float | None = 300.0, **more: Any) -> Iterator[None]:
        """Send messages at a steady rate while the block runs.

        Args:
            rate: messages per second.
            ttl: seconds after which each message expires; None: never.
            more: further values of the payloads.
        """
        over = threading.Event()

        def send() -> None:
            for seconds in cycle(HANDLER_SECONDS):
                if over.wait(1 / rate):
                    return
                self.send(seconds=seconds, ttl=ttl, **more)

        thread = threading.Thread(target=send, name="load")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "a driver hangs"

    # --- workers

    def start(
        self,
        *options: str,
        env: dict[str, str] | None = None,
        may_die: bool = False,
        mingle: bool = False,
        **settings: Any,
    ) -> Worker:
        """Start a worker, and return it when it consumes.

        Args:
            options: options of ``celery worker``.
            mingle: whether it looks for other workers when it connects, as workers do by default.
            env: further environment variables.
            may_die: also return if it has ended because of its first message.
            settings: settings of the application; None: the setting's default.
        """
        self._nodes += 1
        name = f"{self.stack.name}-{self._nodes}"
        command, own = self.stack.worker(self._url_through(self.worker_proxy), settings)
        command = [*command, "-n", f"{name}@faults", "-c", str(self.processes), "-l", "WARNING"]
        # A single worker needs neither, and each takes a second.
        command += [*([] if mingle else ["--without-mingle"]), "--without-gossip", *options]
        began = time.monotonic()
        process = spawn(
            command,
            log=self.folder / f"{name}.log",
            env=environment(self.stack, self._effects) | own | (env or {}),
            cwd=self.folder,
        )
        worker = Worker(process, name)
        self.workers.append(worker)
        others = len(self.workers) > 1
        sent: list[str] = []

        def consumes() -> bool:
            if process.poll() is not None:
                if may_die:
                    return True
                raise AssertionError(f"{name} did not start: {self.log(worker)}")
            if others and len(sent) < 100 and time.monotonic() - began > 0.1 * len(sent):
                sent.append(self.send(ttl=None))  # until this worker gets one
            mine = descendants(process.pid)
            return any(effect.at > began and effect.pid in mine for effect in self.effects())

        self.send(ttl=None)
        self.until(consumes, f"the start of {name}")
        return worker

    def kill(self, worker: Worker | None = None) -> Worker:
        """Kill the parent process of a worker, by default of the last one. Its pool ends with it."""
        worker = worker or self.workers[-1]
        worker.process.kill()
        return self.reap(worker)

    def reap(self, worker: Worker, patience: float = WAIT_SECONDS) -> Worker:
        """Wait for the end of a worker, and record the messages that it held."""
        worker.process.wait(patience)
        worker.died = time.monotonic()
        end(worker.process)  # and its process group
        self.workers.remove(worker)
        open_: dict[str, int] = {}
        for effect in self.effects():
            open_[effect.id] = open_.get(effect.id, 0) + (1 if effect.what == "begun" else -1)
        worker.held = {id_ for id_, count in open_.items() if count > 0}
        self.reaped.append(worker)
        return worker

    def log(self, worker: Worker) -> str:
        """Return the end of a worker's log."""
        file = self.folder / f"{worker.name}.log"
        return file.read_text(errors="replace")[-2000:] if file.exists() else ""

    @contextmanager
    def system(self) -> Iterator[None]:
        """Run the system's worker with beat while the block runs: it sweeps and recovers."""
        command, own = self.stack.worker(self.broker.url, {})
        command += ["-B", "-s", str(self.folder / "beat"), "-n", f"{self.stack.name}-system@faults"]
        command += ["-c", "1", "-l", "INFO", "--without-mingle", "--without-gossip"]
        env = environment(self.stack, self._effects) | own | {"FAULTS_SYSTEM": "1"}
        log = self.folder / f"{self.stack.name}-system.log"
        process = spawn(command, log=log, env=env, cwd=self.folder)
        try:
            yield
            assert process.poll() is None, f"the system's worker ended: {log.read_text()[-2000:]}"
        finally:
            end(process)

    # --- waiting

    def until(self, condition: Callable[[], object], what: str, seconds: float | None = None) -> None:
        """Wait until a condition is true. With plain Celery, wait a quarter of the time.

        Raises:
            AssertionError: the condition was still false at the end.
        """
        seconds = seconds or (WAIT_SECONDS if self.is_product else WAIT_SECONDS / 4)
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "".join(self.log(worker) for worker in self.workers[-1:])
                raise AssertionError(f"{what} did not happen within {seconds:g} s: {logs}")
            time.sleep(0.05)

    def effects(self) -> list[effects.Effect]:
        """Return all effects that the handlers recorded."""
        return effects.read(self._effects)

    def handled(self, *ids: str) -> bool:
        """Return whether the handlers of all these messages returned."""
        return set(ids) <= {effect.id for effect in self.effects() if effect.what == "done"}

    def begun(self, id_: str) -> int:
        """Return how often a message was begun."""
        return sum(effect.what == "begun" and effect.id == id_ for effect in self.effects())

    def fix_handlers(self) -> None:
        """Make the handlers that 'fail at first' succeed from now on."""
        Path(f"{self._effects}.fixed").touch()

    def dead_letter_queue(self) -> DeadLetterQueue:
        """Return the dead-letter queue of the agent's broker."""
        assert isinstance(self.stack, Agents)
        return self.stack.app.dead_letters

    def ended(self, id_: str) -> bool:
        """Return whether the audit has a final event of a message."""
        return id_ in self.stack.ends()

    def expect(self, true: bool, otherwise: str) -> None:
        """Record a violation, in addition to the invariants, if a condition is false."""
        if not true:
            self.broken.append(otherwise)

    def accept_other_messages(self) -> None:
        """Leave the messages that others sent, such as workflows, out of the account; the fault checks them."""
        self._known |= self.stack.rows() - self.outcomes.keys()

    def waiting(self) -> int:
        """Return how many messages are in the queue, and on Redis also how many are held by consumers."""
        with Connection(self.broker.url) as connection, connection.channel() as channel:
            if self.rabbitmq:
                with suppress(channel.connection.channel_errors):
                    found: Any = channel.queue_declare(self.stack.queue(), passive=True)
                    count: int = found.message_count
                    return count
                return 0
        client: Any = self.broker.client  # type: ignore[attr-defined]
        queue = self.stack.queue()
        lists = [queue, *(f"{queue}\x06\x16{priority}" for priority in (3, 6, 9))]
        return sum(int(client.llen(list_)) for list_ in lists) + int(client.hlen("unacked"))

    def probe(self) -> float:
        """Send a message after a fault, and return the seconds until work resumes (infinite: never).

        Work has resumed when any message is handled: the one just sent may wait behind a backlog.
        """
        began = time.monotonic()
        while True:
            id_ = self.send(ttl=None)
            if self.outcomes[id_].what == "accepted" or time.monotonic() - began > PROGRESS:
                break
            time.sleep(0.1)
        took = float("inf")
        with suppress(AssertionError):
            self.until(lambda: self._done_since(began), "work", 2 * PROGRESS if self.is_product else PROGRESS)
            took = time.monotonic() - began
        self.probes.append(took)
        return took

    def _done_since(self, since: float) -> bool:
        return any(effect.what == "done" and effect.at > since for effect in self.effects())

    def drain(self, patience: float | None = None) -> None:
        """Wait until no message waits or runs and all have a final event, but at most for ``patience`` seconds."""
        deadline = time.monotonic() + (patience or (WAIT_SECONDS if self.is_product else WAIT_SECONDS / 4))
        quiet_since, maintained_at, seen = time.monotonic(), 0.0, -1
        while time.monotonic() < deadline:
            found = self.effects()
            now = time.monotonic()
            if now - maintained_at > 1:
                self.stack.run_maintenance()
                maintained_at = now
            if len(found) != seen or self.waiting() or self.pending():
                quiet_since, seen = now, len(found)
            elif now - quiet_since > QUIET:
                return
            time.sleep(0.1)

    def pending(self) -> set[str]:
        """Return the ids of messages that were, or may have been, accepted and have no final event yet."""
        if not self.is_product:
            return set()
        wanted = {id_ for id_, outcome in self.outcomes.items() if outcome.what in ("accepted", "unknown")}
        return wanted - self.stack.ends().keys()

    # --- accounts

    def account(self) -> Account:
        """Return the account of the messages that were sent since the last account."""
        outcomes, self.outcomes = self.outcomes, {}
        noted = [effect for effect in self.effects() if effect.id in outcomes]
        account = verify(outcomes, noted, self.stack.ends(), self.stack.rows(), self._known)
        ends: dict[str, list[float]] = {}
        for effect in noted:
            if effect.what == "done":
                ends.setdefault(effect.id, []).append(effect.at)
        for worker in self.reaped:
            for id_ in worker.held:
                account.recoveries += [at - worker.died for at in ends.get(id_, ()) if at > worker.died][:1]
        account.probes, self.probes = self.probes, []
        account.broken, self.broken = self.broken, []
        self.reaped = []
        self._known |= outcomes.keys()
        return account

    def close(self) -> None:
        """End all workers, and drop the database."""
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGCONT)
            worker.process.kill()
            end(worker.process)
        with closing(self._ledger):
            self.stack.close()
        self._exits.close()
        with suppress(Exception):
            self.postgres.run(f"DROP DATABASE {self._database} WITH (FORCE)")

    def _line(self) -> Proxy:
        return self._exits.enter_context(proxied(self.broker.url))

    def _url_through(self, line: Proxy | None) -> str:
        return self.broker.url if line is None else line.url


def descendants(pid: int) -> Sequence[int]:
    """Return the process ids of a worker and its children."""
    try:
        parent = psutil.Process(pid)
        return [pid, *(child.pid for child in parent.children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]
