"""The steps of a workflow whose function is a plain ``def``: each call waits for its step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from datetime import datetime
from threading import Thread
from typing import Any
from uuid import UUID

from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.engine.flow_control import ContinueAsNew, WorkflowStopped
from waooaw_celery.workflows.flow import Flow, RaceResult


class BlockingFlow:
    """The steps of a workflow, for a plain ``def``. They are those of ``Flow``, and return their results.

    ``gather``, ``map`` and ``race`` take functions, which they call in threads.

    Args:
        flow: the steps, as coroutines.
        loop: the event loop on which they run.

    Example:
        >>> @agent.workflow
        ... def publish(flow, topic: str) -> dict:
        ...     texts = flow.gather(
        ...         lambda: flow.request("writer", "draft", {"topic": topic}),
        ...         lambda: flow.request("artist", "draw", {"topic": topic}),
        ...     )
        ...     return {"text": texts[0], "picture": texts[1]}
    """

    def __init__(self, flow: Flow, loop: asyncio.AbstractEventLoop) -> None:
        self._flow, self._loop = flow, loop
        self._main = _Part(flow)
        self.workflow_id, self.agent, self.deadline = flow.workflow_id, flow.agent, flow.deadline

    def begin(self) -> None:
        """Note that the function's thread runs."""
        self._main.count()

    def stop(self) -> None:
        """End the waits of the function, and let no further step begin: it has ended, or does not go on here."""
        self._main.stop()

    def request(
        self, to_agent: str, method: str | None = None, params: Mapping[str, JSON] | None = None, **options: Any
    ) -> JSON:
        """Request a method of an agent, and return the result; see ``Flow.request``."""
        return self._wait(lambda: self._flow.request(to_agent, method, params, **options))

    def send(self, to_agent: str, payload: JSON, **options: Any) -> str:
        """Send a message, and return its id; see ``Flow.send``."""
        return str(self._wait(lambda: self._flow.send(to_agent, payload, **options)))

    def publish(self, topic: str, event: JSON = None, **options: Any) -> str:
        """Publish an event, and return its id; see ``Flow.publish``."""
        return str(self._wait(lambda: self._flow.publish(topic, event, **options)))

    def step(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> JSON:
        """Call a local function, and return its recorded result; see ``Flow.step``."""
        return self._wait(lambda: self._flow.step(function, *args, **kwargs))

    def sleep(self, duration: Any, **options: Any) -> None:
        """Wait; see ``Flow.sleep``."""
        self._wait(lambda: self._flow.sleep(duration, **options))

    def wait_for(self, signal: str, **options: Any) -> JSON:
        """Wait for a signal, and return its payload; see ``Flow.wait_for``."""
        return self._wait(lambda: self._flow.wait_for(signal, **options))

    def child(self, name: str, given: Mapping[str, JSON] | None = None, **options: Any) -> JSON:
        """Start another workflow, and return its result; see ``Flow.child``."""
        return self._wait(lambda: self._flow.child(name, given, **options))

    def gather(self, *functions: Callable[[], Any], return_exceptions: bool = False) -> list[Any]:
        """Call functions that make steps at the same time, and return their results in order."""
        return list(
            self._wait(
                lambda: self._flow.gather(
                    *(self._in_thread(function) for function in functions), return_exceptions=return_exceptions
                )
            )
        )

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], *, limit: int | None = None) -> list[Any]:
        """Call a function that makes steps with each item, at the same time; see ``Flow.map``."""
        return list(
            self._wait(
                lambda: self._flow.map(lambda item: self._in_thread(lambda: function(item)), items, limit=limit)
            )
        )

    def race(self, *functions: Callable[[], Any]) -> RaceResult:
        """Call functions that make steps at the same time; return which was first, and its result."""
        found: RaceResult = self._wait(
            lambda: self._flow.race(*(self._in_thread(function) for function in functions))
        )
        return found

    def now(self) -> datetime:
        """Return the time; see ``Flow.now``."""
        found: datetime = self._on_loop(self._flow.now)
        return found

    def random(self) -> float:
        """Return a random number from 0 to 1; see ``Flow.random``."""
        return self._flow.random()

    def uuid(self) -> UUID:
        """Return a unique UUID; see ``Flow.uuid``."""
        return self._flow.uuid()

    def compensate(self, undo: str | Callable[..., Any], *args: Any, **options: Any) -> None:
        """Register what undoes the last step; see ``Flow.compensate``."""
        self._on_loop(lambda: self._flow.compensate(undo, *args, **options))

    def progress(self, value: JSON) -> None:
        """Set the progress; see ``Flow.progress``."""
        self._on_loop(lambda: self._flow.progress(value))

    def continue_as_new(self, given: Mapping[str, JSON] | None = None, /, **more: JSON) -> None:
        """Begin again with another input; see ``Flow.continue_as_new``."""
        self._flow.continue_as_new(given, **more)

    def _on_loop(self, function: Callable[[], Any]) -> Any:
        async def call(_: _Part) -> Any:
            return function()

        return self._run(call)

    def _wait(self, make: Callable[[], Any]) -> Any:
        """Make a step on the event loop, and wait for its outcome."""

        async def call(part: _Part) -> Any:
            part.uncount()
            try:
                return await make()
            finally:
                part.count()

        return self._run(call)

    def _run(self, call: Callable[[_Part], Coroutine[Any, Any, Any]]) -> Any:
        part = _part.get(self._main)

        async def unless_stopped() -> Any:
            if part.stopped:  # asked on the loop, as stop() is: the thread may have been slow since
                raise asyncio.CancelledError
            return await call(part)

        # The handle copies the context of this thread, with its branch.
        wait = asyncio.run_coroutine_threadsafe(unless_stopped(), self._loop)
        part.waits.add(wait)
        if part.stopped:  # after the wait was added: either this or stop() ends it
            wait.cancel()
        try:
            return wait.result()
        except FutureCancelled:
            raise WorkflowStopped from None
        finally:
            part.waits.discard(wait)

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Call a function of a branch in a thread; it counts as busy except while it waits for a step."""
        result: Future[Any] = Future()
        part = _Part(self._flow)
        context = copy_context()
        context.run(_part.set, part)
        part.count()
        Thread(target=context.run, args=(_call, function, result), name="workflow-branch", daemon=True).start()
        try:
            return await asyncio.wrap_future(result)
        finally:
            part.stop()


class _Part:
    """The function of a workflow, or of one of its branches, that runs in a thread.

    Only ``waits`` is used by the thread; everything else by the event loop.

    Args:
        flow: the steps of the workflow.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._is_counted = False
        self.stopped = False
        #: The steps for which the thread waits.
        self.waits: set[Future[Any]] = set()

    def count(self) -> None:
        """Count the thread as busy, unless it was stopped: then nobody waits for it."""
        if not self._is_counted and not self.stopped:
            self._is_counted = True
            self._flow.busy()

    def uncount(self) -> None:
        """Do not count the thread as busy: it waits for a step."""
        if self._is_counted:
            self._is_counted = False
            self._flow.idle()

    def stop(self) -> None:
        """End the waits of the thread; a further one ends at once. What waits in its branches ends with it."""
        self.stopped = True
        for wait in list(self.waits):
            wait.cancel()
        self.uncount()


#: The part of the function to which the running thread belongs.
_part: ContextVar[_Part] = ContextVar("workflow_part")


def _call(function: Callable[[], Any], result: Future[Any]) -> None:
    try:
        value = function()
    except WorkflowStopped:
        result.cancel()
    except StopIteration as error:  # no future can carry it
        stopped = RuntimeError("a branch raised StopIteration")
        stopped.__cause__ = error
        if result.set_running_or_notify_cancel():
            result.set_exception(stopped)
    except (Exception, ContinueAsNew) as error:  # noqa: BLE001 - it is the outcome of the branch
        if result.set_running_or_notify_cancel():
            result.set_exception(error)
    except BaseException as error:  # noqa: BLE001 - nothing may end the thread unseen
        if result.set_running_or_notify_cancel():
            result.set_exception(RuntimeError(f"a branch raised {type(error).__name__}"))
    else:
        if result.set_running_or_notify_cancel():
            result.set_result(value)
