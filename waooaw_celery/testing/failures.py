"""Failures on purpose: handlers that fail, answers and messages that get lost, processes that are killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from celery.exceptions import WorkerTerminate
from celery.platforms import EX_FAILURE
from celery.worker import state

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import AGENT_QUEUES

#: The pairs of moments between which a process can be killed.
MOMENTS = (
    ("record", "publish"),
    ("deliver", "handle"),
    ("handle", "record"),
    ("commit", "record"),
    ("record", "acknowledge"),
)


class Killed(WorkerTerminate):
    """The process was killed here, as by ``kill -9``: nothing after this moment happened.

    It is no ``Exception``, so that no handler catches it by accident. A test that sends a message itself gets it
    from the send.
    """


@dataclass(slots=True)
class _Plan:
    agent: str
    handler: str | None
    left: int

    def takes(self, agent: str, handler: str | None = None) -> bool:
        """Return whether it is for this handler, and count it then."""
        if self.left < 1 or agent != self.agent or (self.handler is not None and self.handler != handler):
            return False
        self.left -= 1
        return True


@dataclass(slots=True)
class Failures:
    """The failures that a test has ordered and that have not happened yet. Safe for several threads."""

    _errors: list[tuple[_Plan, BaseException]] = field(default_factory=list)
    _kills: list[tuple[_Plan, tuple[str, str]]] = field(default_factory=list)
    _lost_answers: list[_Plan] = field(default_factory=list)
    _duplicates: list[_Plan] = field(default_factory=list)
    _delays: list[tuple[_Plan, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dying: set[str] = field(default_factory=set)

    def fail_next(self, target: str, error: BaseException, times: int) -> None:
        """Have the next calls of a handler raise an error."""
        self._errors.append((_plan(target, times), error))

    def drop_answer(self, target: str, times: int) -> None:
        """Have the next answers of an agent get lost."""
        self._lost_answers.append(_plan(target, times))

    def duplicate(self, agent: str, times: int) -> None:
        """Have the broker deliver the next messages to an agent twice."""
        self._duplicates.append(_plan(agent, times))

    def delay(self, agent: str, seconds: float, times: int) -> None:
        """Have the broker hold back the next messages to an agent."""
        self._delays.append((_plan(agent, times), seconds))

    def kill_between(self, first: str, second: str, target: str, times: int) -> None:
        """Have the process be killed between two moments of the next message of an agent.

        Raises:
            ConfigurationError: there are no such moments.
        """
        if (first, second) not in MOMENTS:
            known = ", ".join(f"({one!r}, {other!r})" for one, other in MOMENTS)
            raise ConfigurationError(f"a process cannot be killed between {first!r} and {second!r}: use {known}")
        self._kills.append((_plan(target, times), (first, second)))

    # --- asked by the broker and the worker

    def at_publish(self, queue: str, message: dict[str, Any]) -> tuple[int, float]:
        """Return how often a message is stored, and for how many seconds it is held back.

        Raises:
            Killed: its sender is killed before it is published.
        """
        if not queue.startswith(AGENT_QUEUES):
            return 1, 0.0
        agent = queue.removeprefix(AGENT_QUEUES)
        handler = str(message["headers"].get("task", "")).partition(".")[2]
        with self._lock:
            if self._takes_kill(("record", "publish"), agent, handler):
                raise Killed(f"killed between the record and the publish of a message to {agent}")
            copies = 2 if any(plan.takes(agent, handler) for plan in self._duplicates) else 1
            seconds = next((delay for plan, delay in self._delays if plan.takes(agent, handler)), 0.0)
        return copies, seconds

    def loses_answer(self, agent: str, handler: str) -> bool:
        """Return whether the answer to this message gets lost."""
        with self._lock:
            return any(plan.takes(agent, handler) for plan in self._lost_answers)

    def at_acknowledge(self, tag: str) -> None:
        """Raise Killed if the worker is killed before it acknowledges this message."""
        if tag in self._dying:
            self._dying.discard(tag)
            raise Killed("killed before the message was acknowledged")

    @contextmanager
    def around(self, task: Any, tag: str) -> Iterator[None]:
        """Have a handler fail, or its worker be killed, while it handles a message.

        Args:
            task: the handler, an AgentTask.
            tag: the delivery tag of the message.
        """
        agent, handler = task.agent, task.handler
        with self._lock:
            error = next((error for plan, error in self._errors if plan.takes(agent, handler)), None)
            before = self._takes_kill(("deliver", "handle"), agent, handler)
            after = self._takes_kill(("handle", "record"), agent, handler)
            committed = self._takes_kill(("commit", "record"), agent, handler)
            if self._takes_kill(("record", "acknowledge"), agent, handler):
                self._dying.add(tag)
        run = task.run
        if before:
            task.run = _raising(run, Killed(f"killed before {task.name} began"))
        elif error is not None:
            task.run = _raising(run, error)
        elif after:
            task.run = _then_raising(run, Killed(f"killed before the outcome of {task.name} was recorded"))
        if committed:
            task.handle = _then_raising(task.handle, Killed(f"killed after the commit of {task.name}"))
        worker_state: Any = state
        stopping = worker_state.should_terminate
        worker_state.should_terminate = EX_FAILURE if before or after or committed else None
        try:
            yield
        finally:
            worker_state.should_terminate = stopping
            task.run = run
            task.__dict__.pop("handle", None)
            self._dying.discard(tag)

    def _takes_kill(self, moment: tuple[str, str], agent: str, handler: str) -> bool:
        return any(each == moment and plan.takes(agent, handler) for plan, each in self._kills)


def _plan(target: str, times: int) -> _Plan:
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise ValueError(f"times must be a positive number, not {times!r}")
    agent, _, handler = target.partition(".")
    return _Plan(agent, handler or None, times)


def _raising(run: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    @wraps(run)
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def _then_raising(run: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    @wraps(run)
    def fail(*args: Any, **kwargs: Any) -> Any:
        run(*args, **kwargs)
        raise error

    return fail
