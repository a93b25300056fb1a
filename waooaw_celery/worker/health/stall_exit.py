"""Ends a stalled worker: log its threads, release the messages that it does not run, and exit."""

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
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.health import native_thread as native

logger = get_logger(__name__)

#: The exit code of a stalled worker: EX_SOFTWARE of sysexits.h. Celery's own are 0, 1, 64, 69 and 73.
EXIT_STALLED = 70
#: Seconds that each last step may take: writing the log, sending a heartbeat, flushing the ledger.
STEP_SECONDS = 5.0
#: Seconds between two checks whether a step has ended.
_CHECK_SECONDS = 0.05


def stacks(consumer_thread: int) -> str:
    """Return the stacks of all threads of this process, without any values.

    Args:
        consumer_thread: identifier of the thread that consumes.
    """
    # gevent and eventlet know the names of their greenlets, and not of the threads in which these run.
    names = {thread.ident: thread.name for thread in threading.enumerate()} | {consumer_thread: "that consumes"}
    return "\n".join(
        f"Thread {names.get(ident, 'without a name')} ({ident}):\n"
        + "".join(traceback.format_stack(frame)).rstrip()
        for ident, frame in sys._current_frames().items()
    )


def log_stall(reason: str, consequence: str, consumer_thread: int) -> None:
    """Log that the worker has stalled, with the stacks of its threads, in one record.

    Args:
        reason: why it counts as stalled.
        consequence: what happens now.
        consumer_thread: identifier of the thread that consumes.
    """
    text = stacks(consumer_thread)
    run_with_timeout(
        lambda: logger.critical(
            "the worker has stalled: %s. %s. Its threads:",
            reason,
            consequence,
            extra={"action": "worker_stalled", "reason": reason, "stacks": text},
        )
    )


def release_other_leases(running: list[Any]) -> None:
    """Renew only the leases of messages whose handlers run, so that other workers get the rest.

    Args:
        running: requests whose handlers run.
    """
    lease.renew_only(str(request.message.delivery_tag) for request in running)


def request_warm_shutdown(worker: Any) -> None:
    """Have Celery shut the worker down warm with ``EXIT_STALLED``: handlers that run come to their end.

    Args:
        worker: Celery's worker.
    """
    celery_state: Any = state  # its stubs declare it as None
    celery_state.should_stop = EXIT_STALLED
    if worker.hub is not None:
        worker.hub.call_soon(_nothing)  # wakes the loop


def exit_now(app: Any) -> None:
    """End this process and its children at once with ``EXIT_STALLED``. Does not return.

    Args:
        app: the application, an AgentApp; what it has recorded is flushed before.
    """
    run_with_timeout(app.components.flush)
    run_with_timeout(_flush_logs)
    for child in active_children():  # the pool's processes, and an embedded beat
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
    os._exit(EXIT_STALLED)


def run_with_timeout(step: Callable[[], object], timeout: float = STEP_SECONDS) -> bool:
    """Run a step in its own thread, and return whether it ended in time.

    The step may need a lock that the stalled code holds, such as that of a log handler.

    Args:
        step: what to do; an exception is logged.
        timeout: seconds.
    """
    ended: list[bool] = []

    def run() -> None:
        try:
            step()
        except Exception:
            logger.exception(
                "a step failed while a stalled worker was ended; the next step follows",
                extra={"action": "ending_failed"},
            )
        finally:
            ended.append(True)

    native.start_thread(run)
    for _ in range(int(timeout / _CHECK_SECONDS)):
        if ended:
            return True
        native.sleep(_CHECK_SECONDS)
    return False


def _flush_logs() -> None:
    for each in (logging.getLogger(), logging.getLogger("celery"), logger):
        for handler in each.handlers:
            handler.flush()


def _nothing() -> None:
    """Do nothing."""
