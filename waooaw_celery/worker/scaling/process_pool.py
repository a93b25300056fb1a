"""The pool of processes: replaces dead processes at once, and lets those that it gives up end cleanly."""

from __future__ import annotations

import gc
import time
from typing import Any
from weakref import WeakSet

from billiard.pool import RUN, TERMINATE
from celery.concurrency.asynpool import AsynPool, _get_job_writer, _select  # type: ignore[attr-defined]

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: The pauses in seconds between the checks of a prefork pool when one of its processes may have ended. It mostly
#: ends within milliseconds.
CHECK_SECONDS = (0.002, 0.003, 0.005, 0.01, 0.02, *(0.05 for _ in range(20)))
#: Seconds in which a process reports that it has begun a job.
BEGIN_SECONDS = 2.0


class PromptProcessPool(AsynPool):
    """A process pool that replaces a dead process at once, and knows what its processes have begun.

    The event loop hears when a process closes its last file, just before it ends. Celery's pool checks once, finds
    a living process, and checks again at its next regular time, up to 5 s later. This one checks repeatedly.

    Celery also searches the worker's whole memory for garbage before each fork, which takes longer than the fork.
    What exists before the first fork lives as long as the worker, so this pool exempts it from that search.

    When it shrinks, a busy process ends after its message. Celery's pool refuses to shrink further than it has
    idle processes, and first ends those. It sends SIGTERM to them, also to one that has received a message and not
    reported it, and so interrupts a handler.
    """

    _state: Any
    _pool: list[Any]
    _processes: int
    _putlock: Any
    _fileno_to_inq: dict[int, Any]
    _cache: dict[Any, Any]
    _fileno_to_outq: dict[int, Any]
    _active_writers: set[Any]
    _result_handler: Any
    _flush_writer: Any
    on_inqueue_close: Any
    _hub: Any = None
    _checks = 0
    _timer: Any = None
    _frozen = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: The processes that were told to end.
        self._leaving: WeakSet[Any] = WeakSet()
        super().__init__(*args, **kwargs)

    def _create_worker_process(self, i: int) -> Any:
        if not self._frozen:
            gc.collect()
            gc.freeze()
            self._frozen = True
        return super()._create_worker_process(i)  # type: ignore[misc]  # missing from its stubs

    def register_with_event_loop(self, hub: Any) -> None:
        """Note the event loop, whose timer calls the further checks."""
        self._hub = hub
        super().register_with_event_loop(hub)

    @property
    def timers(self) -> dict[Any, float]:
        """The functions that the event loop calls regularly, with the seconds between two calls: one check."""
        return {super().maintain_pool: 5.0, self._end_idle: 1.0}

    @property
    def leaving(self) -> int:
        """How many processes are still there that the pool has given up: they handle a message, or are ending."""
        return max(len(self._pool) - self._processes, 0)

    def grow(self, n: int = 1) -> None:
        """Add processes, and start them at once; Celery's pool starts them at its next regular check.

        Args:
            n: how many.

        Raises:
            ValueError: it is not at least 1.
        """
        if n < 1:
            raise ValueError(f"a pool grows by at least one process, not {n}")
        super().grow(n)
        self.maintain_pool()

    def shrink(self, n: int = 1) -> None:
        """Give up processes: idle ones end at once, the others after the message that they handle.

        Args:
            n: how many.

        Raises:
            ValueError: it is not at least 1, or more than there are.
        """
        if not 1 <= n <= self._processes:
            raise ValueError(f"a pool of {self._processes} processes cannot lose {n}")
        self._processes -= n
        if self._putlock is not None:
            for _ in range(n):
                self._putlock.shrink()
        self._end_idle()

    def on_job_ready(self, job: Any, i: Any, obj: Any, inqW_fd: int) -> None:  # noqa: N803 - Celery's own name
        """Note that a process has ended a job, and end the process if the pool has too many."""
        super().on_job_ready(job, i, obj, inqW_fd)
        if len(self._pool) > self._processes:
            self._end_idle(done=job)

    def _end_idle(self, done: Any = None) -> None:
        """Tell idle processes to end, as many as there are too many.

        A process that has not reported that it started is left for the next check.

        Args:
            done: a job that has just ended.
        """
        surplus = len(self._pool) - len(self._leaving.intersection(self._pool)) - self._processes
        if surplus <= 0 or self._hub is None or self._state != RUN:
            return
        jobs = [job for number, job in self._cache.items() if number != done]
        busy = {id(process) for job in jobs for process in (job._write_to, job._scheduled_for)}
        pids = {pid for job in jobs for pid in job.worker_pids()}
        idle = [
            process
            for process in self._pool
            if process not in self._leaving
            and self._is_up(process)
            and id(process) not in busy
            and process.pid not in pids
        ]
        for process in idle[:surplus]:
            self._leaving.add(process)
            # No further job goes to it; then it reads the same word as when the worker ends.
            self.on_inqueue_close(process.inqW_fd, process)
            self._hub.remove_writer(process.inqW_fd)
            process._controlled_termination = True
            process.inq.put(None)

    def _is_up(self, process: Any) -> bool:
        """Return whether a process has reported that it started, and still gets jobs."""
        return self._fileno_to_inq.get(process.inqW_fd) is process

    def flush(self) -> None:
        """Discard the jobs that no process has begun: the worker ends, or has lost its connection.

        Celery also discards a job that a process has received and not reported yet. The process runs it all the
        same, its message is handled twice, and at its end the process waits for half a minute until somebody reads
        the result. So the reports are read first.
        """
        if self._state != TERMINATE:
            self._read_begins()
        super().flush()

    def _read_begins(self) -> None:
        handler, ends_at = self._result_handler, time.monotonic() + BEGIN_SECONDS
        while processes := {job._write_to for job in self._sent_jobs()}:
            left = ends_at - time.monotonic()
            if left <= 0:
                logger.warning(
                    "a process has not reported in time that it began; its message may be handled twice"
                )
                return
            readable, _, _ = _select(readers={process.outqR_fd for process in processes}, timeout=left)
            for descriptor in readable:
                handler._flush_outqueue(descriptor, _keep, self._fileno_to_outq, handler.on_state_change)

    def _sent_jobs(self) -> list[Any]:
        """Return the jobs that a living process has received, and that it has not begun as far as is known."""
        sent = [job for job in tuple(self._cache.values()) if job._write_to is not None and not job._accepted]
        for job in sent:
            writer = _get_job_writer(job)
            if writer in self._active_writers:  # it has received a part
                self._flush_writer(job._write_to, writer)
        return [job for job in sent if job._write_to._is_alive()]

    def maintain_pool(self) -> None:
        """Replace processes that have ended, now and a few times more."""
        super().maintain_pool()
        self._end_idle()
        if self._hub is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._checks = 0
            self._check_later()

    def _check_later(self) -> None:
        self._timer = None
        if self._checks < len(CHECK_SECONDS):
            self._timer = self._hub.call_later(CHECK_SECONDS[self._checks], self._check_again)

    def _check_again(self) -> None:
        self._checks += 1
        self._check_later()
        super().maintain_pool()


def _keep(descriptor: int) -> None:
    """Do nothing about the file of a process that has ended: the pool itself finds out."""
