"""Compares subjects that differ by a few per cent: their processes take turns in short slices of time.

On a shared computer, the speed changes within seconds: in turns of a quarter of a second, it changes for all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.suite.row import Sample, Subject
from benchmarks.suite.workers import DEADLINE_SECONDS, ROOT, Emptying, processor_seconds
from waooaw_celery.testing.embedded import end, spawn

#: Seconds of a slice.
SLICE_SECONDS = 0.25


@dataclass
class Work:
    """What a subject has done: messages, the seconds in which it ran, and its seconds of processor time."""

    messages: float = 0.0
    seconds: float = 0.0
    processor: float = 0.0

    @property
    def sample(self) -> Sample:
        """The rate, and microseconds of processor time for each message."""
        return Sample(self.messages / self.seconds, self.processor / self.messages * 1e6)


class Sliced(Protocol):
    """A subject that works in slices."""

    def begin(self) -> None:
        """Start its process, and let it warm up."""

    def run(self, seconds: float) -> None:
        """Work for some seconds."""

    def end(self) -> Work:
        """Stop, and return what was done in the slices."""


def in_turns(subjects: Mapping[str, Sliced], seconds: float) -> dict[str, Subject]:
    """Return subjects of a group. When the first of a round is asked for its sample, all of them are measured.

    Args:
        subjects: the subjects by name.
        seconds: how long each works in a round.
    """
    ready: dict[str, Sample] = {}

    def measure() -> None:
        try:
            for each in subjects.values():
                each.begin()
            order = list(subjects.values())
            for number in range(max(round(seconds / SLICE_SECONDS), 2)):
                for each in order if number % 2 else reversed(order):
                    each.run(SLICE_SECONDS)
        finally:
            done = {name: each.end() for name, each in subjects.items()}
        ready.update({name: work.sample for name, work in done.items()})

    def subject(name: str) -> Subject:
        def sample() -> Sample:
            if name not in ready:
                measure()
            return ready.pop(name)

        return sample

    return {name: subject(name) for name in subjects}


class Sender:
    """A process that sends while it is asked to: it reads seconds, and writes what it did (``monitored_sender``).

    Args:
        command: the process.
        env: what its environment has beside this process's.
        clear: empties the queue.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], clear: Callable[[], object]) -> None:
        self._command, self._env, self._clear = command, env, clear
        self._process: subprocess.Popen[str] | None = None
        self._work = Work()

    def begin(self) -> None:
        """Start the process, and send for a second."""
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            self._command,
            env={**os.environ, **self._env},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run(1.0)
        self._work = Work()

    def run(self, seconds: float) -> None:
        """Send for some seconds."""
        assert self._process is not None  # noqa: S101 - begin was called
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        done = json.loads(self._process.stdout.readline())
        self._work.messages += done["sent"]
        self._work.seconds += done["seconds"]
        self._work.processor += done["processor"]
        self._clear()

    def end(self) -> Work:
        """End the process."""
        if self._process is not None:
            self._process.communicate(timeout=DEADLINE_SECONDS)
            self._process = None
        return self._work


class Handler:
    """A worker that empties a queue, and is stopped between its slices.

    Args:
        emptying: the queue and the worker.
        messages: how many messages are put into the queue; it must not become empty.
        log: the worker's log.
    """

    def __init__(self, emptying: Emptying, messages: int, log: Path) -> None:
        self._emptying, self._messages, self._log = emptying, messages, log
        self._worker: subprocess.Popen[bytes] | None = None
        self._depth = 0
        self._seconds = self._processor = 0.0

    def begin(self) -> None:
        """Fill the queue, start the worker, and stop it once it has handled a tenth."""
        emptying = self._emptying
        emptying.clear()
        emptying.fill(self._messages)
        self._worker = spawn(list(emptying.command), log=self._log, env={**os.environ, **emptying.env}, cwd=ROOT)
        ends_at = time.monotonic() + DEADLINE_SECONDS
        while emptying.depth() > self._messages * 0.9:
            if time.monotonic() > ends_at or self._worker.poll() is not None:
                raise SystemExit(f"the worker makes no progress:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.01)
        self._worker.send_signal(signal.SIGSTOP)
        self._depth, self._processor, self._seconds = emptying.depth(), processor_seconds(self._worker.pid), 0.0

    def run(self, seconds: float) -> None:
        """Let the worker work for some seconds."""
        assert self._worker is not None  # noqa: S101 - begin was called
        began = time.perf_counter()
        self._worker.send_signal(signal.SIGCONT)
        time.sleep(seconds)
        self._worker.send_signal(signal.SIGSTOP)
        self._seconds += time.perf_counter() - began

    def end(self) -> Work:
        """End the worker."""
        if self._worker is None:
            return Work()
        left = self._emptying.depth()
        processor = processor_seconds(self._worker.pid) - self._processor
        self._worker.send_signal(signal.SIGCONT)
        end(self._worker)
        self._worker = None
        self._emptying.clear()
        if left == 0:
            raise SystemExit(f"the queue of {self._messages} messages is empty: measure with more")
        return Work(self._depth - left, self._seconds, processor)
