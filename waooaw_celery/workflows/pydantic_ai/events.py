"""What an agent waits for from outside: the token that it hands out names a signal of its workflow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

from pydantic import JsonValue
from pydantic_ai.durable_exec import ExternalEventError, ExternalEventWaiter

from waooaw_celery.errors import SignalTimeout
from waooaw_celery.workflows.flow import Flow
from waooaw_celery.workflows.pydantic_ai.operations import StepOptions, in_step, step_part


class SignalWaiter(ExternalEventWaiter):
    """Waits for a signal, such as the answer for which pydantic-ai's ``RequestInput`` asks.

    The token is ``<workflow id>/<signal>``.

    Args:
        flow: the steps of the workflow.
        agent: name of the agent.
    """

    def __init__(self, flow: Flow, agent: str) -> None:
        self._flow, self._agent = flow, agent

    async def wait(
        self, name: str, *, ask: Callable[[str], Awaitable[JsonValue]], timeout: timedelta | None
    ) -> JsonValue:
        """Ask once, in a step, and return the answer, or else the payload of the signal.

        Raises:
            ExternalEventError: no signal arrived in time.
        """
        signal = str(self._flow.uuid())
        asked = f"{step_part(self._agent)} ask {step_part(name)}"
        answer = await in_step(
            asked, partial(ask, f"{self._flow.workflow_id}/{signal}"), StepOptions.of(None, None)
        )
        try:
            found: JsonValue = (
                await self._flow.wait_for(signal, timeout=timeout) if answer is None else answer  # type: ignore[assignment]
            )
        except SignalTimeout as error:
            raise ExternalEventError(str(error)) from error
        return found
