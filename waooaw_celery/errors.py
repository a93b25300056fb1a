"""Every error that this package raises.

* WaooawError
    * ConfigurationError        a setting is missing, misspelt or invalid
        * InvalidSchema         the JSON Schema of a topic is invalid
    * InvalidMessage            a message or an argument is invalid
        * SchemaViolation       an event does not match the schema of its topic
        * EncodingFailed        a value cannot be encoded, or is too large
    * DecodingFailed            received data cannot be decoded, or is too large
    * UnknownSender             no sender is known
    * UnknownAgent              the recipient is not known
        * NoHandler             the recipient has no handler for this type of message
        * UnknownMethod         the recipient has no such method
    * UnknownMessage            there is no receipt for this id
    * UnknownDeadLetter         there is no such dead letter
    * UnknownSubscription       there is no such subscription
    * BrokerUnavailable         the message could not be published
    * StoreUnavailable          the ledger's database, or the Redis for agents and receipts, does not answer
        * AuditUnavailable      the ledger does not answer, so nothing is published
    * ClockSkew                 the clocks of two computers differ too much
    * NotStoppable              the handler to cancel runs where it cannot be stopped
    * RateLimitExceeded         the sender has reached its rate limit
    * HandlerExited             a handler called sys.exit() or ran out of memory
    * RequeueLimitExceeded      a handler requeued a message too often
    * DeliveryLimitExceeded     too many workers died while they handled the message
    * BlockingCall              a coroutine made a call that blocks its event loop
    * CircularRequest           the requested agent itself waits for the answer
    * RequestError              a request has no result
        * RequestTimeout        no answer arrived in time
        * Expired               the request expired before its agent began it
        * Cancelled             the request was cancelled
        * RemoteError           the handler of the other agent failed
        * BackendUnavailable    the result backend does not answer
        * StreamBroken          a part of a streamed answer was lost
"""

from __future__ import annotations

import math
from typing import Any

from kombu.exceptions import DecodeError, EncodeError, OperationalError


class WaooawError(Exception):
    """An error of waooaw_celery.

    Attributes:
        message_ids: ids of the messages that the same call had published before it failed.
    """

    message_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the error's message or, without one, the first line of the class's docstring."""
        return super().__str__() or (type(self).__doc__ or "").partition("\n")[0]


class ConfigurationError(WaooawError, ValueError):
    """A setting is missing, misspelt or invalid."""


class InvalidSchema(ConfigurationError):
    """The JSON Schema of a topic is invalid, or validation against it might not end."""


class InvalidMessage(WaooawError, ValueError):
    """A message or an argument is invalid."""


class SchemaViolation(InvalidMessage):
    """An event does not match the schema of its topic.

    Attributes:
        topic: topic of the event.
        version: version of the schema.
        path: the part of the payload that is invalid, as a JSONPath such as ``$.order.total``.
        problem: what is wrong with it.
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
    """A value cannot be encoded in its format, or is larger than the limit.

    It is also a Kombu ``EncodeError``: Celery then fails a task whose result cannot be encoded.
    """


class DecodingFailed(WaooawError, DecodeError):
    """Received data cannot be decoded, or is larger than the limit.

    It is also a Kombu ``DecodeError``.
    """


class UnknownSender(WaooawError, LookupError):
    """No sender is known: no handler runs, and the setting waooaw_sender is not set."""


class UnknownAgent(WaooawError, LookupError):
    """The agent is not known: no worker of it has ever started."""


class NoHandler(UnknownAgent):
    """The agent has no handler for this type of message."""


class UnknownMethod(UnknownAgent):
    """The agent has no method of this name."""


class UnknownMessage(WaooawError, LookupError):
    """There is no receipt for this message."""


class UnknownDeadLetter(WaooawError, LookupError):
    """There is no such dead letter."""


class UnknownSubscription(WaooawError, LookupError):
    """There is no subscription of this name."""


class BrokerUnavailable(WaooawError, OperationalError):
    """The message could not be published. The broker may have it or not: read its receipt.

    It is also a Kombu ``OperationalError``, so that code written for Celery catches it.

    Attributes:
        uncertain: whether the broker may have the message. False: it does not have it and will not get it, because
            nothing was tried or recorded, or because the broker refused it and its receipt is FAILED.
    """

    uncertain: bool = True


class StoreUnavailable(WaooawError, ConnectionError):
    """The ledger's database, or the Redis for agents and receipts, does not answer."""


class AuditUnavailable(StoreUnavailable):
    """The ledger does not answer. A message that it cannot record is not published.

    Attributes:
        uncertain: whether the database may have committed a statement that it did not confirm.
    """

    uncertain: bool = False


class ClockSkew(WaooawError, RuntimeError):
    """Two clocks differ by more than is allowed for this operation; nothing was done."""


class NotStoppable(WaooawError, RuntimeError):
    """The handler to cancel cannot be stopped: it is not a coroutine and runs in a thread."""


class RateLimitExceeded(WaooawError):
    """The sender has reached its rate limit; no message of this call was sent.

    Attributes:
        agent: the sender.
        rule: the rule with the longest wait, such as ``100/hour burst 20``.
        retry_after: seconds after which the same call succeeds if the agent sends nothing else; infinite if the
            call has more messages than the rule ever allows at once.
        n: number of messages of the call.
    """

    def __init__(self, agent: str, rule: str, retry_after: float, n: int = 1) -> None:
        if math.isinf(retry_after):
            super().__init__(f"{rule} never allows {agent!r} to send {n} messages at once: send fewer")
        else:
            super().__init__(f"{agent!r} has reached its rate limit {rule}: try again in {retry_after:.3f} s")
        self.agent = agent
        self.rule = rule
        self.retry_after = retry_after
        self.n = n

    def __reduce__(self) -> tuple[Any, ...]:
        return RateLimitExceeded, (self.agent, self.rule, self.retry_after, self.n), self.__dict__


class HandlerExited(WaooawError):
    """A handler called sys.exit() or ran out of memory. Its worker goes on."""


class RequeueLimitExceeded(WaooawError):
    """A handler requeued a message with Reject(requeue=True) more often than waooaw_requeue_limit allows."""


class DeliveryLimitExceeded(WaooawError):
    """A message was redelivered too often, because each worker that began to handle it died."""


class BlockingCall(WaooawError, RuntimeError):
    """A coroutine made a call that blocks the event loop, and so every other coroutine of the process."""


class CircularRequest(WaooawError, RuntimeError):
    """The requested agent itself waits for the handler that sends this request; both would time out."""


class RequestError(WaooawError):
    """A request has no result."""


class RequestTimeout(RequestError, TimeoutError):
    """No answer arrived in time."""


class Expired(RequestError):
    """The request expired before its agent began it, and was dropped."""


class Cancelled(RequestError):
    """The request was cancelled or revoked."""


class BackendUnavailable(RequestError, ConnectionError):
    """The result backend, which carries the answers, does not answer."""


class StreamBroken(RequestError):
    """A part of a streamed answer was lost, or the agent began the answer again: repeat the request."""


class RemoteError(RequestError):
    """The handler of the other agent raised an exception.

    Attributes:
        agent: name of the agent whose handler failed.
        type: class name of the exception, such as ``ValueError``.
        message: message of the exception.
        traceback: its traceback as text, or None if the agent sent none.
    """

    def __init__(self, agent: str, type_: str, message: str, traceback: str | None = None) -> None:
        super().__init__(f"{agent} raised {type_}: {message}")
        self.agent = agent
        self.type = type_
        self.message = message
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, str, str | None]]:
        return RemoteError, (self.agent, self.type, self.message, self.traceback)
