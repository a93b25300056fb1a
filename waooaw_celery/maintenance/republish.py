"""How a lost message is published again: as it was, under the same id."""

from __future__ import annotations

from typing import Any

from celery.utils.nodenames import anon_nodename

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.publication import HIDDEN_ARGUMENTS, envelope_headers, routing_options
from waooaw_celery.ledger.read.lost import LostMessage
from waooaw_celery.messages.publish_options import RECOVERED_HEADER
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER


def republish(app: AgentApp, producer: Any, lost: LostMessage) -> None:
    """Publish a lost message, past limits and without writing it down once more.

    Not by ``send_task``: what is published from within a task is taken for the task's own.

    Args:
        app: whose broker carries it.
        producer: over which to publish.
        lost: what to publish.
    """
    message, besides = lost.message, lost.besides
    target = HandlerName(message.to_agent, lost.handler)
    task = dict(besides.task)
    one_way = takes_message(target.handler) or besides.call is not None  # whose answer comes as a message
    ignored = bool(task.pop("ignore_result", False)) or one_way
    chosen = task.pop("serializer", None), task.pop("compression", None)
    serializer, compression = app.wire_format(
        target.agent, message.serializer or chosen[0], message.compression or chosen[1]
    )
    headers: dict[str, Any] = {
        **besides.headers,
        **envelope_headers(message, message.expires_at),
        RECOVERED_HEADER: lost.recoveries,
    }
    if besides.call is not None:
        headers[REPLY_TO_HEADER] = besides.call.to_header()
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
            argsrepr=HIDDEN_ARGUMENTS,
            kwargsrepr=HIDDEN_ARGUMENTS,
            ignore_result=ignored,
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
    payload: Any = lost.message.payload
    if takes_message(lost.handler):
        return (payload,), {}
    return (payload["args"], payload["kwargs"]) if lost.besides.positional else ((), payload)
