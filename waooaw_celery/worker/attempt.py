"""What a worker knows of one message while it handles it: one typed object for each attempt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from celery.app.task import Context

from waooaw_celery.messages.headers import payload_of
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.messages.trace_context import TraceContext, trace_of
from waooaw_celery.messages.validation import LocalTime
from waooaw_celery.worker.health.clock import clock_of

#: The only key of this package in a Celery ``Context``.
_KEY = "waooaw_attempt"


@dataclass(slots=True)
class Attempt:
    """One attempt at a message: what admission decided, and how far the handler got.

    Attributes:
        message: the message, once it was decoded; a large one is decoded once.
        loaded: the arguments of a message that carries a reference to them, once they were loaded.
        is_admitted: whether admission has decided, and has recorded the delivery. A message of a batch is admitted
            before Celery traces it.
        is_checked: whether admission has looked at the message's expiry and at cancellations.
        skipped_as: the event with which the message ends without its handler; None: the handler runs.
        lost_workers: how many workers died with the message, when they are more than the delivery limit allows.
        requeue_reason: why the message goes back to its queue without its handler; None: it does not.
        admitted_at: when it was admitted, in seconds of the monotonic clock.
        handler_started: whether the handler was called.
        handler_ended: whether the handler has returned or raised, or never runs. What Celery sends from then on is
            a follow-up.
        has_failed: whether the message has failed, so that a follow-up is an errback.
        is_over_budget: whether it is not tried again because the retry budget of the process is spent.
        is_stopped: whether the handler was stopped because the message was cancelled.
        is_final: whether the message is not tried again, whatever the retry policy of its handler says.
        is_batch: whether this is the call of a handler with several messages, and no message.
        traces: the trace contexts of these messages; None for one without.
        verdict: what a handler of batches decided about the message, a Verdict; None: nothing yet.
        sent_parts: the parts of its stream that were sent, where the ledger records them; or None.
    """

    # No report of an error shows payloads with the local variables of a frame.
    message: Message | None = field(default=None, repr=False)
    loaded: tuple[list[Any], dict[str, Any]] | None = field(default=None, repr=False)
    is_admitted: bool = False
    is_checked: bool = False
    skipped_as: MessageEvent | None = None
    lost_workers: int = 0
    requeue_reason: str | None = None
    admitted_at: float | None = None
    handler_started: bool = False
    handler_ended: bool = False
    has_failed: bool = False
    is_over_budget: bool = False
    is_stopped: bool = False
    is_final: bool = False
    is_batch: bool = False
    traces: tuple[TraceContext | None, ...] = ()
    verdict: Any = field(default=None, repr=False)
    sent_parts: Any = field(default=None, repr=False)

    def end(self, *, failed: bool) -> None:
        """Note that the handler has ended, or never runs.

        Args:
            failed: whether it raised.
        """
        self.handler_ended, self.has_failed = True, failed


def attempt_of(request: Context) -> Attempt:
    """Return the attempt of a Celery request; the first call creates it."""
    attempt = request.get(_KEY)
    if not isinstance(attempt, Attempt):  # a publisher may have sent a header of this name
        attempt = Attempt()
        if request.id is not None:  # direct calls of a handler, as in unit tests, share one request without an id
            request.update({_KEY: attempt})
    return attempt


def as_fact(attempt: Attempt) -> dict[str, Any]:
    """Return what gives a Celery request this attempt, in place of a new one."""
    return {_KEY: attempt}


def message_of(task: Any, request: Context) -> Message:
    """Return the message of a request, decoded once per attempt.

    Args:
        task: its handler, an AgentTask.
        request: Celery's request.

    Raises:
        InvalidMessage: this version cannot read the message's envelope.
    """
    attempt = attempt_of(request)
    if attempt.message is None:
        attempt.message = _decoded(task, request)
    return attempt.message


def _decoded(task: Any, request: Context) -> Message:
    headers = {
        "id": request.id,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        ENVELOPE_HEADER: (request.headers or {}).get(ENVELOPE_HEADER),
        **(trace_of(request.headers or {}) or {}),
    }
    args, kwargs = request.args or (), request.kwargs or {}
    message = Message.from_headers(headers, task.agent, payload_of(task.handler, args, kwargs))
    loaded = attempt_of(request).loaded
    if loaded is not None:
        # A handler may send a copy of the message with another payload: nothing is to say that it is elsewhere.
        message = message.evolve(payload=payload_of(task.handler, *loaded), reference=None)
    if isinstance(message.sent_at, LocalTime):  # an ordinary Celery client sends no time
        message = message.filled_in(sent_at=clock_of(task.app).corrected(message.sent_at))
    return message
