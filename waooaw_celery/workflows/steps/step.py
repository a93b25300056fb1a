"""A step of a workflow's function as its code sees it: something to await."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from waooaw_celery.discovery.address import CapabilityAddress
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.workflows.engine.computation import current_computation
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.states import StepKind

logger = get_logger(__name__)

_PACKAGE = str(Path(__file__).parents[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCall:
    """A call of a local function.

    Attributes:
        call: calls it; may return a coroutine.
        retry: when it is tried again after an error.
        timeout: seconds that an attempt may take; None: no limit.
    """

    call: Callable[[], Any]
    retry: RetryPolicy
    timeout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCall:
    """A request to an agent.

    Attributes:
        target: the agent and its method; None: an agent is chosen for each attempt.
        params: the method's keyword arguments.
        retry: when it is tried again after an error.
        timeout: seconds until an attempt expires; None: never.
        priority: how urgent it is.
        capability: what the chosen agent must be able to do, or None.
        method: the method that is requested of the chosen agent; None: whichever the capability is.
    """

    target: HandlerName | None
    params: Mapping[str, JSON]
    retry: RetryPolicy
    timeout: float | None
    priority: Priority
    capability: CapabilityAddress | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCall:
    """A child workflow.

    Attributes:
        name: ``<agent>.<function>``.
        input: its input.
        workflow_id: its id; None: one that follows from its parent's and the step.
        priority: how urgent it is.
    """

    name: str
    input: Mapping[str, JSON]
    workflow_id: str | None
    priority: Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A wait for a time or a signal.

    Attributes:
        signal: name of the signal; None: only the time counts.
        until: when the wait ends; None: never.
    """

    signal: str | None
    until: datetime | None


Call = LocalCall | RequestCall | ChildCall | Waiting


class Step:
    """A step. It begins when it is awaited, or given to ``gather`` or ``race``.

    Args:
        run: the workflow.
        kind: what the step does.
        path: which step of the function it is.
        call: what it does in detail.

    Attributes:
        is_awaited: whether it was awaited, or given to a branch.
    """

    __slots__ = ("_run", "call", "code", "is_awaited", "kind", "line", "path")

    def __init__(self, run: Run, kind: StepKind, path: str, call: Call) -> None:
        self.is_awaited, self._run = False, run
        self.kind, self.path, self.call = kind, path, call
        self.code, self.line = _caller()

    def __del__(self) -> None:
        if not self.is_awaited and not self._run.stopped and not self._run.closed:
            logger.warning(
                "step %s of workflow %s was never awaited, and has done nothing: write await before it, at %s",
                self.path,
                self._run.workflow_id,
                self.location,
                extra={"action": "step_not_awaited", "workflow_id": self._run.workflow_id},
            )

    def __await__(self) -> Generator[Any, None, JSON]:
        """Return the recorded outcome of the step, or let it happen and record it."""
        self.is_awaited = True
        computation = current_computation.get()
        outcome = self._run.perform(self)
        return (outcome if computation is None else computation.wait(outcome)).__await__()

    @property
    def location(self) -> str:
        """Where the workflow's function makes the step: file and line."""
        return f"{self.code.co_filename}:{self.line}"


def _caller() -> tuple[Any, int]:
    """Return the code and the line outside of this package that makes a step."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame.f_code, frame.f_lineno
