"""A request by capability that is tried at other agents when the first one does not work."""

from __future__ import annotations

from typing import Any

from waooaw_celery.agents.requests.request_retries import Pause, RequestRetries
from waooaw_celery.agents.requests.response import Response
from waooaw_celery.app.app import AgentApp
from waooaw_celery.discovery.address import CapabilityAddress, is_capability
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

#: The most other agents that may be tried.
MAX_ALTERNATIVES = 100


def check_alternatives(alternatives: Any, to: str | CapabilityAddress, retry: object) -> int:
    """Return at how many other agents a request may be tried.

    Raises:
        InvalidMessage: it is no whole number from 0 to 100; or the request names an agent and no capability, or
            has ``retry=`` too.
    """
    if type(alternatives) is not int or not 0 <= alternatives <= MAX_ALTERNATIVES:
        raise InvalidMessage(
            f"alternatives must be a whole number from 0 to {MAX_ALTERNATIVES}, not {alternatives!r:.80}"
        )
    if alternatives and not is_capability(to):
        raise InvalidMessage(
            f"alternatives needs a capability, such as capability:summarise, not the agent {to!r:.80}: a request "
            "that names its agent goes there"
        )
    if alternatives and retry is not None:
        raise InvalidMessage(
            "a request has either retry= or alternatives=: the first tries it again, the second elsewhere"
        )
    return alternatives


class Alternatives(RequestRetries):
    """The attempts of one request, each at another agent.

    Args:
        app: the application that sends it.
        count: at how many further agents it may be tried.
        timeout: seconds for all attempts together.

    Attributes:
        tried: the agents that were tried, and what came of it.
    """

    def __init__(self, app: AgentApp, count: int, timeout: float) -> None:
        super().__init__(app, RetryPolicy(attempts=count + 1, first_delay=0.0, jitter=False), timeout)
        self.tried: dict[str, str] = {}

    def pause_before_next(self, response: Response) -> Pause | None:
        """Return the pause before the next agent is tried, or None if none is.

        Args:
            response: the response of the last one.
        """
        if response.error is None:
            return None
        self.tried[response.agent] = f"it was tried: {type(response.error).__name__}"
        return self.pause_after(response.error)

    def _is_worth_repeating(self, error: Exception) -> bool:
        return self._app.components.is_target_failure(error)
