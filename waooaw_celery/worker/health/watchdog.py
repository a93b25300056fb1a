"""Watches a worker from its own thread, and ends it when it has stalled, so that its supervisor replaces it."""

from __future__ import annotations

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
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import queue_depth
from waooaw_celery.settings import OnStall
from waooaw_celery.worker.execution.running_requests import calls_handler
from waooaw_celery.worker.health import native_thread as native
from waooaw_celery.worker.health import stall_exit
from waooaw_celery.worker.health.heartbeat import Heartbeat
from waooaw_celery.worker.health.progress import Progress, Snapshot
from waooaw_celery.worker.health.stall import MAX_TURN_SECONDS, LoopState, StallDetector

logger = get_logger(__name__)

#: The longest time between two checks, in seconds.
CHECK_SECONDS = 1.0
#: The fewest checks within ``waooaw_stall_seconds``.
MIN_CHECKS = 10


class LoopBeat:
    """Whether the event loop of the thread that consumes turns: it is asked for a callback."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._restarts = -1

    def silent_seconds(self, now: float, consumer: Any) -> float:
        """Return for how many seconds the loop has owed a callback, and ask again if it has made the last.

        Args:
            now: the time, in seconds.
            consumer: the worker's consumer.
        """
        asked_at = self._asked_at
        if asked_at is None:
            self._asked_at = asked_at = now
            self._ask(consumer)
        elif self._restarts != consumer.restart_count:  # the callback may be lost with the old connection
            self._ask(consumer)
        return now - asked_at

    def _ask(self, consumer: Any) -> None:
        self._restarts = consumer.restart_count
        consumer.call_soon(self._answer)

    def _answer(self) -> None:
        self._asked_at = None


class Watchdog(bootsteps.StartStopStep):
    """Bootstep of the worker that checks its progress every second, and acts when there is none.

    It has its own operating-system thread and its own connection to the broker. So the worker cannot block it,
    except with native code that holds Python's lock.
    """

    requires = (Heartbeat,)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._stopped = False
        self._reason: str | None = None
        self._failed = False
        self._connection: Any = None
        #: Seconds for which the event loop has not turned, although it should have.
        self._silent = 0.0

    def create(self, parent: Any) -> None:
        """Add to the heartbeat's report why the worker has stalled."""
        parent.watchdog = self
        parent.heartbeat_report.add("stalled", lambda: self._reason)

    def start(self, parent: Any) -> None:
        """Start watching."""
        self._worker = parent
        self._seconds = parent.app.settings.stall_seconds
        self._interval = min(CHECK_SECONDS, self._seconds / MIN_CHECKS)
        self._thread = native.thread_id()
        # A program that runs a worker in one of its threads is not ours to end.
        self._exits = (
            parent.app.settings.on_stall is OnStall.EXIT and threading.current_thread() is threading.main_thread()
        )
        self._beat = LoopBeat()
        self._progress = Progress(parent, self._thread)
        self._detector = StallDetector(self._seconds, self._depth, self._answers, self._consumes)
        parent.heartbeat_report.add("progress", self._progress.report)
        native.start_thread(self._run)

    def stop(self, parent: Any) -> None:
        """Stop watching."""
        self._stopped = True
        if hasattr(self, "_progress"):
            self._progress.close()

    def terminate(self, parent: Any) -> None:
        """Stop watching in a cold shutdown too."""
        self.stop(parent)

    def problems(self, seconds: float) -> dict[str, str]:
        """Return what keeps the worker from making progress, by name; empty: nothing.

        Args:
            seconds: for which the event loop of the thread that consumes may not turn. While a handler runs in it,
                or while it connects again, it need not turn.
        """
        found: dict[str, str] = {}
        if self._reason is not None:
            found["progress"] = self._reason
        if self._silent > seconds:
            found["consumer"] = f"the event loop has not responded for {self._silent:.0f} s"
        return found

    def running_by_agent(self) -> dict[str, int]:
        """Return how many handlers of each agent ran when the watchdog last looked."""
        return self._progress.running_by_agent() if hasattr(self, "_progress") else {}

    def is_ending(self) -> bool:
        """Return whether the worker does not consume: it ends, or has not started yet."""
        return not hasattr(self, "_worker") or self._stopped or not self._is_up()

    def _run(self) -> None:
        now, last = 0.0, time.monotonic()
        while True:
            native.sleep(self._interval)
            elapsed, last = time.monotonic() - last, time.monotonic()
            # The time for which the computer was suspended does not count.
            now += min(elapsed, 2 * self._interval)
            if self._stopped:
                return
            try:
                self._check(now)
                self._failed = False
            except Exception:
                if not self._failed:  # one line per failure, not one per second
                    logger.exception(
                        "a check of the watchdog failed; it is repeated",
                        extra={"action": "watchdog_failed"},
                    )
                self._failed = True

    def _check(self, now: float) -> None:
        worker = self._worker
        if not self._is_up():
            self._detector.reset()
            self._silent = 0.0
            return
        silent = self._beat.silent_seconds(now, worker.consumer)
        handles = silent > 0 and calls_handler(sys._current_frames().get(self._thread))
        loop = LoopState(silent=silent, connected=_has_connected(worker.consumer), handles=handles)
        self._silent = silent if loop.connected and not loop.handles else 0.0
        snapshot = self._progress.snapshot()
        reason = self._detector.check(now, loop, snapshot)
        if self._reason is not None:
            if reason is None and loop.silent <= MAX_TURN_SECONDS:
                self._recover()
            else:  # waooaw_on_stall is "log": handlers may have begun or ended since the last check
                stall_exit.release_other_leases(list(snapshot.running))
        elif reason is not None and self._is_up():
            self._reason = reason
            self._act(reason, loop, snapshot)

    def _is_up(self) -> bool:
        """Return whether the worker is up and not about to end."""
        consumer = getattr(self._worker, "consumer", None)
        return (
            consumer is not None
            and self._worker.blueprint.state == RUN
            and consumer.blueprint.state not in (CLOSE, TERMINATE)
            and all(flag is None or flag is False for flag in (state.should_stop, state.should_terminate))
        )

    def _act(self, reason: str, loop: LoopState, snapshot: Snapshot) -> None:
        """Log the stall, release what the worker does not run, and end the worker if that is set."""
        consequence = "It continues, because waooaw_on_stall is 'log' or it runs in a thread of a program"
        if self._exits:
            consequence = (
                f"It ends with exit code {stall_exit.EXIT_STALLED}, so that its supervisor starts a new one"
            )
        try:
            stall_exit.log_stall(reason, consequence, self._thread)
            stall_exit.release_other_leases(list(snapshot.running))
            stall_exit.run_with_timeout(partial(self._worker.heartbeat.beat, self._worker))
            if self._exits and loop.silent <= MAX_TURN_SECONDS:
                self._shut_down_warm()
        finally:
            if self._exits:  # also when one of the steps failed
                stall_exit.exit_now(self._worker.app)

    def _shut_down_warm(self) -> None:
        stall_exit.request_warm_shutdown(self._worker)
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline and self._runs_handlers():
            native.sleep(self._interval)
        # Celery needs some time after the last handler to end the process.
        native.sleep(stall_exit.STEP_SECONDS)

    def _runs_handlers(self) -> bool:
        try:
            return bool(self._progress.snapshot().running)
        except AttributeError:  # the shutdown has removed the consumer or the pool
            return False

    def _recover(self) -> None:
        self._reason = None
        lease.renew_only(None)
        logger.warning("the worker makes progress again", extra={"action": "worker_unstalled"})

    def _consumed_queues(self) -> list[Queue]:
        """Return the queues that are consumed; none while an operator or the worker itself has paused."""
        consumer = self._worker.consumer.task_consumer
        if consumer is None or self._worker.heartbeat_report.collect().get("not_taking"):
            return []
        return [queue for queue in tuple(consumer.queues) if consumer.consuming_from(queue)]

    def _consumes(self, snapshot: Snapshot) -> bool:
        """Return whether the consumer consumes a queue and may hold another message."""
        qos = self._worker.consumer.qos
        counted = snapshot.taken + snapshot.scheduled + snapshot.limited
        has_room = qos is not None and (not qos.value or counted < qos.value)
        if self._worker.consumer.groups.waiting:  # what it has waits for messages that others handle
            return False
        return has_room and self._worker.consumer.connection is not None and bool(self._consumed_queues())

    def _answers(self) -> bool:
        """Return whether the broker and the store answer."""
        answered = []

        def ask() -> None:
            # Not the worker's own connection: it belongs to gevent's event loop, which may be blocked.
            registry = self._worker.app.open_registry()
            try:
                registry.all()
            except Exception as error:  # noqa: BLE001 - on any error, the store does not answer
                logger.debug("the store does not answer: %r", error)
            else:
                answered.append(True)
            finally:
                registry.close()

        return self._depth() is not None and stall_exit.run_with_timeout(ask) and bool(answered)

    def _depth(self) -> int | None:
        """Return how many messages wait for this worker; None when the broker does not answer."""
        app = self._worker.app
        queues = self._consumed_queues() or list(app.amqp.queues.consume_from.values())
        try:
            if self._connection is None:
                self._connection = app.connection_for_write(heartbeat=0)
            depths = [queue_depth(self._connection, queue) for queue in queues]
            # A message whose key is busy waits for another worker, perhaps, and is no work for this one.
            return sum(depth.total - depth.blocked for depth in depths)
        except Exception as error:  # noqa: BLE001 - on any error, the depth is unknown
            logger.debug("cannot read the depth of the queue: %r", error)
            connection, self._connection = self._connection, None
            if connection is not None:
                stall_exit.run_with_timeout(connection.collect)
            return None


def _has_connected(consumer: Any) -> bool:
    """Return whether a consumer has all its connections: for events and remote control it has further ones.

    Until its last step has started, it may pause before the next attempt to connect one of them.
    """
    return consumer.connection is not None and consumer.blueprint.started == len(consumer.steps)
