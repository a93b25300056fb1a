"""The message bus: sends messages from an agent to other agents, and returns their receipts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from waooaw_celery.agents.requests.cancel import cancel
from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.waiting import queue_depths
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.discovery.address import CapabilityAddress, is_capability
from waooaw_celery.errors import InvalidMessage, UnknownAgent
from waooaw_celery.limits.waiting import Wait
from waooaw_celery.messages.enums import SENDABLE, MessageStatus, MessageType
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName, QueueDepth, agent_queue
from waooaw_celery.messages.receipt import DeliveryReceipt, receipt_of
from waooaw_celery.messages.validation import JSON, check_agent_name, check_tags


@dataclass(frozen=True, slots=True)
class Everyone:
    """Recipients of a broadcast: all known agents that handle messages of its type, except the sender.

    Attributes:
        capability: only the agents with this capability tag; None: all.
    """

    capability: str | None = None


class MessageBus:
    """Sends messages, returns their receipts, and cancels them.

    Args:
        app: the application whose broker carries the messages.

    Example:
        >>> bus = MessageBus(app)
        >>> receipt = bus.send(Message(from_agent="orchestrator", to_agent="worker-1", payload={"task": 123}))
        >>> bus.receipt(receipt.message_id).status
        <MessageStatus.HANDLED: 'handled'>
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = require_agent_app(app, "MessageBus")

    def send(self, message: Message, *, wait: Wait = None, session: Any = None) -> DeliveryReceipt:
        """Send one message.

        Args:
            message: a COMMAND, QUERY or ACK.
            wait: longest time in seconds that a sender at its rate limit waits, while the message has not expired.
                If the wait would be longer, or ``wait`` is None, RateLimitExceeded is raised at once.
            session: a SQLAlchemy Session on the ledger's database, such as ``agent.session``. The message is
                recorded in its transaction, and published only after the commit.

        Returns:
            The receipt: SENT or, with a session, PENDING. Read the later status with ``receipt``.

        Raises:
            InvalidMessage: the type cannot be sent, or the message has expired.
            UnknownAgent: the recipient is not known; NoHandler: it has no handler for this type.
            BrokerUnavailable: the broker did not confirm the message. Nothing was published if ``uncertain`` is
                False. Otherwise its receipt is PENDING, or there is none: read it with ``receipt``.
            StoreUnavailable: the ledger or the Redis for agents and receipts does not answer; nothing was
                published.
            RateLimitExceeded: the sender has reached its rate limit; nothing was published.
            QueueFull: too many messages wait for the recipient; nothing was published.
            ConfigurationError: the session is on a database other than the ledger's, or there is no ledger.
        """
        return self.send_many([message], wait=wait, session=session)[0]

    def send_to(
        self,
        /,
        from_agent: str,
        to: str | CapabilityAddress,
        payload: JSON,
        *,
        message_type: MessageType = MessageType.COMMAND,
        wait: Wait = None,
        session: Any = None,
        **fields: object,
    ) -> DeliveryReceipt:
        """Send one message to an agent that has a capability.

        Args:
            from_agent: the sender.
            to: the capability, such as ``capability:summarise@>=2``, or the name of an agent.
            payload: any JSON value.
            message_type: COMMAND, QUERY or ACK.
            wait: as for ``send``.
            session: as for ``send``.
            fields: other fields of Message, such as ``priority`` and ``ttl_seconds``.

        Returns:
            The receipt, which names the agent that was chosen.

        Raises:
            NoAgentAvailable: no agent may get it; the error says who was considered, and why not.
            InvalidMessage: the address is invalid. The rest as ``send``.
        """
        name, capability = to, None
        if is_capability(to):
            choice = self.app.selector.choose(to, handler=message_type.value)
            name, capability = choice.agent, choice.recorded
        message = Message(
            from_agent=from_agent,
            to_agent=name,  # type: ignore[arg-type]  # it is checked
            payload=payload,
            message_type=message_type,
            capability=capability,
            **fields,  # type: ignore[arg-type]
        )
        return self.send(message, wait=wait, session=session)

    def send_many(
        self, messages: Iterable[Message], *, wait: Wait = None, session: Any = None
    ) -> list[DeliveryReceipt]:
        """Send several messages. All are checked first; if one is refused, none is sent.

        Args:
            messages: the messages.
            wait: as for ``send``.
            session: as for ``send``.

        Returns:
            Their receipts, in order.

        Raises:
            RateLimitExceeded: a sender may not send so many messages now; nothing was published.
            QueueFull: too many messages wait for the recipient; nothing was published.
            InvalidMessage, UnknownAgent: as ``send``, or a message occurs twice; nothing was published.
            BrokerUnavailable, StoreUnavailable: a server failed; the error's ``message_ids`` are the messages that
                were published.
        """
        batch = [(message, _target(message)) for message in messages]
        if len({message.message_id for message, _ in batch}) < len(batch):
            [(repeated, count)] = Counter(message.message_id for message, _ in batch).most_common(1)
            raise InvalidMessage(f"message {repeated} occurs {count} times: send each Message once")
        completed = self.app.message_factory.complete_all((target, message) for message, target in batch)
        now = self.app.reference_clock.now()
        for _, message in completed:
            message.check_in_time(now)
        for target in dict.fromkeys(target for _, target in batch):
            self.app.registry.check_handler(target)
        self.app.publisher.publish(completed, wait=wait, session=session)
        status = MessageStatus.SENT if session is None else MessageStatus.PENDING
        return [receipt_of(message, target.handler, status) for target, message in completed]

    def broadcast(
        self,
        /,
        from_agent: str,
        to_agents: Sequence[str] | Everyone,
        payload: JSON,
        *,
        message_type: MessageType = MessageType.COMMAND,
        correlation_id: str | None = None,
        wait: Wait = None,
        **fields: object,
    ) -> dict[str, DeliveryReceipt]:
        """Send the same payload to several agents, one message to each. An agent without a worker gets it later.

        Args:
            from_agent: the sender.
            to_agents: the recipients, without repetition. ``Everyone()`` stands for all agents that handle such
                messages, ``Everyone(capability="ocr")`` for those of them with a tag; whether they run or not.
            payload: any JSON value.
            message_type: COMMAND, QUERY or ACK.
            correlation_id: id that the messages share; None: the id of the first of them.
            wait: as for ``send``.
            fields: other fields of Message, such as ``priority`` and ``ttl_seconds``.

        Returns:
            The receipts, by recipient.

        Raises:
            InvalidMessage: there is no recipient. UnknownAgent: no agent matches. The rest as ``send_many``.
        """
        if isinstance(to_agents, Everyone):
            to_agents = self._recipients(to_agents, message_type, sender=from_agent)
        if isinstance(to_agents, str) or not to_agents:
            raise InvalidMessage(
                f"to_agents must be a list of at least one agent, or Everyone(), not {to_agents!r}"
            )
        names = list(dict.fromkeys(check_agent_name(name, "to_agents") for name in to_agents))
        messages = [
            Message(
                from_agent=from_agent,
                to_agent=name,
                message_type=message_type,
                payload=payload,
                correlation_id=correlation_id,
                **fields,  # type: ignore[arg-type]
            )
            for name in names
        ]
        shared_id = correlation_id or messages[0].message_id
        receipts = self.send_many((message.evolve(correlation_id=shared_id) for message in messages), wait=wait)
        return dict(zip(names, receipts, strict=True))

    def receipt(self, message_id: str) -> DeliveryReceipt:
        """Return the receipt of a message, with its present status.

        Raises:
            UnknownMessage: there is no receipt for this id.
            StoreUnavailable: the ledger or the Redis for agents and receipts does not answer.
        """
        return self.app.receipts.get(message_id)

    def waiting(self, agent: str, *, read: bool | None = None) -> QueueDepth:
        """Return how many messages wait for an agent, by priority and by sender, as ``waooaw queues`` shows it.

        Messages that a worker holds are not counted.

        Args:
            agent: the agent's name.
            read: whether to read the messages, to count their senders and, on RabbitMQ, their priorities. On
                RabbitMQ, this takes the messages out of their queue for a moment, and they are marked as
                redelivered. None: read them on Redis only. False: only count, which costs one round trip.

        Returns:
            The numbers; ``by_priority`` and ``by_sender`` are None where they are not known.

        Raises:
            UnknownAgent: the agent is not known. InvalidMessage: this is not a valid name.
            BrokerUnavailable: the broker does not answer.
            StoreUnavailable: the ledger or the Redis for agents does not answer.
            ConfigurationError: ``read`` is True, and the broker is neither Redis nor RabbitMQ.

        Example:
            >>> depth = bus.waiting("worker-1")
            >>> depth.total, depth.by_priority[Priority.URGENT], depth.by_sender
            (3, 1, {'orchestrator': 2, 'operator': 1})
        """
        record = self.app.registry.get(check_agent_name(agent))
        return queue_depths(self.app, [agent_queue(record.name)], read=read)[0]

    def cancel(
        self, message_id: str, *, running: bool = False, timeout: float = 1.0, from_agent: str | None = None
    ) -> DeliveryReceipt:
        """Cancel a message: no worker begins it or tries it again.

        The cancellation is recorded first, so that it holds for all workers, even for those that start later. The
        status becomes CANCELLED only after all workers answered that they do not have the message, or after the
        worker that had it dropped it or stopped its handler. Until then, ``cancel_requested_at`` is set. A message
        that has ended does not change. The caller of a cancelled request gets Cancelled.

        Args:
            message_id: id of the message or request.
            running: also stop the handler if it runs. An ``async def`` is cancelled, and has one second to clean
                up. Any other handler is stopped by ending its process, in a worker with ``-P prefork``.
            timeout: seconds to wait for the answers of the workers, and for the handler to stop.
            from_agent: who cancels it, for the ledger; None: the agent whose handler runs, or ``waooaw_sender``.

        Returns:
            The receipt, with the present status.

        Raises:
            UnknownMessage: there is no receipt for this id.
            NotStoppable: ``running`` is set, and the handler runs in a thread, where it cannot be stopped.
            StoreUnavailable: the ledger or the Redis for receipts does not answer; the message was not cancelled.
            InvalidMessage: the id or the timeout is invalid.
        """
        return cancel(self.app, message_id, running=running, timeout=timeout, by=from_agent)

    def _recipients(self, everyone: Everyone, message_type: MessageType, sender: str) -> list[str]:
        """Return the names of the agents that ``Everyone`` stands for.

        Raises:
            UnknownAgent: there is none; the error lists the known capabilities.
        """
        if everyone.capability is not None:
            check_tags([everyone.capability])
        handler = _target(Message(from_agent=sender, to_agent=sender, message_type=message_type)).handler
        records = [record for record in self.app.registry.all() if record.name != sender]
        recipients = [
            record.name
            for record in records
            # The handlers of an agent that has never started are not known, so it is included.
            if (record.handlers is None or handler in record.handlers)
            and (everyone.capability is None or everyone.capability in record.capabilities)
        ]
        if not recipients:
            tags = sorted({tag for record in records for tag in record.capabilities})
            having = "" if everyone.capability is None else f" and has the capability {everyone.capability!r}"
            known = ", ".join(tags) or "none"
            raise UnknownAgent(f"no other agent handles {handler.upper()}{having} (known capabilities: {known})")
        return recipients


def _target(message: Message) -> HandlerName:
    """Return the handler of a message.

    Raises:
        InvalidMessage: a message of this type cannot be sent.
    """
    if message.message_type not in SENDABLE:
        rule = {
            MessageType.EVENT: "publish an EVENT with EventBus.publish()",
            MessageType.RESPONSE: "a RESPONSE is the return value of a requested method",
        }[message.message_type]
        raise InvalidMessage(f"send() takes {', '.join(type_.name for type_ in SENDABLE)}: {rule}")
    return HandlerName(message.to_agent, message.message_type.value)
