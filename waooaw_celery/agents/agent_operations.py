"""The operations with an agent as sender, each written once for the blocking and the asyncio classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

from celery import Task

from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.agents.requests.operations import AnyStream, RequestOperations
from waooaw_celery.agents.requests.request_retries import Retry
from waooaw_celery.agents.requests.request_sender import Params
from waooaw_celery.agents.waiting import RequestSteps
from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.events.delivery import Published
from waooaw_celery.discovery.address import CapabilityAddress
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.validation import JSON


class AgentOperations(Generic[AnyStream]):
    """The operations with an agent as sender.

    Args:
        name: the agent.
        app: the application whose broker carries what it sends.
        stream_type: class of the streams that ``stream`` opens.
    """

    def __init__(self, name: str, app: AgentApp, stream_type: Callable[..., AnyStream]) -> None:
        self._name = name
        self._bus = MessageBus(app)
        self._events = EventBus(app)
        self._requests = RequestOperations(app, stream_type)

    def send(
        self,
        /,
        to_agent: str | CapabilityAddress,
        payload: JSON,
        *,
        message_type: MessageType = MessageType.COMMAND,
        wait: Any = None,
        session: Any = None,
        **fields: Any,
    ) -> DeliveryReceipt:
        """Send a message to another agent.

        Args:
            to_agent: the recipient: the name of an agent, or a capability such as ``capability:summarise@>=2``.
            payload: any JSON value.
            message_type: COMMAND, QUERY or ACK.
            wait: seconds to wait at the rate limit instead of raising.
            session: a SQLAlchemy Session: the message is sent if, and only if, its transaction is committed.
            fields: other fields of Message: ``priority``, ``ttl_seconds``, ``correlation_id``, …

        Raises:
            InvalidMessage, UnknownAgent, RateLimitExceeded, BrokerUnavailable, StoreUnavailable: as
                MessageBus.send.
            NoAgentAvailable: no agent with the capability may get it.
        """
        if type(to_agent) is not str or ":" in to_agent:
            return self._bus.send_to(
                self._name,
                to_agent,
                payload,
                message_type=message_type,
                wait=wait,
                session=session,
                **fields,
            )
        message = Message(
            from_agent=self._name, to_agent=to_agent, payload=payload, message_type=message_type, **fields
        )
        return self._bus.send(message, wait=wait, session=session)

    def publish(self, /, topic: str, event: JSON = None, **fields: Any) -> Published:
        """Publish an event.

        Args:
            topic: what happened, such as ``task.created``.
            event: its payload, any JSON value.
            fields: the other arguments of EventBus.publish: ``priority``, ``ttl_seconds``, ``schema_version``, …

        Raises:
            SchemaViolation, InvalidMessage, BrokerUnavailable, StoreUnavailable: as EventBus.publish.
        """
        return self._events.publish(topic, event, **{"from_agent": self._name, **fields})

    def request(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None = None,
        params: Params = None,
        *,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        retry: Retry = None,
        alternatives: int = 0,
        breaker: bool = True,
    ) -> RequestSteps[JSON]:
        """Request a method of another agent and return its result.

        The arguments are those of RequestResponseHandler.request.

        Raises:
            RequestError: no result arrived; its classes say why. The rest as RequestResponseHandler.request.
        """
        return self._requests.request(
            to_agent,
            method,
            params,
            from_agent=self._name,
            timeout=timeout,
            priority=priority,
            retry=retry,
            alternatives=alternatives,
            breaker=breaker,
        )

    def request_later(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None = None,
        params: Params = None,
        *,
        on_reply: Task[Any, Any] | str,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        breaker: bool = True,
    ) -> DeliveryReceipt:
        """Request a method of another agent; the Response goes to a handler registered with ``reply``.

        Raises:
            As RequestResponseHandler.request_later.
        """
        return self._requests.request_later(
            to_agent,
            method,
            params,
            on_reply=on_reply,
            from_agent=self._name,
            timeout=timeout,
            priority=priority,
            breaker=breaker,
        )

    def stream(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None = None,
        params: Params = None,
        *,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        breaker: bool = True,
    ) -> AnyStream:
        """Request a method of another agent and return its answer in parts.

        Raises:
            As RequestResponseHandler.stream.
        """
        return self._requests.stream(
            to_agent,
            method,
            params,
            from_agent=self._name,
            timeout=timeout,
            priority=priority,
            breaker=breaker,
        )
