"""Ask an agent, get its answer: the result, the error over there, or the timeout."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import wait
from typing import Any

from celery import Task

from waooaw_celery.app import AgentApp
from waooaw_celery.asking import Asked, Asker, Params, check_may_block
from waooaw_celery.message import DeliveryReceipt, Priority
from waooaw_celery.response import Response, result_of
from waooaw_celery.streams import Stream
from waooaw_celery.values import JSON


class RequestResponseHandler:
    """Asks agents and waits for their answers, which come through Celery's result backend.

    May be used in a handler: what is left of its own caller's time bounds the request, and an agent that waits in
    this chain of requests already cannot be asked. The worker process that waits handles nothing else meanwhile;
    in an ``async def`` handler, await ``waooaw_celery.aio``.

    Args:
        app: the application whose broker and result backend carry them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = app
        self._asker = Asker(app)

    def request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> JSON:
        """Ask and return the answer.

        Args:
            to_agent: who is asked.
            method: name of a method there.
            params: its keyword arguments.
            from_agent: who asks; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait; None: the setting ``waooaw_request_timeout``. The request expires with it.
            priority: how urgent.

        Raises:
            RequestTimeout: no answer in time; the agent will not begin it any more.
            RemoteError: the method failed there.
            Expired: the agent dropped it, since its time was over.
            UnknownMethod: the agent has no such method.
            UnknownAgent: nobody ever declared it.
            CircularRequest: the agent waits for the answer of this handler itself.
            BackendUnavailable: the result backend does not answer.
            RateLimitExceeded: the one who asks has sent as much as it may for now.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could not be sent.
        """
        return result_of(
            self.send_request(to_agent, method, params, from_agent=from_agent, timeout=timeout, priority=priority)
        )

    def send_request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Response:
        """Ask and return what came of it; what fails on the other side is in the response, not raised.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest, RateLimitExceeded: known before it is sent.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could not be sent.
        """
        answers = self.broadcast_request(
            [to_agent], method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        return answers[to_agent]

    def broadcast_request(
        self,
        to_agents: Sequence[str],
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> dict[str, Response]:
        """Ask several agents at once and return what came of each, after no more than the timeout in all.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest: of one of them; then nobody was asked.
            RateLimitExceeded: of all of them together; then nobody was asked.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could not be sent.
        """
        check_may_block()
        asked = self._asker.ask(
            to_agents, method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        return {each.agent: self._wait(each) for each in asked}

    def stream(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Stream:
        """Ask, and take the answer in parts, as the generator over there yields them.

        ``with requests.stream(...) as stream: for chunk in stream: ...``; then ``stream.result`` is the final one.

        Args:
            to_agent: who is asked.
            method: name of a method there.
            params: its keyword arguments.
            from_agent: who asks; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait for the first part, and from each part to the next; None: the setting
                ``waooaw_request_timeout``. A request that is not begun within it expires.
            priority: how urgent.

        Raises:
            RequestTimeout: while it is iterated: a part did not come in time.
            StreamBroken: while it is iterated: a part was lost, the agent began again, or too many wait.
            UnknownAgent, UnknownMethod, CircularRequest: known before it is sent. The rest as ``request``.
        """
        check_may_block()
        return Stream(
            self._asker, [to_agent], method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )

    def request_later(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        on_reply: Task[Any, Any] | str,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> DeliveryReceipt:
        """Ask and wait for nothing: the Response comes as a message.

        The worker of the other agent sends it as soon as it has handled, failed or dropped the request; one that
        never starts again does not.

        Args:
            to_agent: who is asked.
            method: name of a method there.
            params: its keyword arguments.
            on_reply: the handler of the asking agent that gets the Response, registered with ``@agent.reply``, or
                its name.
            from_agent: who asks; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds after which it is not begun any more; None: the setting ``waooaw_request_timeout``.
            priority: how urgent.

        Returns:
            The receipt of the request.

        Raises:
            UnknownMethod: the other agent has no such method, or the asking one no such handler.
            UnknownAgent, BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: as ``request``.
        """
        return self._asker.ask_for_reply(
            to_agent,
            method,
            params,
            on_reply=on_reply,
            from_agent=from_agent,
            timeout=timeout,
            priority=priority,
        )

    def _wait(self, asked: Asked) -> Response:
        try:
            wait([asked.answer], asked.left)
        except BaseException:  # whoever waits is told to end
            self.app.answers.drop(asked.message_id)
            raise
        return self._asker.response(asked)
