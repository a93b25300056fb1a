"""Every error that this package raises.

* WaooawError
    * ConfigurationError        a setting is missing, misspelt or invalid
        * InvalidSchema         the JSON Schema of a topic is invalid
        * SchemaConflict        a version of a topic's JSON Schema is registered with another text
    * InvalidMessage            a message or an argument is invalid
        * SchemaViolation       an event does not match the schema of its topic
        * EncodingFailed        a value cannot be encoded, or is too large
        * WorkflowConflict      a workflow of this id has another function or input
        * InvalidArguments      a handler cannot be called with the arguments of a message
    * DecodingFailed            received data cannot be decoded, or is too large
    * UnknownSender             no sender is known
    * UnknownAgent              the recipient is not known
        * NoHandler             the recipient has no handler for this type of message
        * UnknownMethod         the recipient has no such method
        * LedgerMismatch        the recipient's workers write to another ledger, or to none
        * NoAgentAvailable      no agent that may get the message has the capability
    * UnknownMessage            there is no receipt for this id
    * PayloadNotLoaded          a record was read without its payload
    * PayloadMissing            the store of large payloads does not have that of a message
    * PayloadAltered            a stored payload is not what was stored
    * UnknownDeadLetter         there is no such dead letter
    * UnknownSubscription       there is no such subscription
    * UnknownReplay             there is no such replay
    * BrokerUnavailable         the message could not be published
    * StoreUnavailable          the ledger's database, or the Redis for agents and receipts, does not answer
        * AuditUnavailable      the ledger does not answer, so nothing is published
        * ReferenceStoreUnavailable the store of large payloads does not answer
    * ClockSkew                 the clocks of two computers differ too much
    * NotStoppable              the handler to cancel runs where it cannot be stopped
    * NoWorker                  no worker of the agent runs, or one does not answer
    * NotScalable               the pool of a worker cannot be given another size
    * RateLimitExceeded         the sender has reached its rate limit
    * QueueFull                 too many messages wait for the recipient
    * SenderPaused              an operator has paused the sender
    * CircuitOpen               the circuit breaker of the requested agent is open
    * TooManyInFlight           the caller has too many open requests to the agent
    * HandlerExited             a handler called sys.exit() or ran out of memory
    * DeadlineExceeded          a handler was stopped, because the caller of its request no longer waits
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
    * UnknownWorkflow           there is no such workflow
    * WorkflowEnded             the workflow has ended, and takes no more signals and commands
    * WorkflowChanged           the function of a workflow makes other steps than it has recorded
    * WorkflowFailed            a workflow has no result
    * StepFailed                a step of a workflow raised an error
        * StepTimeout           a step of a workflow took too long
    * SignalTimeout             a workflow waited too long for a signal
    * NotPermitted              who speaks at an edge may not do this
    * ToolError                 a tool of an outside MCP server failed
    * ToolServerUnavailable     an outside MCP server cannot be started or reached
    * NotSettled                the agents of a test did not come to rest

SettingOverridden is a warning: the environment and the code give one setting different values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from kombu.exceptions import DecodeError, EncodeError, OperationalError

#: The beginning of the note (PEP 678) that an error of a handler has when its message was tried often enough. The
#: note is a line of the traceback, which every result backend carries.
RETRIED_OUT = "Retried out: "
#: The failures of a message that ended its worker each time.
_DEADLY = ("WorkerLostError", "DeliveryLimitExceeded")


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


class SchemaConflict(ConfigurationError):
    """A version of a topic's JSON Schema is already registered with another text."""


class InvalidMessage(WaooawError, ValueError):
    """A message or an argument is invalid."""


class SchemaProblem(NamedTuple):
    """One reason why an event does not match the schema of its topic.

    Attributes:
        path: the part of the payload that is invalid, as a JSONPath such as ``$.order.total``.
        problem: what is wrong with it.
    """

    path: str
    problem: str


class SchemaViolation(InvalidMessage):
    """An event does not match the schema of its topic.

    Attributes:
        topic: topic of the event.
        version: version of the schema.
        problems: what is wrong with the payload, the most relevant problem first: at most 20.
        more: how many more problems were found. The search ends after 100.
    """

    def __init__(self, topic: str, version: str, problems: Sequence[SchemaProblem], more: int = 0) -> None:
        told = "; ".join(f"at {each.path}: {each.problem}" for each in problems)
        rest = f"; and {more} more" if more else ""
        super().__init__(f"the event breaks the schema of {topic} in version {version} {told}{rest}")
        self.topic = topic
        self.version = version
        self.problems = tuple(problems)
        self.more = more

    @property
    def path(self) -> str:
        """The path of the most relevant problem."""
        return self.problems[0].path

    @property
    def problem(self) -> str:
        """The most relevant problem."""
        return self.problems[0].problem

    def __reduce__(self) -> tuple[type[SchemaViolation], tuple[str, str, tuple[SchemaProblem, ...], int]]:
        return SchemaViolation, (self.topic, self.version, self.problems, self.more)


class EncodingFailed(InvalidMessage, EncodeError):
    """A value cannot be encoded in its format, or is larger than the limit.

    It is also a Kombu ``EncodeError``: Celery then fails a task whose result cannot be encoded.
    """


class InvalidArguments(InvalidMessage, TypeError):
    """A handler cannot be called with the arguments of a message: one is missing, or one is too many."""


class DecodingFailed(WaooawError, DecodeError):
    """Received data cannot be decoded, or is larger than the limit.

    It is also a Kombu ``DecodeError``.
    """


class UnknownSender(WaooawError, LookupError):
    """No sender is known: no handler runs, and the setting waooaw_sender is not set."""


class UnknownAgent(WaooawError, LookupError):
    """The agent is not known: none of its workers has ever started, and ``waooaw_agents`` does not name it."""


class NoHandler(UnknownAgent):
    """The agent has no handler for this type of message."""


class UnknownMethod(UnknownAgent):
    """The agent has no method of this name."""


class LedgerMismatch(UnknownAgent):
    """The recipient is not known to this ledger, but its workers live: they write to another ledger or to none."""


class NoAgentAvailable(UnknownAgent):
    """No agent with a capability may get the message.

    Attributes:
        capability: the address, such as ``capability:summarise@>=2``.
        considered: each agent with the capability, and why it does not get the message.
    """

    def __init__(self, capability: str, considered: Mapping[str, str]) -> None:
        told = "; ".join(f"{name}: {reason}" for name, reason in sorted(considered.items()))
        super().__init__(
            f"no agent is available for {capability}: "
            + (told or "no known agent declares it. `waooaw find` lists the agents with a capability")
        )
        self.capability = capability
        self.considered = dict(considered)

    def __reduce__(self) -> tuple[type[NoAgentAvailable], tuple[str, dict[str, str]]]:
        return NoAgentAvailable, (self.capability, self.considered)


class UnknownMessage(WaooawError, LookupError):
    """There is no receipt for this message."""


class PayloadNotLoaded(WaooawError, LookupError):
    """The record of a message was read without its payload. ``trail.receipt`` of its id reads it."""


class PayloadMissing(WaooawError, LookupError):
    """The store of large payloads does not have this one. Put it back, and retry the message."""


class PayloadAltered(WaooawError, ValueError):
    """A stored payload is not what was stored. Restore it, and retry the message."""


class UnknownDeadLetter(WaooawError, LookupError):
    """There is no such dead letter."""


class UnknownSubscription(WaooawError, LookupError):
    """There is no subscription of this name."""


class UnknownReplay(WaooawError, LookupError):
    """There is no replay with this id."""


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


class ReferenceStoreUnavailable(StoreUnavailable):
    """The store of large payloads does not answer. Nothing was sent; send the message again later."""


class ClockSkew(WaooawError, RuntimeError):
    """Two clocks differ by more than is allowed for this operation; nothing was done."""


class NotStoppable(WaooawError, RuntimeError):
    """The handler to cancel cannot be stopped: it is not a coroutine and runs in a thread."""


class NoWorker(WaooawError, LookupError):
    """No worker of the agent runs, or a worker does not answer."""


class NotScalable(WaooawError, RuntimeError):
    """The pool of a worker cannot be given another size while it runs."""


class ToolError(WaooawError):
    """A tool of an outside MCP server failed, or its answer is not valid."""


class ToolServerUnavailable(WaooawError, ConnectionError):
    """An outside MCP server cannot be started or reached, or it ended during a call."""


class NotPermitted(WaooawError):
    """Who speaks at an edge may not do this, or is unknown; or an edge may not connect to an address."""


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


class QueueFull(WaooawError):
    """Too many messages wait for the recipient; no message of this call was sent.

    Attributes:
        agent: the recipient.
        limit: the setting ``waooaw_max_waiting``, or ``waooaw_max_waiting_per_sender``.
        waiting: how many messages wait, or how many of the sender.
        retry_after: seconds after which there may be room, as far as the sender can tell.
        sender: the sender that has too many; None: all have together.
    """

    def __init__(
        self, agent: str, limit: int, waiting: int, retry_after: float, sender: str | None = None
    ) -> None:
        which = "messages" if sender is None else f"messages of {sender!r}"
        setting = "waooaw_max_waiting" if sender is None else "waooaw_max_waiting_per_sender"
        super().__init__(
            f"{waiting} {which} wait for {agent!r}, and {setting} is {limit}: try again in "
            f"{retry_after:.1f} s, or start more workers of it"
        )
        self.agent = agent
        self.limit = limit
        self.waiting = waiting
        self.retry_after = retry_after
        self.sender = sender

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = self.agent, self.limit, self.waiting, self.retry_after, self.sender
        return QueueFull, arguments, self.__dict__


class SenderPaused(WaooawError):
    """An operator has paused the sender; no message of this call was sent.

    Attributes:
        agent: the sender.
        by: who paused it.
        since: when, aware UTC.
        reason: why, or None.
    """

    def __init__(self, agent: str, by: str, since: datetime, reason: str | None = None) -> None:
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"{agent!r} may not send: {by} paused it at {since:%Y-%m-%d %H:%M:%S} UTC{because}. "
            f"`waooaw limits resume {agent}` lets it send again"
        )
        self.agent = agent
        self.by = by
        self.since = since
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return SenderPaused, (self.agent, self.by, self.since, self.reason), self.__dict__


class CircuitOpen(WaooawError):
    """The circuit breaker of the requested agent is open; nothing was sent.

    Attributes:
        agent: the requested agent.
        retry_after: seconds until a request may be let through again; infinite if an operator has opened the
            breaker without an end.
        by: who opened it by hand; None: the failures of earlier requests have.
        reason: why it was opened by hand, or None.
    """

    def __init__(self, agent: str, retry_after: float, by: str | None = None, reason: str | None = None) -> None:
        because = f" ({reason})" if reason else ""
        why = f"{by} opened it{because}" if by is not None else "too many of the last requests to it have failed"
        when = (
            f"`waooaw breakers close {agent}` closes it"
            if math.isinf(retry_after)
            else f"ask again in {retry_after:.1f} s"
        )
        super().__init__(f"nothing was sent: the circuit breaker of {agent!r} is open, because {why}; {when}")
        self.agent = agent
        self.retry_after = retry_after
        self.by = by
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return CircuitOpen, (self.agent, self.retry_after, self.by, self.reason), self.__dict__


class TooManyInFlight(WaooawError):
    """The caller has as many open requests to an agent as ``waooaw_max_in_flight`` allows; nothing was sent.

    Attributes:
        agent: the requested agent.
        caller: the agent that requests it.
        limit: how many requests of this caller to it may be open at once.
        retry_after: seconds after which one of them has probably ended, from how long the last ones took.
    """

    def __init__(self, agent: str, caller: str, limit: int, retry_after: float) -> None:
        super().__init__(
            f"nothing was sent: {caller!r} has {limit} open requests to {agent!r}, as many as "
            f"waooaw_max_in_flight allows; try again in {retry_after:.2f} s"
        )
        self.agent = agent
        self.caller = caller
        self.limit = limit
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return TooManyInFlight, (self.agent, self.caller, self.limit, self.retry_after), self.__dict__


class HandlerExited(WaooawError):
    """A handler called sys.exit() or ran out of memory. Its worker goes on."""


class DeadlineExceeded(WaooawError):
    """A handler was stopped at its deadline, because the caller of its request no longer waits."""


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

    @property
    def retried_out(self) -> bool:
        """Whether the request was tried as often as its agent, or an agent that this one requested, tries it.

        A handler that fails because of such an error is not tried again.
        """
        lines = (self.traceback or "").splitlines()
        # The lines of an ExceptionGroup are indented.
        lines += getattr(self, "__notes__", ())  # of a caller that has sent the request again
        return self.type in _DEADLY or any(line.lstrip(" |").startswith(RETRIED_OUT) for line in lines)

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, str, str | None]]:
        return RemoteError, (self.agent, self.type, self.message, self.traceback)


class UnknownWorkflow(WaooawError, LookupError):
    """There is no workflow with this id, or no agent has a workflow of this name."""


class WorkflowConflict(InvalidMessage):
    """A workflow with this id exists, and has another function or another input."""


class WorkflowEnded(WaooawError, RuntimeError):
    """The workflow has ended: it takes no more signals and commands."""


class WorkflowChanged(WaooawError, RuntimeError):
    """The function of a workflow makes another step than the one that was recorded."""


class WorkflowFailed(WaooawError):
    """A workflow ended without a result.

    Attributes:
        workflow_id: id of the workflow.
        status: how it ended: ``failed``, ``compensated``, ``cancelled`` or ``timed out``.
        type: class name of the error, such as ``ValueError``.
        message: text of the error.
    """

    def __init__(self, workflow_id: str, status: str, type_: str, message: str) -> None:
        super().__init__(f"workflow {workflow_id} is {status}: {type_}: {message}")
        self.workflow_id = workflow_id
        self.status = status
        self.type = type_
        self.message = message

    def __reduce__(self) -> tuple[type[WorkflowFailed], tuple[str, str, str, str]]:
        return WorkflowFailed, (self.workflow_id, self.status, self.type, self.message)


class StepFailed(WaooawError):
    """A step of a workflow raised an error that is not one of this package.

    The journal has the name of its class and not the class: the process that reads the journal may not have it.

    Attributes:
        step: which step.
        type: class name of the error, such as ``ValueError``.
        message: text of the error.
        traceback: its traceback as text, or None.
    """

    def __init__(self, step: str, type_: str = "", message: str = "", traceback: str | None = None) -> None:
        super().__init__(f"step {step} raised {type_}: {message}" if type_ else step)
        self.step = step
        self.type = type_
        self.message = message
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[StepFailed], tuple[str, str, str, str | None]]:
        return type(self), (self.step, self.type, self.message, self.traceback)


class StepTimeout(StepFailed, TimeoutError):
    """A step of a workflow took longer than its timeout."""


class SignalTimeout(WaooawError, TimeoutError):
    """A workflow waited for a signal longer than its timeout."""


class SettingOverridden(UserWarning):
    """The environment and the code give one setting different values. The environment wins."""


class NotSettled(WaooawError):
    """The agents of a test did not come to rest: a handler hangs, or messages cause others without end."""
