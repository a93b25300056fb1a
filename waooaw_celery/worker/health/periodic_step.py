"""A bootstep of the worker whose thread looks at something again and again."""

from __future__ import annotations

import threading
from typing import Any

from celery import bootsteps

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)


class PeriodicStep(bootsteps.StartStopStep):
    """A thread of the worker's main process. A look that fails is logged and repeated.

    Attributes:
        seconds: seconds between two looks.
        thread_name: name of the thread.
        failure: what the log says of a look that fails, such as "cannot drain agents", and its action.
    """

    requires = ("waooaw_celery.worker.health.heartbeat:Heartbeat",)
    seconds = 1.0
    thread_name = "waooaw-periodic"
    failure = ("a look failed", "look_failed")

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self.ended = threading.Event()
        self._thread: threading.Thread | None = None

    def is_needed(self, parent: Any) -> bool:
        """Whether the worker needs the thread: if it consumes the queue of an agent."""
        return bool(parent.app.consumed_agents())

    def look(self, parent: Any) -> None:
        """Look once, in the thread."""
        raise NotImplementedError

    def start(self, parent: Any) -> None:
        """Start the thread, if the worker needs it."""
        if self.is_needed(parent):
            self._thread = threading.Thread(target=self._run, args=(parent,), name=self.thread_name, daemon=True)
            self._thread.start()

    def stop(self, parent: Any) -> None:
        """End the thread."""
        self.ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)
        self._thread = None

    def terminate(self, parent: Any) -> None:
        """End the thread in a cold shutdown too."""
        self.stop(parent)

    def _run(self, parent: Any) -> None:
        text, action = self.failure
        while not self.ended.wait(self.seconds):
            try:
                self.look(parent)
            except Exception:
                logger.exception("%s; this is repeated", text, extra={"action": action})
