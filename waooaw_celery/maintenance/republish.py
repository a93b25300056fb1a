"""Publishes a lost message again: with the same id, headers, body and routing."""

from __future__ import annotations

from typing import Any

from celery.utils.nodenames import anon_nodename

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.publishing.large_payloads import REFERENCE_ENCODING
from waooaw_celery.app.publishing.publication import envelope_headers, routing_options, shown_arguments
from waooaw_celery.ledger.read.lost import LostMessage
from waooaw_celery.messages.publish_options import RECOVERED_HEADER
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER


def republish(app: AgentApp, producer: Any, lost: LostMessage) -> None:
    """Publish a lost message. It is not subject to rate limits, and is not recorded again.

    This does not use ``send_task``: within a task, Celery would make the message a child of that task.

    Args:
        app: the application whose broker takes the message.
        producer: the Kombu producer to publish with.
        lost: the message.

    Raises:
        EncodingFailed: the message cannot be encoded in its format.
    """
    message, options = lost.message.filled_in(ledger=app.ledger_id), lost.publish_options
    target = HandlerName(message.to_agent, lost.handler)
    task = dict(options.task)
    has_no_result = takes_message(target.handler) or options.call is not None  # its answer is a message, if any
    ignore_result = bool(task.pop("ignore_result", False)) or has_no_result
    task_serializer, task_compression = task.pop("serializer", None), task.pop("compression", None)
    serializer, compression = app.wire_format(
        target.agent, message.serializer or task_serializer, message.compression or task_compression
    )
    if message.reference is not None:
        serializer, compression = REFERENCE_ENCODING
    headers: dict[str, Any] = {
        **options.headers,
        **envelope_headers(message, message.expires_at),
        RECOVERED_HEADER: lost.recoveries,
    }
    if options.call is not None:
        headers[REPLY_TO_HEADER] = options.call.to_header()
    app.amqp.send_task_message(
        producer,
        str(target),
        app.amqp.as_task_v2(
            message.message_id,
            str(target),
            *_arguments(lost),
            retries=lost.retries,
            root_id=message.conversation_id,
            parent_id=message.causation_id,
            argsrepr=shown_arguments(app),
            kwargsrepr=shown_arguments(app),
            ignore_result=ignore_result,
            create_sent_event=app.conf.task_send_sent_event,
            origin=anon_nodename(),
            **task,
        ),
        serializer=serializer,
        compression=compression,
        headers=headers,
        **routing_options(target, message, app.driver),
    )


def _arguments(lost: LostMessage) -> tuple[Any, Any]:
    """Return the positional and the keyword arguments of the task."""
    payload: Any = lost.message.payload
    if lost.message.reference is not None:
        return (lost.message.reference,), {}
    if takes_message(lost.handler):
        return (payload,), {}
    return (payload["args"], payload["kwargs"]) if lost.publish_options.positional else ((), payload)
