"""Steps that request a method of an agent: their ids are computed, and the answers come as messages."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from itertools import count
from uuid import NAMESPACE_OID, uuid5

from waooaw_celery.discovery.address import CapabilityAddress
from waooaw_celery.errors import (
    BrokerUnavailable,
    QueueFull,
    RateLimitExceeded,
    RequestTimeout,
    SenderPaused,
    StoreUnavailable,
    WaooawError,
)
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.journal.records import StepRecord
from waooaw_celery.workflows.states import StepStatus
from waooaw_celery.workflows.steps.outcomes import retry_or_fail
from waooaw_celery.workflows.steps.publisher import NeverPublished
from waooaw_celery.workflows.steps.step import RequestCall

logger = get_logger(__name__)

#: Errors after which the same message is published again: they pass.
TEMPORARY = (BrokerUnavailable, StoreUnavailable, RateLimitExceeded, QueueFull, SenderPaused)
#: Seconds between two attempts to publish a message.
PUBLISH_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def computed_id(*parts: object) -> str:
    """Return the id of a message of a workflow: the same each time, in every process.

    It is a UUID of version 5 (RFC 9562) over the workflow, its run, the step and the attempt.
    """
    return str(uuid5(NAMESPACE_OID, "\n".join(map(str, ("waooaw workflow", *parts)))))


def attempt(run: Run, record: StepRecord, call: RequestCall) -> None:
    """Choose an agent if the step names a capability; record the attempt, and publish its request when written."""
    record.attempts += 1
    if call.capability is None:
        _begin(run, record, call, str(call.target))
    else:
        run.busy += 1
        run.spawn(_choose_and_begin(run, record, call, call.capability))


async def _choose_and_begin(run: Run, record: StepRecord, call: RequestCall, address: CapabilityAddress) -> None:
    try:
        choose = partial(run.engine.app.selector.choose, address, method=call.method)
        choice = await run.engine.in_thread(choose)
    except WaooawError as error:
        if not run.closed:
            retry_or_fail(run, record, call, error)
    else:
        if not run.closed:
            record.details = None  # another agent may be chosen than for the last attempt
            _begin(run, record, call, f"{choice.agent}.{choice.capability.method}")
    finally:
        run.busy -= 1
        run.touch()


def _begin(run: Run, record: StepRecord, call: RequestCall, target: str) -> None:
    record.request_id = computed_id(run.workflow_id, run.claim.run, record.path, record.attempts)
    record.due_at = None if call.timeout is None else run.now() + timedelta(seconds=call.timeout)
    record.error = None
    if record.details is None:  # whom it asks: an erasure looks for that
        record.details = target
    record.status = StepStatus.STARTED
    run.changes.change(record, then=partial(_publish, run, record, call))
    run.engine.arm(run)


def _target(record: StepRecord, call: RequestCall) -> HandlerName:
    """Return the agent and the method that an attempt asks."""
    found = HandlerName.parse(record.details) if call.target is None else call.target
    assert found is not None  # noqa: S101 - it was recorded when the attempt began
    return found


def go_on(run: Run, record: StepRecord, call: RequestCall) -> None:
    """Publish a request again if its process was lost: the ledger knows a message that was published before."""
    if record.request_id is not None and run.claim.takeovers:
        _publish(run, record, call, again=True)


def fire(run: Run, record: StepRecord, call: RequestCall) -> None:
    """Begin the next attempt, or end one that was not answered in time."""
    if record.request_id is None:
        attempt(run, record, call)
    else:
        timeout = f"within {call.timeout:g} s" if call.timeout is not None else "in time"
        agent = _target(record, call).agent
        error = RequestTimeout(f"{agent!r} did not answer request {record.request_id} {timeout}")
        retry_or_fail(run, record, call, error)


def _publish(run: Run, record: StepRecord, call: RequestCall, *, again: bool = False) -> None:
    run.busy += 1
    task = run.spawn(_publish_until_taken(run, record, call, again))
    run.publishing.add(task)
    task.add_done_callback(run.publishing.discard)


async def _publish_until_taken(run: Run, record: StepRecord, call: RequestCall, again: bool) -> None:
    request_id = record.request_id
    try:
        for number in count():
            try:
                target = _target(record, call)
                message = _message(run, str(request_id), target, call)
                await run.engine.publisher.request(target, message, again=again or number > 0)
            except TEMPORARY as error:
                if number == 0:
                    logger.warning(
                        "request %s of workflow %s is published later: %s",
                        request_id,
                        run.workflow_id,
                        error,
                        extra={"action": "workflow_request_waits", "workflow_id": run.workflow_id},
                    )
                await asyncio.sleep(pause_after(error, number))
            except NeverPublished:
                if not run.closed and record.request_id == request_id:
                    record.request_id = computed_id(request_id, "refused")
                    run.changes.change(record, then=partial(_publish, run, record, call))
                return
            except WaooawError as error:
                if not run.closed and record.request_id == request_id and not record.ended:
                    retry_or_fail(run, record, call, error)
                return
            else:
                return
            if run.closed or record.request_id != request_id or record.ended:
                return
    finally:
        run.busy -= 1
        run.touch()


def _message(run: Run, request_id: str, target: HandlerName, call: RequestCall) -> Message:
    return Message(
        from_agent=run.claim.agent,
        to_agent=target.agent,
        capability=None if call.capability is None else call.capability.recorded,
        message_type=MessageType.QUERY,
        payload=dict(call.params),
        priority=call.priority,
        ttl_seconds=call.timeout,
        message_id=request_id,
        correlation_id=run.workflow_id,
        conversation_id=run.claim.conversation_id,
        trace=run.claim.trace,
        causation_id=run.workflow_id,
        retention=run.claim.retention,
    )


def pause_after(error: Exception, number: int) -> float:
    """Return the seconds to wait before a message is published again."""
    pause = PUBLISH_PAUSES[min(number, len(PUBLISH_PAUSES) - 1)]
    if isinstance(error, RateLimitExceeded | QueueFull):
        return max(pause, min(error.retry_after, 60.0))
    return pause
