"""What becomes of a stalled worker: it tells what it does, lets go of what it does not run, and ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from billiard import active_children
from celery.worker import state

from waooaw_celery.broker.redis.leases import renewal as lease
from waooaw_celery.worker.health import native_thread as native

logger = logging.getLogger(__name__)

#: The exit code of a worker that has stalled: EX_SOFTWARE of sysexits.h. Celery's own are 0, 1, 64, 69 and 73.
EXIT_STALLED = 70
#: Seconds that writing the log, sending a heartbeat, or flushing the ledger may take at the end.
PATIENCE = 5.0
#: Seconds between two looks at whether a step has ended.
_LOOK = 0.05


def stacks(consumer_thread: int) -> str:
    """Return the stacks of all threads of this process, without any values.

    Args:
        consumer_thread: identifier of the thread that consumes.
    """
    # gevent and eventlet know their greenlets by name, and not the threads that these run in.
    names = {thread.ident: thread.name for thread in threading.enumerate()} | {consumer_thread: "that consumes"}
    return "\n".join(
        f"Thread {names.get(ident, 'without a name')} ({ident}):\n"
        + "".join(traceback.format_stack(frame)).rstrip()
        for ident, frame in sys._current_frames().items()
    )


def tell(reason: str, advice: str, consumer_thread: int) -> None:
    """Log that the worker has stalled, with the stacks of its threads: one record.

    Args:
        reason: why it counts as stalled.
        advice: what happens now.
        consumer_thread: identifier of the thread that consumes.
    """
    text = stacks(consumer_thread)
    bounded(
        lambda: logger.critical(
            "the worker has stalled: %s. %s. Its threads:\n%s",
            reason,
            advice,
            text,
            extra={"action": "worker_stalled", "reason": reason},
        )
    )


def let_go(running: list[Any]) -> None:
    """Renew only the leases of messages whose handlers run: others are handed to another worker."""
    lease.renew_only(str(request.message.delivery_tag) for request in running)


def ask_to_end(worker: Any) -> None:
    """Have Celery end the worker in order, with our exit code: handlers that run come to their end."""
    celery_state: Any = state  # its stubs say that it is never set
    celery_state.should_stop = EXIT_STALLED
    if worker.hub is not None:
        worker.hub.call_soon(_nothing)  # so that the loop looks at once


def end(app: Any) -> None:
    """End this process and its children, whatever they do; it does not return."""
    receipts = app.__dict__.get("receipts")
    if receipts is not None:
        bounded(receipts.flush)
    bounded(_flush_logs)
    for child in active_children():  # the pool's processes, and an embedded beat
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
    os._exit(EXIT_STALLED)


def bounded(step: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Run a step in a thread of its own, and return whether it ended in time.

    What has stalled may hold a lock that the step needs, such as that of a log's handler.

    Args:
        step: what to do; an exception is logged.
        patience: seconds.
    """
    ended: list[bool] = []

    def run() -> None:
        try:
            step()
        except Exception:
            logger.exception("a step of ending a stalled worker failed", extra={"action": "ending_failed"})
        finally:
            ended.append(True)

    native.start_thread(run)
    for _ in range(int(patience / _LOOK)):
        if ended:
            return True
        native.sleep(_LOOK)
    return False


def _flush_logs() -> None:
    for logger_ in (logging.getLogger(), logging.getLogger("celery"), logger):
        for handler in logger_.handlers:
            handler.flush()


def _nothing() -> None:
    """Do nothing."""
