"""Lets requests through to agents that work and are not overloaded, and notes how the requests end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from waooaw_celery.app.app import AgentApp
from waooaw_celery.messages.message import Message
from waooaw_celery.store.resilience.failures import works
from waooaw_celery.store.resilience.in_flight import Place


class Permit:
    """A request that was let through. Its end is noted once; further calls do nothing.

    Args:
        app: the application that sends it.
        message: the request.
        counts: whether its outcome counts for the circuit breaker of the agent.
        is_probe: whether it is the probe of a breaker that was open.

    Attributes:
        place: its place among the open requests, or None.
    """

    __slots__ = ("_app", "_counts", "_ended", "_is_probe", "_message", "place")

    def __init__(self, app: AgentApp, message: Message, counts: bool, is_probe: bool) -> None:
        self._app, self._message = app, message
        self._counts, self._is_probe = counts, is_probe
        self._ended = False
        self.place: Place | None = None

    def begin_answer(self) -> None:
        """Note that the first part of a streamed answer has arrived: that is enough for a probe."""
        if self._is_probe:
            self._is_probe = False
            self._app.breakers.end_probe(self._message.to_agent, self._message.message_id, True)

    def end(self, error: BaseException | None) -> None:
        """Note how the request ended.

        Args:
            error: why there is no result; None: there is one.
        """
        if not self._ended:
            self._end(works(error, self._app.components.is_target_failure))

    def drop(self) -> None:
        """Note that nobody waits for the answer any more, or that the request was not sent."""
        if not self._ended:
            self._end(None)

    def hand_over(self) -> None:
        """Note that the request was sent and that its answer comes as a message, which ends the probe."""
        self._is_probe = self._counts = False
        self.drop()

    def _end(self, has_worked: bool | None) -> None:
        self._ended = True
        message, app = self._message, self._app
        if self.place is not None:
            app.in_flight.leave(self.place)
        if self._is_probe:
            app.breakers.end_probe(message.to_agent, message.message_id, has_worked)
        elif self._counts and has_worked is True:
            app.breakers.succeeded(message.to_agent)
        elif self._counts and has_worked is False:
            app.breakers.failed(message.to_agent)


class TargetGuard:
    """Lets requests through, or refuses them: by the circuit breaker of the agent, and by the open requests to it.

    Args:
        app: the application that sends the requests.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app

    def admit(
        self, requests: Iterable[tuple[Any, Message]], timeout: float, *, breaker: bool, waits: bool
    ) -> list[Permit]:
        """Return the permit of each request. All are let through, or none.

        Args:
            requests: the requests, each with its handler.
            timeout: seconds for which their callers wait.
            breaker: whether the circuit breakers are asked, and told of the outcomes.
            waits: whether a caller waits for the answers: only these count as open requests.

        Raises:
            CircuitOpen: the circuit breaker of one of the agents is open.
            TooManyInFlight: one of the callers has too many open requests to its agent.
        """
        app = self._app
        counts = breaker and app.settings.breaker_failures > 0
        permits: list[Permit] = []
        try:
            for _, message in requests:
                is_probe = counts and app.breakers.admit(message.to_agent, message.message_id, timeout)
                permit = Permit(app, message, counts, is_probe)
                permits.append(permit)
                if waits and app.settings.max_in_flight:
                    permit.place = app.in_flight.enter(message.from_agent, message.to_agent, message.message_id)
        except BaseException:
            for permit in permits:
                permit.drop()
            raise
        return permits
