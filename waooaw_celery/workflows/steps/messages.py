"""Steps that send a message or publish an event: with an id that is computed, so that it is sent once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from waooaw_celery.app.publishing.already_sent import is_sent
from waooaw_celery.discovery.address import CapabilityAddress, is_capability
from waooaw_celery.errors import ConfigurationError, InvalidMessage, UnknownMessage
from waooaw_celery.messages.enums import SENDABLE, MessageType, Priority
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.monitoring.tracing.sending import within_trace
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.steps.requests import TEMPORARY, computed_id, pause_after
from waooaw_celery.workflows.steps.step import LocalCall

logger = get_logger(__name__)

_ONCE = RetryPolicy(attempts=1)


def message_call(
    run: Run,
    path: str,
    *,
    to_agent: str | CapabilityAddress,
    payload: JSON,
    message_type: MessageType,
    priority: Priority,
    ttl_seconds: float | None,
) -> LocalCall:
    """Return the call that sends a message, and returns its id."""
    if message_type not in SENDABLE:
        raise InvalidMessage(f"message_type must be one of {', '.join(SENDABLE)}, not {message_type!r:.80}")
    message = Message(
        from_agent=run.claim.agent,
        to_agent=run.claim.agent if is_capability(to_agent) else str(to_agent),  # another one is chosen below
        message_type=message_type,
        payload=payload,
        priority=priority,
        ttl_seconds=ttl_seconds,
        message_id=computed_id(run.workflow_id, run.claim.run, path),
        correlation_id=run.workflow_id,
        conversation_id=run.claim.conversation_id,
        trace=run.claim.trace,
        causation_id=run.workflow_id,
        retention=run.claim.retention,
    )
    return LocalCall(
        call=partial(_until_sent, run, partial(_send, run, to_agent, message)), retry=_ONCE, timeout=None
    )


def event_call(run: Run, path: str, topic: str, event: JSON, options: Mapping[str, Any]) -> LocalCall:
    """Return the call that publishes an event, and returns its id."""
    fields = {
        **options,
        "from_agent": run.claim.agent,
        "correlation_id": run.workflow_id,
        "event_id": computed_id(run.workflow_id, run.claim.run, path),
    }
    publish = partial(_publish, run, topic, json_copy(event, "event"), fields)
    return LocalCall(call=partial(_until_sent, run, publish), retry=_ONCE, timeout=None)


async def _until_sent(run: Run, send: Callable[[], str]) -> str:
    """Send something; while the broker or the store does not answer, try again."""
    number = 0
    while True:
        try:
            return str(await run.engine.publisher.call(send))
        except TEMPORARY as error:
            if number == 0:
                logger.warning(
                    "a message of workflow %s is sent later: %s",
                    run.workflow_id,
                    error,
                    extra={"action": "workflow_message_waits", "workflow_id": run.workflow_id},
                )
            await asyncio.sleep(pause_after(error, number))
            number += 1


def _send(run: Run, to_agent: str | CapabilityAddress, message: Message) -> str:
    app = run.engine.app
    if is_capability(to_agent):
        message = _addressed(app, CapabilityAddress.of(to_agent), message)
    target = HandlerName(message.to_agent, message.message_type.value)
    app.registry.check_handler(target)
    try:
        app.publisher.publish([(target, app.message_factory.complete(target, message))])
    except InvalidMessage:
        if not is_sent(app.receipts, message.message_id):
            raise
    return message.message_id


def _addressed(app: Any, address: CapabilityAddress, message: Message) -> Message:
    """Return a message to the agent that is chosen for it, or that was chosen by a process that was lost."""
    try:
        agent = app.receipts.get(message.message_id).to_agent
    except UnknownMessage:
        agent = app.selector.choose(address, handler=message.message_type.value).agent
    return message.evolve(to_agent=agent, capability=address.recorded)


def _publish(run: Run, topic: str, event: JSON, fields: dict[str, Any]) -> str:
    publish = run.definition.publish_event
    if publish is None:
        raise ConfigurationError(f"{run.claim.name} has no event bus")
    with within_trace(run.claim.trace):
        try:
            return str(publish(topic, event, **fields).event_id)
        except InvalidMessage:  # another process may have published it at the same time: then it is not sent again
            return str(publish(topic, event, **fields).event_id)
