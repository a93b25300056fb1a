"""The workers of a soak, and their supervisor, which restarts a worker that ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from faults.stacks import ROOT
from process_pool import spawn
from proxy import Proxy

from waooaw_celery.testing.embedded import end
from waooaw_celery.worker.health.stall_exit import EXIT_STALLED

#: Seconds between two checks of the supervisor.
POLL_SECONDS = 0.2


@dataclass(eq=False)
class WorkerSlot:
    """A slot, in which a new worker is started whenever the last one ends.

    Attributes:
        node: name of the node.
        agent: the agent that its workers run; empty: the system's worker.
        line: the proxy through which it connects to the broker.
        process: the current worker.
        killed: whether the soak killed that worker.
        log_began_at: offset in bytes at which the current worker's output begins in the slot's log.
    """

    node: str
    agent: str
    line: Proxy
    process: subprocess.Popen[bytes] | None = None
    killed: bool = False
    log_began_at: int = 0


@dataclass
class Fleet:
    """Workers, each of which connects to the broker through its own proxy.

    Args:
        slots: the slots.
        settings: settings of every application.
        folder: folder for logs and effects.

    Attributes:
        counts: how often each fault was injected.
        ended: node and exit code of workers that ended without being killed.
    """

    slots: list[WorkerSlot]
    settings: dict[str, Any]
    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    ended: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._supervise, name="supervisor")

    def start(self) -> None:
        """Start the workers and their supervisor."""
        for slot in self.slots:
            self._start(slot)
        self._thread.start()

    def close(self) -> None:
        """End the supervisor and all workers."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(60)
        for slot in self.slots:
            if slot.process is not None:
                end(slot.process)

    def rss(self) -> float:
        """Return the memory of the workers' parent processes, in MB."""
        return sum(_rss(slot.process.pid) for slot in self.slots if slot.process is not None) / 1e6

    # --- faults

    def inject_fault(self, rng: random.Random) -> str:
        """Inject a random fault into one worker, or into all, and return its name."""
        slot = rng.choice([slot for slot in self.slots if slot.agent])
        what = rng.choice(["kill child", "kill child", "kill parent", "cut", "cut", "cut all", "cut and kill"])
        with self._lock:
            if what == "cut all":
                for each in self.slots:
                    each.line.cut()
            if what in ("cut", "cut and kill"):
                slot.line.cut()
            if what in ("kill child", "cut and kill"):
                self._kill_child(slot, rng)
            if what == "kill parent" and slot.process is not None and slot.process.poll() is None:
                slot.killed = True
                slot.process.kill()
        self.counts[what] = self.counts.get(what, 0) + 1
        return what

    def _kill_child(self, slot: WorkerSlot, rng: random.Random) -> None:
        if slot.process is None or not self._is_ready(slot):
            return  # Celery ends a worker whose pool processes die during its start
        try:
            children = psutil.Process(slot.process.pid).children()
            if children:
                os.kill(rng.choice(children).pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass  # it has just ended

    def _is_ready(self, slot: WorkerSlot) -> bool:
        with self._log(slot).open("rb") as log:
            log.seek(slot.log_began_at)
            return f"{slot.node}@soak ready.".encode() in log.read()

    def _log(self, slot: WorkerSlot) -> Path:
        return self.folder / f"{slot.node}.log"

    # --- supervision

    def _supervise(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            for slot in self.slots:
                with self._lock:
                    if slot.process is None or slot.process.poll() is None:
                        continue
                    if not slot.killed:
                        self.ended.append((slot.node, slot.process.returncode))
                    end(slot.process)  # and its process group
                    self._start(slot)

    def _start(self, slot: WorkerSlot) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "soak.agents", "worker", "-l", "INFO"]
        # Mingle is on, because a worker can hang in it.
        command += ["-n", f"{slot.node}@soak", "-c", "2" if slot.agent else "1", "--without-gossip"]
        broker = slot.line.url
        env = os.environ | {
            "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
            "CELERY_BROKER_URL": broker,
            "FAULTS_EFFECTS": str(self.folder / "effects"),
            "FAULTS_WORKER": "",
            "SOAK_NAME": slot.agent,
            "SOAK_SETTINGS": json.dumps(self.settings | {"result_backend": broker}),
        }
        if not slot.agent:
            command += ["-B", "-s", str(self.folder / f"beat-{time.monotonic_ns()}")]
            env["SOAK_SYSTEM"] = "1"
        log = self._log(slot)
        slot.killed, slot.log_began_at = False, log.stat().st_size if log.exists() else 0
        slot.process = spawn(command, log=log, env=env, cwd=self.folder)

    @property
    def stalled(self) -> list[str]:
        """Return the nodes whose workers ended because they had stalled."""
        return [node for node, code in self.ended if code == EXIT_STALLED]


def _rss(pid: int) -> float:
    try:
        return float(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0
