"""Measures how fast a worker empties a full queue."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.suite.row import Sample
from waooaw_celery.testing.embedded import end, spawn

ROOT = Path(__file__).parents[2]
#: Seconds after which a sample has failed.
DEADLINE_SECONDS = 180.0


@dataclass(frozen=True)
class Emptying:
    """A queue, and a worker that empties it.

    Attributes:
        fill: puts so many messages into the queue.
        depth: returns how many of them are not handled yet.
        clear: empties the queue after a sample.
        command: the worker.
        env: what its environment has beside this process's.
    """

    fill: Callable[[int], object]
    depth: Callable[[], int]
    clear: Callable[[], object]
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)

    def sample(self, messages: int, log: Path) -> Sample:
        """Add messages to the queue, and return the rate of the worker between a tenth and nearly all of them.

        What starting and stopping cost does not count.
        """
        self.clear()
        self.fill(messages)
        depth = self.depth()
        worker = spawn(list(self.command), log=log, env={**os.environ, **self.env}, cwd=ROOT)
        try:
            first, began = self._wait(worker, depth - messages * 0.1, log)
            processor = processor_seconds(worker.pid)
            last, ended = self._wait(worker, depth - messages * 0.98, log)
            processor = processor_seconds(worker.pid) - processor
            return Sample((first - last) / (ended - began), processor / (first - last) * 1e6)
        finally:
            end(worker)
            self.clear()

    def memory(self, messages: int, log: Path) -> Sample:
        """Fill the queue, and return the memory of the worker in MB once it has handled nearly all messages."""
        self.clear()
        self.fill(messages)
        worker = spawn(list(self.command), log=log, env={**os.environ, **self.env}, cwd=ROOT)
        try:
            self._wait(worker, messages * 0.02, log)
            return Sample(_resident_bytes(worker.pid) / 1e6)
        finally:
            end(worker)
            self.clear()

    def _wait(self, worker: subprocess.Popen[bytes], bound: float, log: Path) -> tuple[int, float]:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (depth := self.depth()) > bound:
            if time.monotonic() > deadline or worker.poll() is not None:
                raise SystemExit(f"the worker makes no progress:\n{log.read_text()[-2000:]}")
            time.sleep(0.01)
        return depth, time.perf_counter()


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process and its living children."""
    total, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            total += sum(map(int, fields[11:15])) / ticks
    return total


def _resident_bytes(pid: int) -> int:
    """Return the memory of a process that is not swapped out."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
