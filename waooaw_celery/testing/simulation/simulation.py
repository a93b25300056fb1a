"""Lets happen what is due, in order: the messages, the workflows, beat, and the time that passes between them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from waooaw_celery.errors import NotSettled
from waooaw_celery.testing.clock import Clock
from waooaw_celery.testing.memory.broker import MemoryBroker
from waooaw_celery.testing.simulation.beat import Beat
from waooaw_celery.testing.simulation.worker import InProcessWorker, Threads

#: Seconds of real time after which a run is given up.
RUN_SECONDS = 30.0
#: Steps of one run after which it is given up: agents send each other messages without end.
MAX_STEPS = 100_000
#: What is due within so many seconds happens in the same run: the window of a batch, a short sleep.
SOON_SECONDS = 0.1
#: Seconds between two looks at what other threads do, and without any event before time passes by itself.
_LOOK_SECONDS, _QUIET_SECONDS = 0.002, 0.05


class Simulation:
    """The workers, the workflows, beat and the clock of one harness.

    Args:
        broker: the broker.
        workers: a worker of each application.
        threads: the threads that handle messages.

    Attributes:
        renew: declares the agents and handlers that were added; called before messages are handled.
    """

    def __init__(self, broker: MemoryBroker, workers: Sequence[InProcessWorker], threads: Threads) -> None:
        self._broker, self._workers, self._threads_that_work = broker, workers, threads
        self.renew: Callable[[], None] = lambda: None
        self.clock = Clock(self.move)
        self._beats = [Beat(worker.app) for worker in workers]
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None

    # --- for the test

    def run(self) -> None:
        """Handle all messages, and let all workflows go on, until nothing more can happen at this time.

        Raises:
            NotSettled: that takes too long.
        """
        self.renew()
        ends_at, steps = time.monotonic() + RUN_SECONDS, 0
        while not self._closed.is_set() and (self._step() or self._pass_time_until(time.time() + SOON_SECONDS)):
            steps += 1
            if time.monotonic() > ends_at or steps > MAX_STEPS:
                raise NotSettled(
                    f"the agents did not come to rest within {RUN_SECONDS:g} s and {steps} steps: a handler waits "
                    "for something that does not happen, or agents answer each other without end"
                )
        self._raise_error()

    def move(self, until: datetime) -> None:
        """Let time pass up to a moment, and everything happen that is due before it, in order."""
        since = self.clock.now()
        self.run()
        while self._pass_time_until(until.timestamp()):
            self.run()
        self.clock.set(until)
        for worker in self._workers:
            worker.read_cancellations()
        self.run()
        self._beats[0].maintain(since)  # the applications share a ledger
        self.run()

    def sleep(self, seconds: float) -> None:
        """Let that much time pass by the clock of the test, and what is due meanwhile happen."""
        ends_at, gives_up_at = time.time() + seconds, time.monotonic() + RUN_SECONDS
        with self._threads_that_work.noted(works=False):
            while time.time() < ends_at and time.monotonic() < gives_up_at:
                if not self._step() and not self._pass_time_until(ends_at):
                    self.clock.set(datetime.fromtimestamp(ends_at, UTC))

    def close(self) -> None:
        """End the threads that handle messages for coroutines."""
        self._closed.set()
        for thread in self._threads:
            thread.join(5.0)
        self._raise_error()

    # --- for whoever waits for an answer

    def handle_until(self, done: Callable[[], bool], seconds: float | None) -> bool:
        """Handle messages in this thread until something is done, and return whether it is.

        While nothing else can happen, time passes up to what is due next, and at last up to the end of the wait.

        Args:
            done: whether the wait is over.
            seconds: how long to wait, by the clock of the test, and also in real time; None: until it is done.
        """
        self.renew()
        ends_at = None if seconds is None else time.time() + seconds
        gives_up_at = time.monotonic() + (RUN_SECONDS if seconds is None else seconds)
        with self._threads_that_work.noted(works=False):
            while not done():
                is_late = ends_at is not None and time.time() > ends_at
                if is_late or time.monotonic() > gives_up_at:
                    return False
                if self._step() or self._pass_time_until(float("inf") if ends_at is None else ends_at):
                    continue
                if ends_at is not None:
                    self.clock.set(datetime.fromtimestamp(ends_at, UTC))
                return done()
        return True

    def handle_in_background(self, done: Callable[[], bool]) -> None:
        """Handle messages in another thread until something is done."""
        thread = threading.Thread(target=self._handle, args=(done,), name="waooaw-testing", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _handle(self, done: Callable[[], bool]) -> None:
        quiet_since = time.monotonic()
        try:
            while not done() and not self._closed.is_set():
                if self._step():
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since < _QUIET_SECONDS:
                    time.sleep(_LOOK_SECONDS)
                else:  # who waits has no way to let time pass
                    self._pass_time_until(float("inf"))
                    quiet_since = time.monotonic()
        except BaseException as error:  # noqa: BLE001 - the next run raises it in the thread of the test
            self._error = error

    def _step(self) -> bool:
        """Let one thing happen that can happen now, and return whether there was one."""
        if self._handle_next():
            return True
        if self._threads_that_work.others_work() or self._workflows_go_on():
            time.sleep(_LOOK_SECONDS)
            return True
        return self._handle_next()  # a workflow may have sent it just now

    def _handle_next(self) -> bool:
        return any(worker.handle_next() for worker in self._workers)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    # --- time and workflows

    def _pass_time_until(self, limit: float) -> bool:
        """Move the clock to what is due next, and return whether that is not later than a limit."""
        beats = {beat: beat.next_due() for beat in self._beats}
        times = [
            self._broker.next_visible(),
            *(worker.timers.next_due() for worker in self._workers),
            *(_next_wake(engine) for engine in self._engines()),
            *(None if due is None else due.timestamp() for due in beats.values()),
        ]
        due = min((each for each in times if each is not None), default=None)
        if due is None or due > limit:
            return False
        self.clock.set(datetime.fromtimestamp(due, UTC))
        for beat, at in beats.items():
            if at is not None and at.timestamp() <= due:
                beat.tick()
        return True

    def _engines(self) -> list[Any]:
        """Return the engines of the workflows, of the applications that have some."""
        apps = [worker.app for worker in self._workers if worker.app.workflows]
        if not apps:
            return []
        from waooaw_celery.workflows.engine.engine import engine_of

        return [engine_of(app) for app in apps]

    def _workflows_go_on(self) -> bool:
        """Have the workflows that are due go on, and return whether one does."""
        return any(self._goes_on(engine) for engine in self._engines())

    def _goes_on(self, engine: Any) -> bool:
        engine.start()
        going: bool = asyncio.run_coroutine_threadsafe(engine.look(), engine.loop).result(RUN_SECONDS)
        return going


def _next_wake(engine: Any) -> float | None:
    """Return when a workflow is due without an input, in seconds since 1970; None: none is, or it is already."""
    wake = engine.journal.next_wake()
    return None if wake is None or wake.timestamp() <= time.time() else float(wake.timestamp())
