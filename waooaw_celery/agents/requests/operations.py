"""The operations of a request. ``waiting.py`` makes blocking and asyncio methods of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from celery import Task

from waooaw_celery.agents.requests.alternatives import Alternatives, check_alternatives
from waooaw_celery.agents.requests.request_retries import RequestRetries, Retry, retry_policy
from waooaw_celery.agents.requests.request_sender import Params, RequestSender
from waooaw_celery.agents.requests.response import Response, result_of
from waooaw_celery.agents.waiting import RequestSteps
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.discovery.address import CapabilityAddress
from waooaw_celery.errors import NoAgentAvailable, WaooawError
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.validation import JSON

T = TypeVar("T")
AnyStream = TypeVar("AnyStream")


class RequestOperations(Generic[AnyStream]):
    """The operations of a request.

    Args:
        app: the application whose broker and result backend carry the requests.
        stream_type: class of the streams that ``stream`` opens.
    """

    def __init__(self, app: AgentApp, stream_type: Callable[..., AnyStream]) -> None:
        self.app = require_agent_app(app, "RequestResponseHandler")
        self._sender = RequestSender(app)
        self._stream_type = stream_type

    def request(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None = None,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        retry: Retry = None,
        alternatives: int = 0,
        breaker: bool = True,
    ) -> RequestSteps[JSON]:
        """Request a method of an agent and return its result.

        Args:
            to_agent: the agent, or a capability such as ``capability:summarise@>=2``.
            method: name of one of its methods; None: the method that is the capability.
            params: the method's keyword arguments.
            from_agent: the sender; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait; None: the setting ``waooaw_request_timeout``. Then the request expires, and
                its handler is stopped unless it has ``deadline="ignore"``.
            priority: how urgent the request is.
            retry: when the request is sent again: a RetryPolicy, or how often if no answer arrives. Each attempt
                is a message of its own, so the method may run more than once. ``timeout`` bounds all of them
                together; each attempt waits for an equal share of the time that is left.
            alternatives: at how many other agents with the capability the request is tried, within ``timeout``,
                when the chosen one fails or its circuit breaker opens. Only for a capability, without ``retry``.
            breaker: whether the circuit breaker of the agent may refuse the request, and counts its outcome.

        Raises:
            RequestTimeout: no answer arrived in time; the agent will not begin the request any more.
            RemoteError: the method failed. ``retried_out`` tells whether it was retried as often as is allowed.
            Expired: the agent dropped the request because its time was over.
            UnknownMethod: the agent has no such method.
            UnknownAgent: the agent was never declared.
            NoAgentAvailable: no agent with the capability may get the request.
            InvalidArguments: the arguments do not match the types of the method's parameters.
            CircularRequest: the agent itself waits for the handler that sends this request.
            CircuitOpen: the circuit breaker of the agent is open.
            TooManyInFlight: the sender has as many open requests to the agent as ``waooaw_max_in_flight`` allows.
            BackendUnavailable: the result backend does not answer.
            RateLimitExceeded: the sender has reached its rate limit.
            QueueFull: too many messages wait for the recipient; nothing was published.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: the request was not sent.
        """
        response = yield from self.send_request(
            to_agent,
            method,
            params,
            from_agent=from_agent,
            timeout=timeout,
            priority=priority,
            retry=retry,
            alternatives=alternatives,
            breaker=breaker,
        )
        return result_of(response)

    def send_request(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None = None,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        retry: Retry = None,
        alternatives: int = 0,
        breaker: bool = True,
    ) -> RequestSteps[Response]:
        """Request a method of an agent and return the Response, which holds the result or the error.

        The arguments are those of ``request``.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest, RateLimitExceeded, CircuitOpen, TooManyInFlight: known
                before the request is sent.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: the request was not sent.
        """
        ask = partial(
            self.ask, [to_agent], method, params, from_agent=from_agent, priority=priority, breaker=breaker
        )
        if check_alternatives(alternatives, to_agent, retry):
            return (
                yield from self._ask_others(
                    ask, Alternatives(self.app, alternatives, self._sender.seconds(timeout))
                )
            )
        policy = retry_policy(retry)
        if policy is None:
            [response] = yield from ask(timeout=timeout)
            return response
        retries = RequestRetries(self.app, policy, self._sender.seconds(timeout))
        while True:
            try:
                [response] = yield from ask(timeout=retries.next_timeout(), ids=retries.ids)
            except WaooawError as error:
                pause = retries.pause_after(error)
                if pause is None:
                    raise
            else:
                pause = None if response.error is None else retries.pause_after(response.error)
                if pause is None:
                    return retries.whole(response)
            yield pause

    def _ask_others(
        self, ask: Callable[..., RequestSteps[list[Response]]], attempts: Alternatives
    ) -> RequestSteps[Response]:
        """Request one agent after the other until one of them works, and return the last response."""
        response: Response | None = None
        while True:
            timeout = attempts.next_timeout()
            try:
                [response] = yield from ask(timeout=timeout, ids=attempts.ids, without=attempts.tried)
            except NoAgentAvailable:
                if response is None:
                    raise
                return attempts.whole(response)  # no other agent is left
            pause = attempts.pause_before_next(response)
            if pause is None:
                return attempts.whole(response)
            yield pause

    def broadcast_request(
        self,
        to_agents: Sequence[str],
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        breaker: bool = True,
    ) -> RequestSteps[dict[str, Response]]:
        """Request a method of several agents at once and return the Response of each, by agent.

        The timeout bounds all of them together. The other arguments are those of ``request``.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest, CircuitOpen, TooManyInFlight: of one of the agents; no
                request was sent.
            RateLimitExceeded: of all requests together; none was sent.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: the requests were not sent.
        """
        responses = yield from self.ask(
            to_agents,
            method,
            params,
            from_agent=from_agent,
            timeout=timeout,
            priority=priority,
            breaker=breaker,
        )
        return {each.agent: each for each in responses}

    def ask(self, *args: Any, **kwargs: Any) -> RequestSteps[list[Response]]:
        """Send requests, wait for their answers, and return the responses.

        Args:
            args, kwargs: those of ``RequestSender.send``.
        """
        requests = self._sender.send(*args, **kwargs)
        try:
            yield requests
        except GeneratorExit:
            for each in requests:
                each.permit.drop()
                self.app.result_collector.drop(each.message_id)
            raise
        return [self._sender.response(each) for each in requests]

    def stream(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None = None,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        breaker: bool = True,
        ids: Mapping[str, Any] | None = None,
    ) -> AnyStream:
        """Request a method of an agent and return its answer in parts, as the method's generator yields them.

        Iterate over the stream, best in a ``with`` statement; ``stream.result`` is the final result.

        Args:
            to_agent: the agent, or a capability such as ``capability:summarise@>=2``.
            method: name of one of its methods; None: the method that is the capability.
            params: the method's keyword arguments.
            from_agent: the sender; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait for the first part, and from each part to the next; None: the setting
                ``waooaw_request_timeout``. A request that is not begun within it expires.
            priority: how urgent the request is.
            breaker: whether the circuit breaker of the agent may refuse the request, and counts its outcome.
            ids: ids of the message, as ``RequestSender.send`` takes them.

        Raises:
            RequestTimeout: while you iterate: a part did not arrive in time.
            StreamBroken: while you iterate: a part was lost, the agent began again, or too many parts wait.
            UnknownAgent, UnknownMethod, CircularRequest, CircuitOpen: known before the request is sent.
            The rest as ``request``.
        """
        return self._stream_type(
            self._sender,
            [to_agent],
            method,
            params,
            from_agent=from_agent,
            timeout=timeout,
            priority=priority,
            breaker=breaker,
            ids=ids,
        )

    def request_later(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None = None,
        params: Params = None,
        *,
        on_reply: Task[Any, Any] | str,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        breaker: bool = True,
    ) -> DeliveryReceipt:
        """Request a method of an agent without waiting: the Response arrives as a message.

        The agent's worker sends the Response as soon as it has handled, failed or dropped the request. A worker
        that never starts again sends none.

        Args:
            to_agent: the agent, or a capability such as ``capability:summarise@>=2``.
            method: name of one of its methods; None: the method that is the capability.
            params: the method's keyword arguments.
            on_reply: the handler of the sender that gets the Response, registered with ``@agent.reply``, or its
                name.
            from_agent: the sender; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds until the request expires; None: the setting ``waooaw_request_timeout``.
            priority: how urgent the request is.
            breaker: whether the circuit breaker of the agent may refuse the request.

        Returns:
            The receipt of the request.

        Raises:
            UnknownMethod: the agent has no such method, or the sender no such handler.
            UnknownAgent, CircuitOpen, BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: as
                ``request``.
        """
        return self._sender.send_for_reply(
            to_agent,
            method,
            params,
            on_reply=on_reply,
            from_agent=from_agent,
            timeout=timeout,
            priority=priority,
            breaker=breaker,
        )
