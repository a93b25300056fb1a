"""How a workflow is started: its row, and the message that tells its agent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database.rows import digest
from waooaw_celery.messages.enums import MessageType, Priority, RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.messages.trace_context import TraceContext
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.monitoring.tracing.sending import running_trace
from waooaw_celery.workflows.journal.rows import new_workflow

#: The handlers that each agent with a workflow has: for answers, and for signals and commands.
ANSWER_HANDLER, INPUT_HANDLER = "workflow_answer", "workflow_input"


def parse_name(name: object) -> HandlerName:
    """Return the agent and the function that a workflow's name gives.

    Raises:
        InvalidMessage: it is not ``<agent>.<function>``.
    """
    target = HandlerName.parse(name) if isinstance(name, str) else None
    if target is None or takes_message(target.handler):
        raise InvalidMessage(
            f"the name of a workflow is <agent>.<function>, such as crm.onboard, not {name!r:.80}"
        )
    return target


def checked_input(given: object) -> dict[str, JSON]:
    """Return a copy of the input of a workflow.

    Raises:
        InvalidMessage: it is not a mapping of the function's parameters to JSON values.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidMessage(
            "the input of a workflow is a mapping of its function's parameters to values, such as "
            f"{{'customer': 7}}, not {given!r:.80}"
        )
    copy: dict[str, JSON] = json_copy(dict(given), "input")
    return copy


def new_row(
    app: Any,
    target: HandlerName,
    given: Mapping[str, JSON],
    *,
    workflow_id: str,
    priority: Priority = Priority.NORMAL,
    conversation_id: str | None = None,
    trace: TraceContext | None = None,
    retention: RetentionPolicy | None = None,
    deadline: datetime | None = None,
    parent_id: str | None = None,
    forked_from: str | None = None,
    version: int | None = None,
) -> dict[str, Any]:
    """Return the columns of a new workflow."""
    copy = checked_input(given)
    return new_workflow(
        workflow_id=workflow_id,
        name=str(target),
        agent=target.agent,
        version=version,
        priority=priority,
        given=copy,
        input_digest=digest(copy),
        conversation_id=conversation_id or workflow_id,
        trace=trace or running_trace(),
        created_at=app.reference_clock.now(),
        retention=retention or app.settings.retention,
        deadline=deadline,
        parent_id=parent_id,
        forked_from=forked_from,
    )


def start_message(
    app: Any, target: HandlerName, row: Mapping[str, Any], from_agent: str, identity: str | None = None
) -> Message:
    """Return the complete message that tells an agent of a new workflow; its id is that of the workflow."""
    message = Message(
        from_agent=from_agent,
        to_agent=target.agent,
        message_type=MessageType.QUERY,
        payload=row["input"],
        priority=Priority.of_rank(row["priority"]),
        ttl_seconds=None,
        message_id=row["workflow_id"],
        correlation_id=row["workflow_id"],
        conversation_id=row["conversation_id"],
        trace=row["trace"],
        causation_id=row["parent_id"],
        identity=identity,
        retention=RetentionPolicy(row["retention"]),
    )
    completed: Message = app.message_factory.complete(target, message)
    return completed


def input_message(
    app: Any,
    agent: str,
    workflow_id: str,
    conversation_id: str,
    payload: Mapping[str, JSON],
    *,
    from_agent: str,
    id_: str,
) -> tuple[HandlerName, Message]:
    """Return the message that tells an agent of a signal to one of its workflows, or of a command."""
    target = HandlerName(agent, INPUT_HANDLER)
    message = Message(
        from_agent=from_agent,
        to_agent=agent,
        message_type=MessageType.QUERY,
        payload={"workflow_id": workflow_id, **payload},
        ttl_seconds=None,
        message_id=id_,
        correlation_id=workflow_id,
        conversation_id=conversation_id,
    )
    return target, app.message_factory.complete(target, message)
