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
from process_pool import spawn
from proxy import Proxy

from waooaw_celery.embedded import end
from waooaw_celery.worker.health.stall_exit import EXIT_STALLED

#: Seconds between two looks of the supervisor.
LOOK = 0.2


@dataclass(eq=False)
class Post:
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

    posts: list[Post]
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
        for post in self.posts:
            self._start(post)
        self._thread.start()

    def close(self) -> None:
        """End all."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(60)
        for post in self.posts:
            if post.process is not None:
                end(post.process)

    def rss(self) -> float:
        """Return what the workers' parents hold in memory, in MB."""
        return sum(_rss(post.process.pid) for post in self.posts if post.process is not None) / 1e6

    # --- what happens to them

    def hurt(self, chance: random.Random) -> str:
        """Do something to one of them, or to all, and return what."""
        post = chance.choice([post for post in self.posts if post.agent])
        what = chance.choice(["kill child", "kill child", "kill parent", "cut", "cut", "cut all", "cut and kill"])
        with self._lock:
            if what == "cut all":
                for each in self.posts:
                    each.line.cut()
            if what in ("cut", "cut and kill"):
                post.line.cut()
            if what in ("kill child", "cut and kill"):
                self._kill_child(post, chance)
            if what == "kill parent" and post.process is not None and post.process.poll() is None:
                post.killed = True
                post.process.kill()
        self.counts[what] = self.counts.get(what, 0) + 1
        return what

    def _kill_child(self, post: Post, chance: random.Random) -> None:
        if post.process is None or not self._is_ready(post):
            return  # Celery ends a worker whose processes end while it starts
        try:
            children = psutil.Process(post.process.pid).children()
            if children:
                os.kill(chance.choice(children).pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass  # it has ended meanwhile, which is as good

    def _is_ready(self, post: Post) -> bool:
        with self._log(post).open("rb") as log:
            log.seek(post.log_began_at)
            return f"{post.node}@soak ready.".encode() in log.read()

    def _log(self, post: Post) -> Path:
        return self.folder / f"{post.node}.log"

    # --- supervision

    def _supervise(self) -> None:
        while not self._over.wait(LOOK):
            for post in self.posts:
                with self._lock:
                    if post.process is None or post.process.poll() is None:
                        continue
                    if not post.killed:
                        self.ended.append((post.node, post.process.returncode))
                    end(post.process)  # what is left of its group
                    self._start(post)

    def _start(self, post: Post) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "soak.agents", "worker", "-l", "INFO"]
        # Mingle is on: it is one of the places in which a worker can stand.
        command += ["-n", f"{post.node}@soak", "-c", "2" if post.agent else "1", "--without-gossip"]
        broker = f"redis://127.0.0.1:{post.line.port}/0"
        env = os.environ | {
            "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
            "CELERY_BROKER_URL": broker,
            "FAULTS_EFFECTS": str(self.folder / "effects"),
            "FAULTS_WORKER": "",
            "SOAK_NAME": post.agent,
            "SOAK_SETTINGS": json.dumps(self.settings | {"result_backend": broker}),
        }
        if not post.agent:
            command += ["-B", "-s", str(self.folder / f"beat-{time.monotonic_ns()}")]
            env["SOAK_SYSTEM"] = "1"
        log = self._log(post)
        post.killed, post.log_began_at = False, log.stat().st_size if log.exists() else 0
        post.process = spawn(command, log=log, env=env, cwd=self.folder)

    @property
    def stalled(self) -> list[str]:
        """Nodes whose workers ended since they had stalled."""
        return [node for node, code in self.ended if code == EXIT_STALLED]


def _rss(pid: int) -> float:
    try:
        return float(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0
