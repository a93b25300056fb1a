"""Tells which handlers the other living workers of an agent declare, without a wait in the event loop."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

from waooaw_celery.errors import StoreUnavailable, UnknownAgent
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import HandlerName

logger = get_logger(__name__)

#: Seconds for which it counts that another worker has declared a handler.
FRESH_SECONDS = 5.0
#: The shortest time between the beginnings of two readings, in seconds.
READ_SECONDS = 0.1


class Reading(NamedTuple):
    """What a reading of the registry found.

    Attributes:
        begun_at: when the reading began, in seconds of the monotonic clock.
        handlers: names of the handlers that other living workers of the agent declare.
    """

    begun_at: float
    handlers: frozenset[str]


class OtherWorkers:
    """The handlers of the other living workers, read from the agent registry in a thread.

    The thread exists only while a message waits for its answer.

    Args:
        app: the application, an AgentApp.
        worker: node name of this worker.
    """

    def __init__(self, app: Any, worker: str) -> None:
        self._app, self._worker = app, worker
        self._readings: dict[str, Reading] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._begun_at = float("-inf")
        self._failed = False

    def have(self, target: HandlerName, since: float) -> bool | None:
        """Return whether another living worker of the agent declares a handler; this never waits.

        Args:
            target: the agent and the handler.
            since: when the question arose, in seconds of the monotonic clock. A worker may have started just
                before, so only a reading that began later can answer no.

        Returns:
            None: it is being read, or the store does not answer; ask again soon.
        """
        reading = self._readings.get(target.agent)
        if reading is not None:
            found = target.handler in reading.handlers
            if reading.begun_at >= since or (found and time.monotonic() - reading.begun_at <= FRESH_SECONDS):
                return found
        self._start_reading(target.agent)
        return None

    def _start_reading(self, agent: str) -> None:
        with self._lock:
            now = time.monotonic()
            if self._thread is not None or now - self._begun_at < READ_SECONDS:
                return
            self._begun_at = now
            self._thread = threading.Thread(
                target=self._read, args=(agent, now), name="waooaw-other-workers", daemon=True
            )
        self._thread.start()

    def _read(self, agent: str, begun_at: float) -> None:
        try:
            self._readings[agent] = Reading(begun_at, self._declared(agent))
            self._failed = False
        except Exception as error:
            if not self._failed:  # one line per outage
                logger.warning(
                    "cannot read which handlers the other workers of %s have; their messages wait: %s",
                    agent,
                    error,
                    exc_info=None if isinstance(error, StoreUnavailable) else error,
                    extra={"action": "other_workers_unknown"},
                )
            self._failed = True
        finally:
            with self._lock:
                self._thread = None

    def _declared(self, agent: str) -> frozenset[str]:
        registry = self._app.open_registry()
        try:
            workers = registry.get(agent).worker_handlers
        except UnknownAgent:
            return frozenset()
        finally:
            registry.close()
        return frozenset(name for worker, names in workers.items() if worker != self._worker for name in names)
