"""The answers that a process waits for: one thread takes them all from the result backend as they come."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery import Celery
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.redis import RedisBackend
from celery.result import AsyncResult
from celery.states import READY_STATES
from kombu.common import maybe_declare
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from waooaw_celery.errors import BackendUnavailable

logger = logging.getLogger(__name__)

#: Seconds between two looks of the thread at what else is to be done; an answer that arrives is taken at once.
_LOOK_SECONDS = 0.1
#: Seconds after which an answer is asked for that may have come unnoticed; each further time after twice as long.
_ASK_AGAIN_SECONDS = 1.0
#: Seconds after which an answer that was found is taken, though the line was never quiet since.
_PARTS_SECONDS = 10.0
#: Seconds that the thread has to begin.
_START_SECONDS = 10.0
#: Seconds that it has to end.
_END_SECONDS = 5.0
#: What the result backends raise when they do not answer.
BACKEND_ERRORS = (RedisError, OperationalError, OSError, RuntimeError)
#: The state of a request of which a part of the answer was sent: one of Celery's "custom states".
CHUNK = "CHUNK"


class ResultMessage(NamedTuple):
    """What the result backend says of a request that has ended."""

    state: str  #: Celery's name for how it ended
    value: Any  #: the result, or the exception
    traceback: str | None


@dataclass(slots=True)
class _PendingResult:
    """A request that has not been answered yet."""

    result: AsyncResult[Any]
    on_chunk: Callable[[Any], None] | None
    future: Future[ResultMessage] = field(default_factory=Future)
    ask_after: float = _ASK_AGAIN_SECONDS
    ask_at: float = field(default_factory=lambda: time.monotonic() + _ASK_AGAIN_SECONDS)
    #: When it was found in the backend, and left there until its parts must have come.
    seen_at: float | None = None


class ResultCollector:
    """Takes the answers of all requests of this process, whoever waits for them, and forgets them in the backend.

    Args:
        app: the application whose result backend brings them.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._awaited: dict[str, _PendingResult] = {}
        self._read: deque[AsyncResult[Any]] = deque()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._work = threading.Event()
        self._closed = False
        self._failure: BaseException | None = None
        self._backend: Any = None
        #: Whether what the backend says was asked for: a part that is read so may still be on its way too.
        self._asking = False
        #: Whether anything has come since the last look, and when the line was last quiet for the whole of one.
        self._heard, self._quiet_at = False, 0.0

    @property
    def reply_to(self) -> str | None:
        """Where a worker sends the answer, on a result backend that sends it instead of keeping it."""
        return getattr(self._backend, "oid", None)

    def expect(
        self, message_id: str, agent: str, on_chunk: Callable[[Any], None] | None = None
    ) -> Future[ResultMessage]:
        """Wait for the answer of a request from now on; to be called before the request is published.

        Args:
            message_id: of the request.
            agent: who is asked, for what is said when it fails.
            on_chunk: called with each part of the answer that comes before its end, in the thread of the answers.

        Raises:
            BackendUnavailable: the result backend does not answer.
        """
        try:
            self._start()
            result: AsyncResult[Any] = self._app.AsyncResult(message_id, backend=self._backend)
            awaited = _PendingResult(result, on_chunk)
            with self._lock:
                self._awaited[message_id] = awaited
            result.on_ready.then(self._take)
            if isinstance(self._backend, AsyncBackendMixin):
                self._backend.add_pending_result(result)
        except BACKEND_ERRORS as error:
            self.drop(message_id)
            raise BackendUnavailable(f"no answer of {agent!r} can be awaited: {error}") from error
        self._work.set()
        return awaited.future

    def drop(self, message_id: str) -> None:
        """No longer wait for an answer, and forget it in the backend if it is there."""
        with self._lock:
            awaited = self._awaited.pop(message_id, None)
        if awaited is not None:
            self._read.append(awaited.result)
            self._work.set()

    def revoke(self, message_id: str, reason: str) -> None:
        """Tell whoever waits for an answer, in whichever process, that there will be none.

        Args:
            message_id: of the request.
            reason: why.

        Raises:
            BackendUnavailable: the result backend does not answer.
        """
        self._start()
        if self.reply_to is not None:  # one that sends answers knows not where to
            return
        try:
            self._backend.mark_as_revoked(message_id, reason)
        except BACKEND_ERRORS as error:
            raise BackendUnavailable(f"nobody can be told that {message_id} is {reason}: {error}") from error

    def __len__(self) -> int:
        return len(self._awaited)

    def close(self) -> None:
        """End the thread; what is still awaited fails."""
        thread = self._thread
        self._closed = True
        self._work.set()
        if thread is not None and self._pid == os.getpid() and thread is not threading.current_thread():
            thread.join(_END_SECONDS)
        self._thread = None  # one that asks again starts another
        self._fail(BackendUnavailable("the application was closed"))

    def _start(self) -> None:
        """Start the thread, in this process, unless it runs."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._thread is None:
                self._closed, self._failure = False, None
                self._ready.clear()
                self._thread = threading.Thread(target=self._run, name="waooaw-results", daemon=True)
                self._thread.start()
        if not self._ready.wait(_START_SECONDS) or self._failure is not None:
            raise BackendUnavailable(f"the result backend does not answer: {self._failure}") from self._failure

    def _run(self) -> None:
        try:
            self._backend = self._open()
        except Exception as error:  # noqa: BLE001 - whoever waits for the start raises it
            self._failure, self._thread = error, None
            return
        finally:
            self._ready.set()
        while not self._closed:
            self._work.wait()
            try:
                self._receive()
                self._forget()
            except BACKEND_ERRORS as error:
                logger.warning("the result backend is away: %s", error, extra={"action": "answers_interrupted"})
                self._fail(error)
            except Exception:  # an answer that nobody can read: asking for each finds out whose it is
                logger.exception("an answer is damaged", extra={"action": "damaged_answer"})
                self._ask_for_all()
            with self._lock:
                if not self._awaited and not self._read and not self._closed:
                    self._work.clear()
        self._fail(BackendUnavailable("the application was closed"))
        self._forget()  # now: a result that is collected later would open a connection to unsubscribe
        self._hang_up()

    def _hang_up(self) -> None:
        """Close the connections of this thread's own backend."""
        if isinstance(self._backend, AsyncBackendMixin):
            self._backend.result_consumer.stop()  # type: ignore[attr-defined]  # its stubs do not know it
        if isinstance(self._backend, RedisBackend):
            self._backend.client.connection_pool.disconnect()

    def _open(self) -> Any:
        """Return a backend of this thread's own, ready to receive."""
        backend: Any = self._app.backend
        if isinstance(backend, AsyncBackendMixin):
            consumer: Any = backend.result_consumer  # type: ignore[attr-defined]  # its stubs do not know it
            consumer.on_message = self._on_message
            if hasattr(backend, "binding"):  # answers are messages, to a queue of this thread's own
                with self._app.producer_or_acquire() as producer:
                    maybe_declare(backend.binding(producer.channel), retry=True)
                consumer.start("")
        return backend

    def _receive(self) -> None:
        """Take answers for as long as some are awaited."""
        if not isinstance(self._backend, AsyncBackendMixin):
            self._ask()
            return
        consumer: Any = self._backend.result_consumer  # type: ignore[attr-defined]  # its stubs do not know it
        looked_at = time.monotonic()
        for _ in consumer.drainer.drain_events_until(_Nothing(self), interval=_LOOK_SECONDS):
            now = time.monotonic()
            if not self._heard and now > looked_at + _LOOK_SECONDS / 2:
                self._quiet_at = now
            self._heard = False
            self._forget()
            self._ask()
            looked_at = time.monotonic()

    def _ask(self) -> None:
        """Ask for what came unnoticed: while the connection was away, or since the backend tells nothing."""
        tells = isinstance(self._backend, AsyncBackendMixin)
        if not tells:
            time.sleep(_LOOK_SECONDS)
        now = time.monotonic()
        with self._lock:
            due = [(id_, each) for id_, each in self._awaited.items() if not tells or each.ask_at <= now]
        for message_id, awaited in due:
            awaited.ask_after *= 2
            awaited.ask_at = now + awaited.ask_after
            self._asking = True
            try:
                if not tells:
                    awaited.result.ready()  # fires on_ready
                elif not self._parts_may_come(message_id, awaited, now):
                    self._backend.result_consumer.on_wait_for_pending(awaited.result)
            except Exception as error:  # noqa: BLE001 - no answer, or a damaged one: whoever waits is told
                self._fail(error, message_id)
            finally:
                self._asking = False

    def _parts_may_come(self, message_id: str, awaited: _PendingResult, now: float) -> bool:
        """Whether parts of an answer may still be on their way, so that its end is not to be taken yet.

        They are told before the end is stored, but whoever asks may see the end before they arrive. Nothing is on
        its way any more once the line has been quiet.
        """
        if awaited.on_chunk is None or not isinstance(self._backend, RedisBackend):
            return False
        if awaited.seen_at is None:
            if self._backend.get_task_meta(message_id)["status"] not in READY_STATES:
                return True
            awaited.seen_at = now
        may_come = self._quiet_at <= awaited.seen_at and now < awaited.seen_at + _PARTS_SECONDS
        if may_come:
            awaited.ask_at = now + _ASK_AGAIN_SECONDS
        return may_come

    def _ask_for_all(self) -> None:
        with self._lock:
            for awaited in self._awaited.values():
                awaited.ask_at = 0.0
        self._ask()

    def _take(self, result: AsyncResult[Any]) -> None:
        """Hand an answer to whoever waits for it."""
        with self._lock:
            awaited = self._awaited.pop(str(result.id), None)
        if awaited is None:
            return
        self._read.append(result)
        try:
            value: Any = result.result
            answered = ResultMessage(str(result.state), value, result.traceback and str(result.traceback))
        except Exception as error:  # noqa: BLE001 - a damaged one: whoever waits is told
            _settle(awaited.future, error)
        else:
            if awaited.future.set_running_or_notify_cancel():
                awaited.future.set_result(answered)

    def _on_message(self, meta: Any) -> None:
        if self._asking:
            return
        self._heard = True
        if meta["status"] == CHUNK:
            awaited = self._awaited.get(meta["task_id"])
            if awaited is not None and awaited.on_chunk is not None:
                awaited.on_chunk(meta["result"])

    def _fail(self, error: BaseException, *message_ids: str) -> None:
        """Let the waiting for these answers, or for all, end with an error."""
        with self._lock:
            ids = message_ids or tuple(self._awaited)
            failed = [self._awaited.pop(id_) for id_ in ids if id_ in self._awaited]
        for awaited in failed:
            self._read.append(awaited.result)
            _settle(awaited.future, error)

    def _forget(self) -> None:
        while self._read:
            result = self._read.popleft()
            try:
                result.forget()
            except BACKEND_ERRORS as error:  # the answer is not wrong for that, and expires by itself
                logger.warning(
                    "request %s was not forgotten: %s", result.id, error, extra={"action": "not_forgotten"}
                )


class _Nothing:
    """What the thread waits for while it drains: that no answer is awaited any more."""

    def __init__(self, answers: ResultCollector) -> None:
        self._answers = answers

    @property
    def ready(self) -> bool:
        return self._answers._closed or not self._answers._awaited


def _settle(future: Future[ResultMessage], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
