"""What an agent says: every verb of the package, in the agent's name."""

from __future__ import annotations

from typing import Any

from celery import Task

from waooaw_celery.aio import Agent as AwaitedAgent
from waooaw_celery.app import AgentApp
from waooaw_celery.asking import Params
from waooaw_celery.bus import MessageBus
from waooaw_celery.events.bus import EventBus
from waooaw_celery.events.delivery import Published
from waooaw_celery.given import agent_app
from waooaw_celery.message import DeliveryReceipt, Message, MessageType, Priority
from waooaw_celery.request_response import RequestResponseHandler
from waooaw_celery.streams import Stream
from waooaw_celery.values import JSON


class Speaker:
    """Speaks in an agent's name.

    Args:
        name: the agent's.
        app: the application whose broker carries what it says.
    """

    def __init__(self, name: str, app: AgentApp) -> None:
        self.name = name
        self.app = agent_app(app, type(self).__name__)
        self._bus = MessageBus(app)
        self._events = EventBus(app)
        self._requests = RequestResponseHandler(app)
        #: The same as coroutines: ``await agent.aio.request(...)``, in an ``async def`` handler.
        self.aio = AwaitedAgent(name, app)

    def send(
        self,
        to_agent: str,
        payload: JSON,
        *,
        message_type: MessageType = MessageType.COMMAND,
        wait: float | None = None,
        session: Any = None,
        **fields: Any,
    ) -> DeliveryReceipt:
        """Send a message in this agent's name.

        Args:
            to_agent: the recipient.
            payload: any JSON value.
            message_type: COMMAND, QUERY or ACK.
            wait: seconds for which to wait at the rate limit instead of raising.
            session: a SQLAlchemy Session: the message is sent if, and only if, its transaction is committed.
            fields: others of Message: ``priority``, ``ttl_seconds``, ``correlation_id``, …

        Raises:
            InvalidMessage, UnknownAgent, RateLimitExceeded, BrokerUnavailable, StoreUnavailable: as
                MessageBus.send.
        """
        message = Message(
            from_agent=self.name, to_agent=to_agent, payload=payload, message_type=message_type, **fields
        )
        return self._bus.send(message, wait=wait, session=session)

    def publish(self, topic: str, event: JSON = None, **fields: Any) -> Published:
        """Publish an event in this agent's name.

        Args:
            topic: what happened, such as ``task.created``.
            event: its payload, any JSON value.
            fields: the others of EventBus.publish: ``priority``, ``ttl_seconds``, ``schema_version``, …

        Raises:
            SchemaViolation, InvalidMessage, BrokerUnavailable, StoreUnavailable: as EventBus.publish.
        """
        return self._events.publish(topic, event, **{"from_agent": self.name, **fields})

    def request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> JSON:
        """Ask another agent in this agent's name and return its answer.

        Raises:
            RequestError: no result came; its classes say why. The rest as RequestResponseHandler.request.
        """
        return self._requests.request(
            to_agent, method, params, from_agent=self.name, timeout=timeout, priority=priority
        )

    def request_later(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        on_reply: Task[Any, Any] | str,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> DeliveryReceipt:
        """Ask another agent in this agent's name; the Response comes to a handler registered with ``reply``.

        Raises:
            As RequestResponseHandler.request_later.
        """
        return self._requests.request_later(
            to_agent,
            method,
            params,
            on_reply=on_reply,
            from_agent=self.name,
            timeout=timeout,
            priority=priority,
        )

    def stream(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Stream:
        """Ask another agent in this agent's name, and take its answer in parts.

        Raises:
            As RequestResponseHandler.stream.
        """
        return self._requests.stream(
            to_agent, method, params, from_agent=self.name, timeout=timeout, priority=priority
        )
