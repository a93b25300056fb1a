"""Runs a batch where the pool runs handlers: admits its messages, calls the handler, and ends each message.

The messages are admitted together, and those that are handled are recorded together. Celery's own trace ends each
of the others: one that has expired, fails or is retried, and one with callbacks, an answer or a listener of
Celery's signals. So it ends as a message does that is handled alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from billiard.einfo import ExceptionInfo
from celery import current_app
from celery._state import _task_stack  # type: ignore[attr-defined]  # missing from its stubs
from celery.app import trace
from celery.app.task import Context

from waooaw_celery.errors import HandlerExited
from waooaw_celery.messages.log.hiding import hidden_error
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.worker.attempt import Attempt, as_fact, attempt_of
from waooaw_celery.worker.batches.admission import admit_batch
from waooaw_celery.worker.batches.message_batch import MessageBatch, Verdict
from waooaw_celery.worker.batches.record import can_be_recorded_together, others_listen, record_handled
from waooaw_celery.worker.execution.interruptions import describe, ends_worker
from waooaw_celery.worker.outcomes.follow_up_context import sending_follow_ups
from waooaw_celery.worker.outcomes.hidden_payloads import hides_payloads

logger = get_logger(__name__)

#: The names in a request that are no custom headers, as Celery's Context has them.
_CELERY_HEADERS = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})


class Raised(NamedTuple):
    """The end of a message whose trace raised.

    Attributes:
        info: what it raised.
    """

    info: ExceptionInfo


@dataclass(slots=True)
class Member:
    """A message of a batch in the process that runs it.

    Attributes:
        facts: its headers, with the facts that Celery adds.
        embed: its callbacks and further parts that Celery carries beside the arguments.
        request: Celery's request.
        attempt: the attempt at it.
        message: the message; None: it is not given to the handler.
    """

    facts: dict[str, Any]
    embed: Mapping[str, Any]
    request: Context
    attempt: Attempt
    message: Message | None = None


def trace_batch(
    name: str, batch_id: str, _: Any, packed: Sequence[tuple[dict[str, Any], Any]], *__: Any
) -> tuple[int, list[Any], float]:
    """Run a batch.

    Args:
        name: name of the handler's task.
        batch_id: id of the batch.
        packed: its messages, each a Packed.

    Returns:
        0, for each message what Celery's trace returns or a Raised, and the seconds that the batch took.
    """
    began, task = time.monotonic(), current_app.tasks[name]
    members = [_member(facts, embed) for facts, embed in packed]
    admit_batch(task, members)
    given = [member for member in members if member.message is not None]
    if given:
        _handle(task, batch_id, given)
    # Those that the handler has handled first: what follows may take long, or end the process.
    together = set() if others_listen() else {id(each) for each in given if can_be_recorded_together(task, each)}
    record_handled(task, [member for member in given if id(member) in together])
    seconds = time.monotonic() - began
    results = [(0, None, seconds) if id(member) in together else _trace(task, member) for member in members]
    if given:
        logger.info("%s handled a batch of %d messages in %.3f s", name, len(given), seconds)
    return 0, results, seconds


def _member(facts: dict[str, Any], embed: Mapping[str, Any] | None) -> Member:
    # Celery's Context would find the custom headers by itself, in ten times the time.
    headers = {name: value for name, value in facts.items() if name not in _CELERY_HEADERS}
    request = Context(facts, headers=headers, called_directly=False, is_eager=False, **(embed or {}))
    return Member(facts, embed or {}, request, attempt_of(request))


def _handle(task: Any, batch_id: str, members: Sequence[Member]) -> None:
    """Call the handler, and note for each message what it has decided."""
    batch = MessageBatch([member.message for member in members if member.message is not None])
    request = Context(
        id=batch_id,
        called_directly=False,
        is_eager=False,
        ignore_result=True,
        args=(),
        kwargs={},
        headers={},
        delivery_info={},
        hostname=members[0].request.hostname,
    )
    attempt = attempt_of(request)
    attempt.is_batch = attempt.is_final = True
    attempt.traces = tuple(message.trace for message in batch)
    for member in members:
        member.attempt.handler_started = True
    raised: Exception | None = None
    _task_stack.push(task)
    task.request_stack.push(request)
    try:
        task.handle(partial(task.call_handler, batch))
    except Exception as error:  # noqa: BLE001 - it becomes the error of each message
        raised = error
        _log(task, error, members)
    finally:
        task.request_stack.pop()
        _task_stack.pop()
    for member, verdict in zip(members, batch.verdicts(raised), strict=True):
        member.attempt.verdict = verdict
        member.attempt.handler_started = False  # its own trace carries the verdict out


def _log(task: Any, error: Exception, members: Sequence[Member]) -> None:
    logger.error(
        "%s raised %s in a batch of %d messages: %s",
        task.name,
        hidden_error(error) if hides_payloads(task.app) else describe(error),
        len(members),
        ", ".join(str(member.request.id) for member in members),
        extra={"action": "batch_failed"},
    )


def _trace(task: Any, member: Member) -> Any:
    """Let Celery end a message as one that is handled alone, and return what its trace returns."""
    verdict: Verdict | None = member.attempt.verdict
    error = verdict.error if verdict is not None else None
    place = error.__traceback__ if error is not None else None
    run = trace.fast_trace_task if task.app.use_fast_trace_task else trace.trace_task_ret
    # With the headers as they arrived: Celery would copy the attempt into those of the next attempt.
    facts = {**member.facts, **as_fact(member.attempt), "headers": member.request.headers or {}}
    body = member.facts.get("args"), member.facts.get("kwargs"), member.embed
    try:
        with sending_follow_ups(task, facts):
            return run(task.name, str(member.request.id), facts, body, None, None)
    except Exception:  # noqa: BLE001 - the worker's main process logs it
        return Raised(ExceptionInfo())
    except BaseException as interruption:
        if ends_worker(interruption):
            raise
        try:
            raise HandlerExited(f"{task.name} ended with {describe(interruption)}") from interruption
        except HandlerExited:
            return Raised(ExceptionInfo())
    finally:
        if error is not None:  # the messages of a batch may share it, and each trace adds its own frames
            error.__traceback__ = place
