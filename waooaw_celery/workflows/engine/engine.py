"""The engine of a process: it looks for workflows, runs them, renews leases, and puts those down that wait."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.execution.event_loop import handler_event_loop
from waooaw_celery.workflows.definition import Definitions
from waooaw_celery.workflows.engine.claims import Claims
from waooaw_celery.workflows.engine.run import WorkflowRun
from waooaw_celery.workflows.journal.journal import NO_WORKER, Journal
from waooaw_celery.workflows.journal.records import Claim, Loaded
from waooaw_celery.workflows.journal.writer import TurnWriter
from waooaw_celery.workflows.states import WorkflowStatus
from waooaw_celery.workflows.steps.publisher import WorkflowPublisher

logger = get_logger(__name__)

T = TypeVar("T")

#: Threads for local steps that are plain functions.
_THREADS = 32
#: Seconds between two searches for due workflows while more are due than this process may run at once.
_MORE_SECONDS = 0.02
#: Seconds between two looks for inputs of workflows whose code runs.
_LOOK_SECONDS = 0.25
#: Seconds that running local steps have to end when the process ends.
_CLOSE_SECONDS = 5.0
#: Seconds between two searches for workflows whose version no worker has.
_MARK_SECONDS = 5.0


class WorkflowEngine:
    """Runs the workflows of an application's agents in this process.

    Args:
        app: the application, an AgentApp with a ledger.
        definitions: the functions of its workflows.
    """

    def __init__(self, app: Any, definitions: Definitions) -> None:
        self.app, self.definitions = app, definitions
        self.journal = Journal(app.database, app.settings.workflow_lease_seconds)
        self._renew_seconds: float = app.settings.workflow_lease_seconds / 4
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.writer = TurnWriter(self.journal)
        self.publisher = WorkflowPublisher(app)
        self.threads = ThreadPoolExecutor(_THREADS, "waooaw-workflow-step")
        self._reads = ThreadPoolExecutor(2, "waooaw-workflow-read")
        settings = app.settings
        self._idle_seconds: float = settings.workflow_idle_seconds
        self._poll_seconds: float = settings.workflow_poll_seconds
        self._runs: dict[str, WorkflowRun] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._arming: set[str] = set()
        self._claims = Claims(self, self._runs, settings.workflow_concurrency)
        self._main_task: Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed = self._closing = False
        self._lock = threading.Lock()

    # --- for any thread

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop on which it runs; None: it has not started."""
        return self._loop

    def start(self) -> None:
        """Start to look for workflows that are due. Another call changes nothing."""
        with self._lock:
            if self._main_task is None and not self._closing:
                events = handler_event_loop(self.app.settings.stall_seconds)
                self._loop = events.loop
                self._main_task = events.spawn(self._main())

    def wake(self, workflow_id: str) -> None:
        """Look at a workflow now: something has arrived for it."""
        self.start()
        loop = self._loop
        if loop is not None and not self._closing:
            with suppress(RuntimeError):  # the loop has just been closed: another process looks at it
                loop.call_soon_threadsafe(self._claims.want, workflow_id)

    def take_answer(self, workflow_id: str, request_id: str, payload: JSON) -> None:
        """Record the answer to a request of a workflow, and let the workflow go on.

        Args:
            workflow_id: the workflow.
            request_id: the request that is answered.
            payload: its result or its error.

        Raises:
            AuditUnavailable: the database does not answer: the answer was not recorded.
        """
        self.start()
        run = self._runs.get(workflow_id)
        given_back = None
        if run is not None and self._claims.room() > 0 and not self._closing:
            given_back = run.given_back
        answer = self.journal.answers.add(workflow_id, request_id, payload, self.owner, given_back)
        loop = self._loop
        if answer is not None and loop is not None:
            with suppress(RuntimeError):  # the loop has just been closed: another process looks at it
                loop.call_soon_threadsafe(self._claims.hand_over, run, workflow_id, answer)

    def close(self) -> None:
        """Give all workflows back: this process ends. Local steps that run have some seconds to end."""
        with self._lock:
            self._closing = True
            main, self._main_task = self._main_task, None
        if main is None or self._loop is None:
            return
        main.cancel()
        closed = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        try:
            closed.result(_CLOSE_SECONDS + 5)
        except TimeoutError:
            logger.warning(
                "workflows could not be given back in time; other processes take them over when their leases end",
                extra={"action": "workflows_not_given_back"},
            )
        for pool in (self.writer, self.publisher):
            pool.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._reads.shutdown(wait=False)

    @property
    def is_closed(self) -> bool:
        """Whether it has given its workflows back, and takes no more."""
        return self._closing

    def now(self) -> datetime:
        """Return the time by the reference clock."""
        found: datetime = self.app.reference_clock.now()
        return found

    # --- for the event loop

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that blocks, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._reads, partial(function, *args))

    async def load(self, claim: Claim, after: int, after_input: int = 0) -> Loaded:
        """Return what the journal has of a workflow after a change, and after an input."""
        return await self.in_thread(self.journal.load, claim.workflow_id, claim.run, after, after_input)

    async def load_inputs(self, claim: Claim, after_input: int) -> Loaded:
        """Return the inputs of a workflow after one of them."""
        return await self.in_thread(self.journal.load_inputs, claim.workflow_id, after_input)

    async def look(self) -> bool:
        """Take the workflows that are due now, and return whether one of this process can go on.

        A worker looks by itself, after a pause. A test calls this when it has moved its clock.
        """
        claims = await self._claims.take(None) if self._claims.room() > 0 and not self._closing else []
        for run in list(self._runs.values()):
            due = run.next_due()
            if run.owned and due is not None and due <= self.now():
                self._fire(run)
        return bool(claims or self._claims.busy) or any(
            run.owned or run.busy or run.changes.writing or run.changes.pending for run in self._runs.values()
        )

    def arm(self, run: WorkflowRun) -> None:
        """Set the timer for when a workflow must be looked at without an input."""
        if run.workflow_id not in self._arming:
            self._arming.add(run.workflow_id)
            asyncio.get_running_loop().call_soon(self._arm, run)

    def _arm(self, run: WorkflowRun) -> None:
        self._arming.discard(run.workflow_id)
        handle = self._timers.pop(run.workflow_id, None)
        if handle is not None:
            handle.cancel()
        due = run.next_due()
        if due is not None and not run.closed:
            delay = max((due - self.now()).total_seconds(), 0.0)
            if delay < 86_400:
                loop = asyncio.get_running_loop()
                self._timers[run.workflow_id] = loop.call_later(delay + 0.001, self._fire, run)

    def put_down(self, run: WorkflowRun) -> None:
        """Keep a workflow that waits in memory for a moment only."""
        run.dormant_since = time.monotonic()
        self.arm(run)

    def forget(self, run: WorkflowRun) -> None:
        """Remove a workflow from this process."""
        if self._runs.get(run.workflow_id) is run:
            del self._runs[run.workflow_id]
        handle = self._timers.pop(run.workflow_id, None)
        if handle is not None:
            handle.cancel()

    def note_end(self, run: WorkflowRun, status: WorkflowStatus) -> None:
        """Log the end of a workflow, and look at its parent."""
        logger.info(
            "workflow %s is %s",
            run.workflow_id,
            status.value,
            extra={"action": "workflow_ended", "workflow_id": run.workflow_id, "status": status.value},
        )
        if run.claim.parent_id is not None:
            self.wake(run.claim.parent_id)

    def log_defect(self, run: WorkflowRun, error: BaseException) -> None:
        """Log an error that no workflow should cause."""
        logger.error(
            "workflow %s was put down after an error of the engine, and is tried again when its lease ends",
            run.workflow_id,
            exc_info=error,
            extra={"action": "workflow_engine_failed", "workflow_id": run.workflow_id},
        )

    def _fire(self, run: WorkflowRun) -> None:
        self._timers.pop(run.workflow_id, None)
        if run.closed:
            return
        if run.owned:
            run.process()
            run.touch()
        else:
            self._claims.want(run.workflow_id)

    async def _main(self) -> None:
        """Look for due workflows, renew leases, and put down what waits, until the process ends."""
        renewed_at = marked_at = looked_at = 0.0
        polled_at = float("-inf")
        are_more_due = False
        while True:
            now = time.monotonic()
            try:
                room = self._claims.room()
                if room > 0 and (are_more_due or now - polled_at >= self._poll_seconds):
                    polled_at = now
                    are_more_due = False
                    are_more_due = len(await self._claims.take(None)) >= room
                if now - renewed_at >= self._renew_seconds:
                    renewed_at = now
                    await self._renew()
                if now - looked_at >= _LOOK_SECONDS:
                    looked_at = now
                    await self._look_at_busy()
                if now - marked_at >= _MARK_SECONDS:
                    marked_at = now
                    await self._mark_without_worker()
                self._evict(now)
                self._failed = False
            except StoreUnavailable as error:
                if not self._failed:  # one line for each outage
                    logger.warning("%s; workflows wait", error, extra={"action": "workflows_wait"})
                self._failed = True
            except Exception:
                logger.exception("the search for workflows failed", extra={"action": "workflow_search_failed"})
            pause = _MORE_SECONDS if are_more_due else min(_LOOK_SECONDS, self._poll_seconds)
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311

    async def _renew(self) -> None:
        owned = [run.workflow_id for run in self._runs.values() if run.owned]
        if owned:
            await self.in_thread(self.journal.renew, self.owner, owned)

    async def _look_at_busy(self) -> None:
        known = {run.workflow_id: run.known_inputs for run in self._runs.values() if run.owned and run.runs_code}
        if not known:
            return
        for workflow_id in await self.in_thread(self.journal.with_new_inputs, known):
            run = self._runs.get(workflow_id)
            if run is not None and run.owned:
                await run.read_inputs()
                run.process()

    async def _mark_without_worker(self) -> None:
        known = self._claims.known_functions()
        if not known:
            return
        error = {
            "type": NO_WORKER,
            "message": f"no running worker has its version of the function; {self.owner} has others. "
            "Start a worker with that version, or fork it under another one",
        }
        for workflow_id in await self.in_thread(self.journal.mark_without_worker, known, error):
            logger.error(
                "workflow %s is stuck: no running worker has its version of the function",
                workflow_id,
                extra={"action": "workflow_stuck", "workflow_id": workflow_id},
            )

    def _evict(self, now: float) -> None:
        for run in list(self._runs.values()):
            if run.dormant_since is not None and now - run.dormant_since > self._idle_seconds:
                run.abandon()

    async def _close(self) -> None:
        deadline = time.monotonic() + _CLOSE_SECONDS
        for run in self._runs.values():
            run.stopped = True  # no further step begins
        while self.publisher.is_publishing or any(
            run.working or run.changes.writing for run in self._runs.values()
        ):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        for run in list(self._runs.values()):
            run.abandon()
        with suppress(StoreUnavailable):  # the leases end by themselves
            await self.in_thread(self.journal.give_back, self.owner)


_engines_lock = threading.Lock()
_engines: dict[int, tuple[int, WorkflowEngine]] = {}


def engine_of(app: Any) -> WorkflowEngine:
    """Return the engine of an application in this process; the first call makes it, after the pool has forked."""
    with _engines_lock:
        pid, engine = _engines.get(id(app), (0, None))
        if engine is None or pid != os.getpid() or engine.app is not app or engine.is_closed:
            engine = WorkflowEngine(app, app.workflows)
            _engines[id(app)] = os.getpid(), engine
            app.components.before_finish.append(engine.close)
        return engine


def _forget_engines() -> None:
    global _engines_lock
    _engines_lock = threading.Lock()
    _engines.clear()


os.register_at_fork(after_in_child=_forget_engines)
