"""Watches a worker from a thread of its own, and ends it when it has stalled, so that a new one replaces it."""

from __future__ import annotations

import logging
import sys
import threading
import time
from functools import partial
from typing import Any

from celery import bootsteps
from celery.bootsteps import CLOSE, RUN, TERMINATE  # type: ignore[attr-defined]  # its stubs lack them
from celery.worker import state
from kombu import Queue

from waooaw_celery.broker.redis.leases import renewal as lease
from waooaw_celery.messages.queues import queue_depth
from waooaw_celery.settings import OnStall
from waooaw_celery.worker.execution.running_requests import calls_handler
from waooaw_celery.worker.health import native_thread as native
from waooaw_celery.worker.health import stall_exit as ending
from waooaw_celery.worker.health.heartbeat import Heartbeat
from waooaw_celery.worker.health.progress import Progress, Snapshot
from waooaw_celery.worker.health.stall import TURN, Loop, StallDetector

logger = logging.getLogger(__name__)

#: Seconds between two looks at most.
INTERVAL = 1.0
#: Looks within ``waooaw_stall_seconds`` at least.
LOOKS = 10


class LoopBeat:
    """Whether the event loop of the thread that consumes turns: it is asked to call back."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._restarts = -1

    def silent(self, now: float, consumer: Any) -> float:
        """Ask again if it has answered, and return for how many seconds it has not."""
        asked_at = self._asked_at
        if asked_at is None:
            self._asked_at = asked_at = now
            self._ask(consumer)
        elif self._restarts != consumer.restart_count:  # what it was to call may have gone with its connection
            self._ask(consumer)
        return now - asked_at

    def _ask(self, consumer: Any) -> None:
        self._restarts = consumer.restart_count
        consumer.call_soon(self._answer)

    def _answer(self) -> None:
        self._asked_at = None


class Watchdog(bootsteps.StartStopStep):
    """Bootstep of the worker that looks for progress every second, and acts when there is none.

    It has a thread of the operating system and a connection to the broker of its own: what it watches cannot hold
    it up, except native code that keeps Python's lock.
    """

    requires = (Heartbeat,)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._stopped = False
        self._reason: str | None = None
        self._failed = False
        self._connection: Any = None

    def create(self, parent: Any) -> None:
        """Have the heartbeat tell what the worker does."""
        parent.heartbeat_report.add("stalled", lambda: self._reason)

    def start(self, parent: Any) -> None:
        """Begin to watch."""
        self._worker = parent
        self._seconds = parent.app.settings.stall_seconds
        self._interval = min(INTERVAL, self._seconds / LOOKS)
        self._thread = native.thread_id()
        # Where a program runs a worker inside of it, the program is not ours to end.
        self._exits = (
            parent.app.settings.on_stall is OnStall.EXIT and threading.current_thread() is threading.main_thread()
        )
        self._beat = LoopBeat()
        self._progress = Progress(parent, self._thread)
        self._detector = StallDetector(self._seconds, self._depth, self._answers, self._consumes)
        parent.heartbeat_report.add("progress", self._progress.report)
        native.start_thread(self._run)

    def stop(self, parent: Any) -> None:
        """Watch no longer."""
        self._stopped = True
        if hasattr(self, "_progress"):
            self._progress.close()

    def terminate(self, parent: Any) -> None:
        """Watch no longer."""
        self.stop(parent)

    def _run(self) -> None:
        now, last = 0.0, time.monotonic()
        while True:
            native.sleep(self._interval)
            elapsed, last = time.monotonic() - last, time.monotonic()
            # A computer that was suspended has not been watched meanwhile.
            now += min(elapsed, 2 * self._interval)
            if self._stopped:
                return
            try:
                self._look(now)
            except Exception:  # it watches on
                if not self._failed:  # one line an incident
                    logger.exception("a look at the worker failed", extra={"action": "watchdog_failed"})
                self._failed = True

    def _look(self, now: float) -> None:
        worker = self._worker
        if not self._works():
            self._detector.reset()
            return
        silent = self._beat.silent(now, worker.consumer)
        handles = silent > 0 and calls_handler(sys._current_frames().get(self._thread))
        loop = Loop(silent=silent, connected=worker.consumer.connection is not None, handles=handles)
        snapshot = self._progress.look()
        reason = self._detector.look(now, loop, snapshot)
        if reason is None or not self._works():
            if self._reason is not None and loop.silent <= TURN:
                self._recover()
            return
        if self._reason is None:
            self._reason = reason
            self._act(reason, loop, snapshot)

    def _works(self) -> bool:
        """Whether the worker is up and not about to end."""
        consumer = getattr(self._worker, "consumer", None)
        return (
            consumer is not None
            and self._worker.blueprint.state == RUN
            and consumer.blueprint.state not in (CLOSE, TERMINATE)
            and all(flag is None or flag is False for flag in (state.should_stop, state.should_terminate))
        )

    def _act(self, reason: str, loop: Loop, snapshot: Snapshot) -> None:
        advice = "It goes on, since waooaw_on_stall is 'log' or a program runs it"
        if self._exits:
            advice = f"It ends with exit code {ending.EXIT_STALLED}, so that its supervisor starts a new one"
        ending.tell(reason, advice, self._thread)
        ending.let_go(list(snapshot.running))
        ending.bounded(partial(self._worker.presence.beat, self._worker))
        if not self._exits:
            return
        if loop.silent <= TURN:
            ending.ask_to_end(self._worker)
            ends_at = time.monotonic() + self._seconds
            while time.monotonic() < ends_at and self._progress.look().running:
                native.sleep(self._interval)
            # What ends in order needs a moment more to say so.
            native.sleep(ending.PATIENCE)
        ending.end(self._worker.app)

    def _recover(self) -> None:
        self._reason = None
        lease.renew_only(None)
        logger.warning("the worker makes progress again", extra={"action": "worker_unstalled"})

    def _consumed(self) -> list[Queue]:
        """Return the queues of which messages are taken; none while an operator or the worker itself paused."""
        consumer = self._worker.consumer.task_consumer
        if consumer is None or self._worker.heartbeat_report.collect().get("not_taking"):
            return []
        return [queue for queue in tuple(consumer.queues) if consumer.consuming_from(queue)]

    def _consumes(self, snapshot: Snapshot) -> bool:
        """Whether the consumer is to take a message more."""
        qos = self._worker.consumer.qos
        room = qos is not None and (not qos.value or snapshot.held < qos.value)
        return room and self._worker.consumer.connection is not None and bool(self._consumed())

    def _answers(self) -> bool:
        """Whether the broker and the store answer."""
        answered = []

        def ask() -> None:
            # A connection of the worker's own belongs to the event loop of gevent, which may be what is blocked.
            registry = self._worker.app.open_registry()
            try:
                registry.all()
            except Exception as error:  # noqa: BLE001 - whatever it is, the store does not do its work
                logger.debug("the store does not answer: %r", error)
            else:
                answered.append(True)
            finally:
                registry.close()

        return self._depth() is not None and ending.bounded(ask) and bool(answered)

    def _depth(self) -> int | None:
        """Return how many messages wait for this worker; None when the broker does not answer."""
        app = self._worker.app
        queues = self._consumed() or list(app.amqp.queues.consume_from.values())
        try:
            if self._connection is None:
                self._connection = app.connection_for_write(heartbeat=0)
            return sum(queue_depth(self._connection, queue).total for queue in queues)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is known of the queue
            logger.debug("the depth of the queue is not known: %r", error)
            connection, self._connection = self._connection, None
            if connection is not None:
                ending.bounded(connection.collect)
            return None
