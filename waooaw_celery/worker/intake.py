"""Stops a worker from consuming while the outcomes of messages cannot be recorded.

That is while the ledger's database does not answer and the spool cannot be written. Handlers that run go on to
their end, and their messages are acknowledged when the outcome is recorded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import bootsteps

from waooaw_celery.broker.redis.leases.worker_requests import unacknowledged
from waooaw_celery.errors import AuditUnavailable

if TYPE_CHECKING:
    from waooaw_celery.ledger.write.recording import Recording

logger = logging.getLogger(__name__)

#: Seconds between two checks of the worker's main process, and between two attempts to write.
CHECK_SECONDS, WRITE_SECONDS = 0.25, 1.0
#: How many attempts to write must succeed one after another before the worker consumes again. The processes of the
#: pool make theirs at other times.
WRITES_NEEDED = 2
#: Seconds, once facts can be recorded again, after which a process that still has not recorded one has died.
LOST_SECONDS = 15.0


def recording_of(app: Any) -> Recording | None:
    """Return what the processes of a worker share about facts that cannot be recorded; None without a ledger.

    Args:
        app: the application, an AgentApp.
    """
    if not app.components.has_ledger:
        return None
    recording: Recording = app.ledger.recording
    return recording


class Intake:
    """Whether the worker of an application consumes, and which messages it does not acknowledge yet.

    Args:
        app: the application, an AgentApp.

    Attributes:
        not_taking: why the worker does not consume; None: it does.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()
        #: By message id, a request and the call that acknowledges it.
        self._deferred: dict[str, tuple[Any, Callable[[], None]]] = {}
        self.not_taking: str | None = None
        self._stopped_at = self._write_at = self._writable_since = 0.0
        self._successful_writes = 0

    def defer(self, request: Any, settle: Callable[[], None]) -> bool:
        """Defer the acknowledgement of a message whose outcome is not recorded, and return whether it is deferred.

        Args:
            request: an AgentRequest.
            settle: acknowledges or rejects its message.
        """
        recording = recording_of(self._app)
        if recording is None or not recording.holds(request.id):
            return False
        with self._lock:
            self._deferred[request.id] = request, settle
            unacknowledged.add(request)  # a lost connection must not end its lease
        return True

    def check(self, consumer: Any) -> None:
        """Stop or start to consume, and settle the messages whose outcome is recorded by now.

        Args:
            consumer: the worker's consumer; None before it is created.
        """
        recording = recording_of(self._app)
        if recording is None or consumer is None:
            return
        if self.not_taking is None and recording.fails:
            self._stop()
        if self.not_taking is not None:
            self._try_to_write(recording, consumer)
        if self.not_taking is not None:
            consumer.call_soon(_cancel, consumer)  # a new connection may have started to consume
        self._settle(recording, consumer)

    def _stop(self) -> None:
        self._stopped_at, self._write_at, self._successful_writes = time.monotonic(), 0.0, 0
        self.not_taking = "the outcomes of messages can be recorded neither in the ledger nor in the spool"
        logger.error(
            "this worker takes no more messages: %s. Bring back the database, or make room for %s",
            self.not_taking,
            self._app.ledger.spool.path,
            extra={"action": "intake_stopped"},
        )

    def _try_to_write(self, recording: Recording, consumer: Any) -> None:
        if time.monotonic() < self._write_at:
            return
        self._write_at = time.monotonic() + WRITE_SECONDS
        try:
            self._app.ledger.check_recording()
        except AuditUnavailable:  # logged when the worker stopped to consume
            recording.fail()
            self._successful_writes = 0
            return
        self._successful_writes = (
            1 if not self._successful_writes or recording.fails else self._successful_writes + 1
        )
        recording.clear()
        if self._successful_writes >= WRITES_NEEDED:
            self.not_taking, self._writable_since = None, time.monotonic()
            logger.warning(
                "this worker takes messages again after %.1f s",
                time.monotonic() - self._stopped_at,
                extra={"action": "intake_begun"},
            )
            consumer.call_soon(_consume, consumer)

    def _settle(self, recording: Recording, consumer: Any) -> None:
        with self._lock:
            deferred = dict(self._deferred)
        for id_, (request, settle) in deferred.items():
            if not recording.holds(id_):
                consumer.call_soon(settle)
            elif self.not_taking is None and time.monotonic() - self._writable_since > LOST_SECONDS:
                recording.release(id_)
                logger.warning(
                    "the process that handled %s died before it recorded the outcome: it is delivered again",
                    id_,
                    extra={"action": "end_lost", "message_id": id_},
                )
                consumer.call_soon(request.reject, True)
            else:
                continue
            with self._lock:
                self._deferred.pop(id_, None)
                unacknowledged.discard(request)


class WatchIntake(bootsteps.StartStopStep):
    """Bootstep of the worker: a thread of its main process that checks the intake."""

    requires = ("waooaw_celery.worker.health.heartbeat:Heartbeat",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def create(self, parent: Any) -> None:
        """Add to the heartbeat's report why the worker does not consume."""
        parent.heartbeat_report.add("not_taking", lambda: parent.app.intake.not_taking)

    def start(self, parent: Any) -> None:
        """Start the thread, if the application has a ledger."""
        if recording_of(parent.app) is not None:
            self._thread = threading.Thread(target=self._run, args=(parent,), name="waooaw-intake", daemon=True)
            self._thread.start()

    def stop(self, parent: Any) -> None:
        """End the thread. Messages that are not acknowledged by then are delivered again."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def terminate(self, parent: Any) -> None:
        """End the thread in a cold shutdown too."""
        self.stop(parent)

    def info(self, parent: Any) -> Any:
        """Return, for ``celery inspect stats``, why the worker does not consume; None: it does."""
        return {"not_taking": parent.app.intake.not_taking}

    def _run(self, worker: Any) -> None:
        while not self._ended.wait(CHECK_SECONDS):
            try:
                worker.app.intake.check(getattr(worker, "consumer", None))
            except Exception:
                logger.exception("the check of the intake failed", extra={"action": "intake_failed"})


def _cancel(consumer: Any) -> None:
    """Ask the broker for no more messages; call it in the thread that consumes."""
    if _consumes(consumer):
        _send(consumer, consumer.task_consumer.cancel)


def _consume(consumer: Any) -> None:
    """Ask the broker for messages again; call it in the thread that consumes."""
    if consumer.task_consumer is not None and not _consumes(consumer):
        _send(consumer, consumer.task_consumer.consume)


def _consumes(consumer: Any) -> bool:
    tasks = consumer.task_consumer
    return tasks is not None and any(tasks.consuming_from(queue) for queue in tasks.queues)


def _send(consumer: Any, command: Callable[[], Any]) -> None:
    try:
        command()
    except consumer.connection_errors as error:  # a new connection consumes by itself
        logger.warning("cannot reach the broker: %s", error, extra={"action": "intake_not_told"})
