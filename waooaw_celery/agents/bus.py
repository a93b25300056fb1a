"""One agent to one or several agents: messages that ask for no answer, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from waooaw_celery.agents.requests.cancel import cancel
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.errors import InvalidMessage, UnknownAgent
from waooaw_celery.limits.waiting import Wait
from waooaw_celery.messages.message import (
    SENDABLE,
    DeliveryReceipt,
    Message,
    MessageStatus,
    MessageType,
    receipt_of,
)
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON, check_agent_name, check_tags


@dataclass(frozen=True, slots=True)
class Everyone:
    """All known agents that handle a message of its type, as recipients of a broadcast; but never its sender.

    Attributes:
        capability: only those with this tag.
    """

    capability: str | None = None


class MessageBus:
    """Sends messages and tells what became of them.

    Args:
        app: the application whose broker carries them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = require_agent_app(app, "MessageBus")

    def send(self, message: Message, *, wait: Wait = None, session: Any = None) -> DeliveryReceipt:
        """Send one message.

        Args:
            message: a COMMAND, QUERY or ACK.
            wait: seconds for which a sender at its rate limit waits for its turn, while the message has not
                expired; when it would not come within them, or None is given, it is raised at once.
            session: a SQLAlchemy Session on the ledger's database, such as ``agent.session``: the message is
                written down in its transaction, and published when that is committed, and else never.

        Returns:
            The receipt, as it is now: the broker has the message, or, with a session, it is PENDING. ``receipt``
            tells later news.

        Raises:
            InvalidMessage: its type is not for sending, or its time is already over.
            UnknownAgent: nobody ever declared the recipient; NoHandler: it has none for this type.
            BrokerUnavailable: not confirmed by the broker; the receipt stays PENDING.
            StoreUnavailable: Redis does not answer; nothing was published.
            RateLimitExceeded: the sender has sent as much as it may for now; nothing was published.
            ConfigurationError: the session is on another database than the ledger's, or there is no ledger.
        """
        return self.send_many([message], wait=wait, session=session)[0]

    def send_many(
        self, messages: Iterable[Message], *, wait: Wait = None, session: Any = None
    ) -> list[DeliveryReceipt]:
        """Send several messages, checked all together first: when one is refused, none was sent.

        Args:
            messages: what to send.
            wait: as for ``send``.
            session: as for ``send``.

        Raises:
            RateLimitExceeded: all of them together are more than a sender may send now; nothing was published.
            InvalidMessage, UnknownAgent: as ``send``; nothing was published.
            BrokerUnavailable, StoreUnavailable: a server failed on the way; the error's ``message_ids`` are the
                messages that were published.
        """
        batch = [(message, _target(message)) for message in messages]
        ids = Counter(message.message_id for message, _ in batch)
        if twice := [message_id for message_id, count in ids.items() if count > 1]:
            raise InvalidMessage(f"message {twice[0]} is there {ids[twice[0]]} times: each Message is sent once")
        complete = [(target, self.app.message_factory.complete(target, message)) for message, target in batch]
        now = self.app.reference_clock.now()
        for _, message in complete:
            message.check_in_time(now)
        for target in dict.fromkeys(target for _, target in batch):
            self.app.registry.check_handler(target)
        self.app.publisher.publish(complete, wait=wait, session=session)
        status = MessageStatus.SENT if session is None else MessageStatus.PENDING
        return [receipt_of(message, target.handler, status) for target, message in complete]

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
        """Send the same to several agents: one message each, each with its own receipt, also for the absent.

        Args:
            from_agent: the sender.
            to_agents: the recipients; naming one twice sends once. ``Everyone()`` are all agents that handle such
                messages, ``Everyone(capability="ocr")`` those of them with a tag, living or away.
            payload: any JSON value.
            message_type: COMMAND, QUERY or ACK.
            correlation_id: threads the messages; None: the id of the first of them threads all.
            wait: as for ``send``.
            fields: others of Message: ``priority``, ``ttl_seconds``.

        Returns:
            The receipts by recipient.

        Raises:
            InvalidMessage: there is no recipient. UnknownAgent: no agent fits. The rest as ``send_many``.
        """
        if isinstance(to_agents, Everyone):
            to_agents = self._everyone(to_agents, message_type, but=from_agent)
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
        thread = correlation_id or messages[0].message_id
        receipts = self.send_many((message.evolve(correlation_id=thread) for message in messages), wait=wait)
        return dict(zip(names, receipts, strict=True))

    def receipt(self, message_id: str) -> DeliveryReceipt:
        """Return the newest known fact about a message.

        Raises:
            UnknownMessage: none is kept for this id.
            StoreUnavailable: Redis does not answer.
        """
        return self.app.receipts.get(message_id)

    def cancel(
        self, message_id: str, *, running: bool = False, timeout: float = 1.0, from_agent: str | None = None
    ) -> DeliveryReceipt:
        """Cancel a message: it is not begun, and not tried again.

        The request is written down first, and holds for every worker, also for one that starts later. The status
        says CANCELLED only when it is true: when the workers answered that none of them has the message, or the
        one that had it has dropped it or stopped its handler. Until then ``cancel_requested_at`` tells of the
        request. A message that has ended stays as it is. Whoever waits for a cancelled request gets Cancelled.

        Args:
            message_id: of which message, or request.
            running: also stop its handler if it runs: an ``async def`` is cancelled, and has a second to clean up;
                any other is stopped, with its process, in a worker with ``-P prefork``.
            timeout: seconds to wait for the workers' answers, and for the end of what is stopped.
            from_agent: who asks, for the ledger; None: the agent whose handler runs, or ``waooaw_sender``.

        Returns:
            The receipt, as it is now.

        Raises:
            UnknownMessage: no receipt is kept for this id.
            NotStoppable: ``running``, and the handler runs where nothing can stop it.
            StoreUnavailable: what keeps the receipts does not answer; nothing was asked.
            InvalidMessage: this cannot be an id, or the timeout is no number of seconds.
        """
        return cancel(self.app, message_id, running=running, timeout=timeout, by=from_agent)

    def _everyone(self, which: Everyone, message_type: MessageType, but: str) -> list[str]:
        """Return the names of the agents that a broadcast is for.

        Raises:
            UnknownAgent: there is none; the sentence says what is known.
        """
        if which.capability is not None:
            check_tags([which.capability])
        handler = _target(Message(from_agent=but, to_agent=but, message_type=message_type)).handler
        records = [record for record in self.app.registry.all() if record.name != but]
        fits = [
            record.name
            for record in records
            # What one handles that has never started is not known: it is told, and finds out.
            if (record.handlers is None or handler in record.handlers)
            and (which.capability is None or which.capability in record.capabilities)
        ]
        if not fits:
            tags = sorted({tag for record in records for tag in record.capabilities})
            having = "" if which.capability is None else f" and has the capability {which.capability!r}"
            known = ", ".join(tags) or "none"
            raise UnknownAgent(f"no other agent handles {handler.upper()}{having} (capabilities known: {known})")
        return fits


def _target(message: Message) -> HandlerName:
    """Return the handler that a message is for.

    Raises:
        InvalidMessage: the type is not for sending; the sentence gives the rule.
    """
    if message.message_type not in SENDABLE:
        rule = {
            MessageType.EVENT: "an EVENT is published to whoever subscribed, not sent to one agent",
            MessageType.RESPONSE: "a RESPONSE is the return value of a requested method, not sent",
        }[message.message_type]
        raise InvalidMessage(f"send carries {', '.join(type_.name for type_ in SENDABLE)}: {rule}")
    return HandlerName(message.to_agent, message.message_type.value)
