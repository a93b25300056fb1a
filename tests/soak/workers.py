"""The workers of a soak, and who supervises them: one that ends is started again."""

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
from nursery import spawn
from proxy import Proxy

from waooaw_celery.embedded import end
from waooaw_celery.worker.health.stall_exit import EXIT_STALLED

#: Seconds between two looks of the supervisor.
POLL_SECONDS = 0.2


@dataclass(eq=False)
class WorkerSlot:
    """A place of the fleet, on which one worker after the other serves.

    Attributes:
        node: name of the node.
        agent: that its workers serve; empty: the system's worker.
        line: to the broker.
        process: the worker that serves now.
        killed: whether its process was killed by the soak.
        log_began_at: where the log of its process begins in the log of the place, in bytes.
    """

    node: str
    agent: str
    line: Proxy
    process: subprocess.Popen[bytes] | None = None
    killed: bool = False
    log_began_at: int = 0


@dataclass
class Fleet:
    """Workers, each with a line to the broker of its own.

    Args:
        posts: the places.
        settings: of every application.
        folder: for logs and effects.

    Attributes:
        counts: how often something was done to them.
        ended: workers that came to an end by themselves: node and exit code.
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
        """End all."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(60)
        for slot in self.slots:
            if slot.process is not None:
                end(slot.process)

    def rss(self) -> float:
        """Return what the workers' parents hold in memory, in MB."""
        return sum(_rss(slot.process.pid) for slot in self.slots if slot.process is not None) / 1e6

    # --- what happens to them

    def inject_fault(self, rng: random.Random) -> str:
        """Do something to one of them, or to all, and return what."""
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
            return  # Celery ends a worker whose processes end while it starts
        try:
            children = psutil.Process(slot.process.pid).children()
            if children:
                os.kill(rng.choice(children).pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass  # it has ended meanwhile, which is as good

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
                    end(slot.process)  # what is left of its group
                    self._start(slot)

    def _start(self, slot: WorkerSlot) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "soak.agents", "worker", "-l", "INFO"]
        # Mingle is on: it is one of the places in which a worker can stand.
        command += ["-n", f"{slot.node}@soak", "-c", "2" if slot.agent else "1", "--without-gossip"]
        broker = f"redis://127.0.0.1:{slot.line.port}/0"
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
        """Nodes whose workers ended since they had stalled."""
        return [node for node, code in self.ended if code == EXIT_STALLED]


def _rss(pid: int) -> float:
    try:
        return float(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0
