"""Stops a worker from taking messages while what becomes of them can be written down nowhere.

That is so when the ledger's database does not answer and the spool cannot be written. What runs goes on to its
end; its message is acknowledged when that end is written down.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps

from waooaw_celery.broker.redis.leases.worker_requests import unacknowledged
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.write.recording import Recording

logger = logging.getLogger(__name__)

#: Seconds between two looks of the worker's main process, and between two attempts to write.
LOOK_SECONDS, CHECK_SECONDS = 0.25, 1.0
#: Attempts that must succeed one after the other before messages are taken again: processes of the pool try it at
#: moments of their own.
CHECKS = 2
#: Seconds, once facts can be written again, after which the process that kept one has ended with it.
LOST_SECONDS = 15.0


def recording_of(app: Any) -> Recording | None:
    """Return what a worker's processes know of facts that can be written nowhere; None without a ledger."""
    receipts = app.receipts
    return receipts.recording if isinstance(receipts, Ledger) else None


class Intake:
    """Whether the worker of an application takes messages, and which ones it does not acknowledge yet.

    Args:
        app: an AgentApp.

    Attributes:
        not_taking: why it takes no messages, or None when it does.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()
        #: Requests, each with what lets go of its message.
        self._waiting: dict[str, tuple[Any, Callable[[], None]]] = {}
        self.not_taking: str | None = None
        self._since = self._check_at = self._writable_since = 0.0
        self._good = 0

    def waits(self, request: Any, let_go: Callable[[], None]) -> bool:
        """Have a message let go later if what became of it is not safe, and return whether that is so.

        Args:
            request: an AgentRequest.
            let_go: acknowledges it.
        """
        recording = recording_of(self._app)
        if recording is None or not recording.holds(request.id):
            return False
        with self._lock:
            self._waiting[request.id] = request, let_go
            unacknowledged.add(request)  # a lost connection must not end its lease
        return True

    def look(self, consumer: Any) -> None:
        """Stop or begin to take messages, and let go of those whose end is safe by now."""
        recording = recording_of(self._app)
        if recording is None or consumer is None:
            return
        if self.not_taking is None and recording.fails:
            self._since, self._check_at, self._good = time.monotonic(), 0.0, 0
            self.not_taking = "what becomes of messages can be written neither to the ledger nor to the spool"
            logger.error(
                "this worker takes no more messages: %s. Bring back the database, or make room for %s",
                self.not_taking,
                self._app.ledger.spool.path,
                extra={"action": "intake_stopped"},
            )
        if self.not_taking is not None:
            self._try(recording, consumer)
        if self.not_taking is not None:
            consumer.call_soon(_cancel, consumer)  # also after a new connection has begun to consume
        self._let_go(recording, consumer)

    def _try(self, recording: Recording, consumer: Any) -> None:
        if time.monotonic() < self._check_at:
            return
        self._check_at = time.monotonic() + CHECK_SECONDS
        try:
            self._app.ledger.check_recording()
        except AuditUnavailable:  # that was told when it began
            recording.fail()
            self._good = 0
            return
        self._good = 1 if not self._good or recording.fails else self._good + 1
        recording.clear()
        if self._good >= CHECKS:
            self.not_taking, self._writable_since = None, time.monotonic()
            logger.warning(
                "this worker takes messages again after %.1f s",
                time.monotonic() - self._since,
                extra={"action": "intake_begun"},
            )
            consumer.call_soon(_consume, consumer)

    def _let_go(self, recording: Recording, consumer: Any) -> None:
        with self._lock:
            waiting = dict(self._waiting)
        for id_, (request, let_go) in waiting.items():
            if not recording.holds(id_):
                consumer.call_soon(let_go)
            elif self.not_taking is None and time.monotonic() - self._writable_since > LOST_SECONDS:
                recording.release(id_)
                logger.warning(
                    "the process that handled %s ended before it could write down how: it comes again",
                    id_,
                    extra={"action": "end_lost", "message_id": id_},
                )
                consumer.call_soon(request.reject, True)
            else:
                continue
            with self._lock:
                self._waiting.pop(id_, None)
                unacknowledged.discard(request)


class WatchIntake(bootsteps.StartStopStep):
    """Bootstep of the worker: a thread of its main process that sees to its intake."""

    requires = ("waooaw_celery.worker.health.heartbeat:Heartbeat",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def create(self, parent: Any) -> None:
        """Have the heartbeat report when no messages are taken."""
        parent.heartbeat_report.add("not_taking", lambda: parent.app.intake.not_taking)

    def start(self, parent: Any) -> None:
        """Begin to look."""
        if recording_of(parent.app) is not None:
            self._thread = threading.Thread(target=self._run, args=(parent,), name="waooaw-intake", daemon=True)
            self._thread.start()

    def stop(self, parent: Any) -> None:
        """End the thread: what is not acknowledged by then comes again."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def terminate(self, parent: Any) -> None:
        """End the thread also when the worker is shut down cold."""
        self.stop(parent)

    def info(self, parent: Any) -> Any:
        """Tell ``celery inspect stats`` why no messages are taken; None: they are."""
        return {"not_taking": parent.app.intake.not_taking}

    def _run(self, worker: Any) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                worker.app.intake.look(getattr(worker, "consumer", None))
            except Exception:
                logger.exception("the look at the intake failed", extra={"action": "intake_failed"})


def _cancel(consumer: Any) -> None:
    """Have the broker send no more messages. To be called where the consumer runs."""
    if _consumes(consumer):
        _said(consumer, consumer.task_consumer.cancel)


def _consume(consumer: Any) -> None:
    """Have the broker send messages again. To be called where the consumer runs."""
    if consumer.task_consumer is not None and not _consumes(consumer):
        _said(consumer, consumer.task_consumer.consume)


def _consumes(consumer: Any) -> bool:
    tasks = consumer.task_consumer
    return tasks is not None and any(tasks.consuming_from(queue) for queue in tasks.queues)


def _said(consumer: Any, say: Callable[[], Any]) -> None:
    try:
        say()
    except consumer.connection_errors as error:  # a new connection begins to consume by itself
        logger.warning("the broker was not told: %s", error, extra={"action": "intake_not_told"})
