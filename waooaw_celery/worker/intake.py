"""Stops a worker from consuming while the outcomes of messages cannot be recorded.

That is while the ledger's database does not answer and the spool cannot be written. Handlers that run go on to
their end, and their messages are acknowledged when the outcome is recorded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from waooaw_celery.broker.redis.leases.worker_requests import unacknowledged
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.health.periodic_step import PeriodicStep

if TYPE_CHECKING:
    from waooaw_celery.ledger.write.recording import Recording

logger = get_logger(__name__)

#: Seconds between two checks of the worker's main process, and between two attempts to write.
CHECK_SECONDS, WRITE_SECONDS = 0.25, 1.0
#: How many attempts to write must succeed one after another before the worker consumes again. The processes of the
#: pool make theirs at other times.
WRITES_NEEDED = 2
#: Seconds, once facts can be recorded again, after which a process that still has not recorded one has died.
LOST_SECONDS = 15.0
#: Seconds after a refused message for which the worker reports it. It comes back earlier if it is still there.
REFUSED_SECONDS = 30.0


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
        #: By message id, a request, the call that acknowledges it, and since when it is deferred.
        self._deferred: dict[str, tuple[Any, Callable[[], None], float]] = {}
        self.not_taking: str | None = None
        #: When a message was last refused because another ledger records it, by queue and reason.
        self._refused: dict[tuple[str, str], float] = {}
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
            self._deferred[request.id] = request, settle, time.monotonic()
            unacknowledged.add(request)  # a lost connection must not end its lease
        return True

    def refuse(self, queue: str, reason: str) -> bool:
        """Note that a message is refused because another ledger records it.

        Args:
            queue: its queue.
            reason: a sentence.

        Returns:
            Whether it is the first for a while, with this reason.
        """
        is_first = reason not in self.refused().get(queue, "")
        self._refused[queue, reason] = time.monotonic()
        return is_first

    def refused(self) -> dict[str, str]:
        """Return why messages were refused in the last seconds, by queue."""
        found: dict[str, str] = {}
        for (queue, reason), at in tuple(self._refused.items()):
            if time.monotonic() - at < REFUSED_SECONDS:
                found[queue] = f"{found[queue]}; {reason}" if queue in found else reason
            else:
                self._refused.pop((queue, reason), None)
        return found

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
            "this worker takes no more messages: %s. Restart the database, or free disk space for %s",
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
        for id_, (request, settle, since) in deferred.items():
            since = max(since, self._writable_since)
            if not recording.holds(id_):
                consumer.call_soon(settle)
            elif self.not_taking is None and time.monotonic() - since > LOST_SECONDS:
                recording.release(id_)
                logger.warning(
                    "the process that handled %s died before it recorded the outcome; the message is redelivered",
                    id_,
                    extra={"action": "end_lost", "message_id": id_},
                )
                consumer.call_soon(request.reject, True)
            else:
                continue
            with self._lock:
                self._deferred.pop(id_, None)
                unacknowledged.discard(request)


class WatchIntake(PeriodicStep):
    """Bootstep of the worker: a thread of its main process that checks the intake.

    What is not acknowledged when the thread ends is redelivered.
    """

    seconds, thread_name = CHECK_SECONDS, "waooaw-intake"
    failure = ("the check whether outcomes can be recorded failed", "intake_failed")

    def create(self, parent: Any) -> None:
        """Add to the heartbeat's report why the worker does not consume, and which messages it refuses."""
        parent.heartbeat_report.add("refused", lambda: parent.app.intake.refused() or None)
        parent.heartbeat_report.add("not_taking", lambda: parent.app.intake.not_taking)

    def is_needed(self, parent: Any) -> bool:
        """Whether the application has a ledger."""
        return recording_of(parent.app) is not None

    def look(self, parent: Any) -> None:
        """Check the intake once."""
        parent.app.intake.check(getattr(parent, "consumer", None))

    def info(self, parent: Any) -> Any:
        """Return, for ``celery inspect stats``, why the worker does not consume, and what it refuses."""
        return {"not_taking": parent.app.intake.not_taking, "refused": parent.app.intake.refused()}


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
        logger.warning(
            "could not start or stop consuming; the worker does so when it reconnects: %s",
            error,
            extra={"action": "intake_not_told"},
        )
