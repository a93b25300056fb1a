"""Every error that this package raises.

* WaooawError
    * ConfigurationError        a setting is missing, misspelt or impossible
        * InvalidSchema         the JSON Schema of a topic is none, or its check might not end
    * InvalidMessage            a message or an argument breaks a rule
        * SchemaViolation       an event breaks the schema of its topic
        * EncodingFailed            it cannot be written in its format, or is larger than what is accepted
    * DecodingFailed                what arrived cannot be read, or is larger than what is accepted
    * UnknownSender             no agent is speaking
    * UnknownAgent              nobody ever declared the recipient
        * NoHandler             the recipient has no handler for this type of message
        * UnknownMethod         the recipient has no such method
    * UnknownMessage            no receipt is kept for this id
    * UnknownDeadLetter             there is no such dead letter
    * UnknownSubscription       nobody ever subscribed under this name
    * BrokerUnavailable         the message could not be published
    * StoreUnavailable          what keeps agents and receipts does not answer
        * AuditUnavailable      the ledger does not answer, so nothing is published
    * ClockSkew                 the clocks of the computers disagree too much for what was asked
    * NotStoppable              the handler that was to be cancelled runs where nothing can stop it
    * RateLimitExceeded         the sender has sent as much as it may for now
    * HandlerExited             a handler called sys.exit() or ran out of memory
    * RequeueLimitExceeded      a handler gave a message back again and again
    * DeliveryLimitExceeded     the workers that began with a message ended, one after the other
    * BlockingCall              an async def handler made a call that would stop all others
    * CircularRequest           the agent that is asked waits for the answer itself
    * RequestError              a request did not bring a result
        * RequestTimeout        no answer came in time
        * Expired               the request was dropped: its time was over before it was begun
        * Cancelled             the request was cancelled
        * RemoteError           the handler of the other agent failed
        * BackendUnavailable    the result backend does not answer
        * StreamBroken          a part of an answer that came in parts was lost
"""

from __future__ import annotations

import math
from typing import Any

from kombu.exceptions import DecodeError, EncodeError, OperationalError


class WaooawError(Exception):
    """Something went wrong in waooaw_celery.

    Attributes:
        message_ids: ids of the messages of the same call that were published before the failure.
    """

    message_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the message given, or the class's own docstring when none was."""
        return super().__str__() or (type(self).__doc__ or "").partition("\n")[0]


class ConfigurationError(WaooawError, ValueError):
    """A setting is missing, misspelt or impossible."""


class InvalidSchema(ConfigurationError):
    """The JSON Schema of a topic is none, or its check might not end; the sentence says why."""


class InvalidMessage(WaooawError, ValueError):
    """A message or an argument breaks a rule."""


class SchemaViolation(InvalidMessage):
    """An event breaks the schema of its topic.

    Attributes:
        topic: of the event.
        version: of the schema.
        path: where, as a JSONPath such as ``$.order.total``.
    """

    def __init__(self, topic: str, version: str, path: str, problem: str) -> None:
        super().__init__(f"the event breaks the schema of {topic} in version {version} at {path}: {problem}")
        self.topic = topic
        self.version = version
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[SchemaViolation], tuple[str, str, str, str]]:
        return SchemaViolation, (self.topic, self.version, self.path, self.problem)


class EncodingFailed(InvalidMessage, EncodeError):
    """A value cannot be written in its format, or is larger than what is accepted.

    Also a kombu ``EncodeError``: Celery makes the failure of its task of an answer that cannot be written.
    """


class DecodingFailed(WaooawError, DecodeError):
    """What arrived cannot be read, or is larger than what is accepted; the sentence says why.

    Also a kombu ``DecodeError``.
    """


class UnknownSender(WaooawError, LookupError):
    """No agent is speaking."""


class UnknownAgent(WaooawError, LookupError):
    """Nobody ever declared this agent."""


class NoHandler(UnknownAgent):
    """The agent has no handler for this type of message."""


class UnknownMethod(UnknownAgent):
    """The agent has no method of this name."""


class UnknownMessage(WaooawError, LookupError):
    """No receipt is kept for this message."""


class UnknownDeadLetter(WaooawError, LookupError):
    """There is no such dead letter."""


class UnknownSubscription(WaooawError, LookupError):
    """Nobody ever subscribed under this name."""


class BrokerUnavailable(WaooawError, OperationalError):
    """The message could not be published. Whether the broker has it is not known: ask for its receipt.

    Also a kombu ``OperationalError``, so that code written for Celery catches it.

    Attributes:
        uncertain: whether the broker may have it all the same. False: it does not have it and will not get it.
            Nothing was tried and nothing written down, or the broker refused it and its receipt says FAILED.
    """

    uncertain: bool = True


class StoreUnavailable(WaooawError, ConnectionError):
    """What keeps the known agents and the receipts does not answer: the ledger, or Redis without one."""


class AuditUnavailable(StoreUnavailable):
    """The ledger does not answer, and what it cannot record is not published.

    Attributes:
        uncertain: whether the database may have carried out what it did not confirm.
    """

    uncertain: bool = False


class ClockSkew(WaooawError, RuntimeError):
    """Two clocks disagree by more than what was asked allows: nothing was done."""


class NotStoppable(WaooawError, RuntimeError):
    """The handler that was to be cancelled runs where nothing can stop it: in a thread, and is no coroutine."""


class RateLimitExceeded(WaooawError):
    """The sender has sent as much as it may for now; nothing of this call was sent.

    Attributes:
        agent: the sender.
        rule: the rule that makes it wait longest, such as ``100/hour burst 20``.
        retry_after: seconds after which the same call passes, when the agent sends nothing meanwhile; infinite
            when it asks for more at once than the rule ever lets through.
        n: how many messages were to be sent.
    """

    def __init__(self, agent: str, rule: str, retry_after: float, n: int = 1) -> None:
        if math.isinf(retry_after):
            super().__init__(f"{n} messages at once are more than {rule} ever lets {agent!r} send: send fewer")
        else:
            super().__init__(f"{agent!r} has sent as much as {rule} lets it: try again in {retry_after:.3f} s")
        self.agent = agent
        self.rule = rule
        self.retry_after = retry_after
        self.n = n

    def __reduce__(self) -> tuple[Any, ...]:
        return RateLimitExceeded, (self.agent, self.rule, self.retry_after, self.n), self.__dict__


class HandlerExited(WaooawError):
    """A handler called sys.exit() or ran out of memory, which must not end its worker."""


class RequeueLimitExceeded(WaooawError):
    """A handler gave a message back with Reject(requeue=True) more often than waooaw_requeue_limit allows."""


class DeliveryLimitExceeded(WaooawError):
    """A message was handed out again and again, since each worker that began with it ended."""


class BlockingCall(WaooawError, RuntimeError):
    """A coroutine made a call that blocks, and with it every other coroutine of its process."""


class CircularRequest(WaooawError, RuntimeError):
    """The agent that is asked waits for the answer of this request's own handler: both would wait in vain."""


class RequestError(WaooawError):
    """A request did not bring a result."""


class RequestTimeout(RequestError, TimeoutError):
    """No answer came in time."""


class Expired(RequestError):
    """The request was dropped: its time was over before the agent began it."""


class Cancelled(RequestError):
    """Somebody cancelled the request, or an operator revoked it."""


class BackendUnavailable(RequestError, ConnectionError):
    """The result backend, which carries the answers, does not answer."""


class StreamBroken(RequestError):
    """A part of an answer that came in parts was lost, or the agent began it again: ask again."""


class RemoteError(RequestError):
    """The handler of the other agent raised an exception.

    Attributes:
        agent: name of the agent whose handler failed.
        type: class name of the exception there, such as ``ValueError``.
        message: its text.
        traceback: the traceback of the other side as text, or None when it sent none.
    """

    def __init__(self, agent: str, type_: str, message: str, traceback: str | None = None) -> None:
        super().__init__(f"{agent} raised {type_}: {message}")
        self.agent = agent
        self.type = type_
        self.message = message
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, str, str | None]]:
        return RemoteError, (self.agent, self.type, self.message, self.traceback)
