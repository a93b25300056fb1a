"""Code of a workflow's function that does more than make steps, such as the loop of an AI agent.

A workflow counts as waiting when its function has made no step for some rounds of the event loop. Code that takes
longer between two steps says so with a ``Computation``. It counts as busy, except while it waits for a step.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import ContextVar, Token
from typing import TypeVar

from waooaw_celery.workflows.engine.interface import Run

T = TypeVar("T")


class Computation:
    """Code that is busy until it ends, except while it waits for a step, or for a computation within it.

    Args:
        run: the workflow.

    Example:
        >>> with Computation(run):
        ...     result = await agent.run(prompt)
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._waits = 0
        self._outer: Computation | None = None
        self._token: Token[Computation | None] | None = None

    def __enter__(self) -> Computation:
        self._run.busy += 1
        self._outer = current_computation.get()
        if self._outer is not None:
            self._outer.begin_wait()
        self._token = current_computation.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            current_computation.reset(self._token)
        if self._outer is not None:
            self._outer.end_wait()
        self._run.busy -= 1
        self._run.touch()

    async def wait(self, outcome: Awaitable[T]) -> T:
        """Await the outcome of a step."""
        self.begin_wait()
        try:
            return await outcome
        finally:
            self.end_wait()

    def begin_wait(self) -> None:
        """Note that a part of the code waits."""
        self._waits += 1
        if self._waits == 1:
            self._run.busy -= 1
            self._run.touch()

    def end_wait(self) -> None:
        """Note that a part of the code goes on."""
        self._waits -= 1
        if self._waits == 0:
            self._run.busy += 1


#: The computation to which the running code belongs.
current_computation: ContextVar[Computation | None] = ContextVar("current_computation", default=None)
