"""Celery's consumer, made safe: no message ends the worker, and none is discarded without a dead letter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import signals
from celery.worker.consumer import Consumer

from waooaw_celery.broker.dead_letters.dead_letter import CALLBACK_FIELDS, FOREIGN_CALLBACKS, printable
from waooaw_celery.broker.incoming.delivery import to_redis_item
from waooaw_celery.broker.incoming.guard import (
    check_failed,
    check_protocol_1_task,
    check_task_body,
    check_task_headers,
)
from waooaw_celery.broker.redis.dead_lettering import dead_letter
from waooaw_celery.errors import BrokerUnavailable, DecodingFailed
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)

#: Seconds between two attempts to keep a dead letter. Its message stays unacknowledged meanwhile.
RETRY_SECONDS = 5.0


class AgentConsumer(Consumer):
    """Receives the messages of a worker.

    A message that cannot be read, is no task, or has no handler here becomes a dead letter. The message is
    acknowledged when the dead letter is stored. On Redis, the transport of this package has checked it before.
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return the function that receives each message."""
        return partial(self.consume, super().create_task_handler(*args, **kwargs))

    def consume(self, receive: Callable[[Any], Any], message: Any) -> Any:
        """Check a message, and give it to Celery or make a dead letter of it.

        Args:
            receive: Celery's function that makes a request of a message and gives it to the pool.
            message: what Kombu delivers.
        """
        try:
            self._check(message)
        except DecodingFailed as error:
            return self._dead_letter(message, str(error))
        except Exception as error:  # noqa: BLE001 - a message that makes a check fail must not end the worker
            return self._dead_letter(message, str(check_failed(error)), error)
        return receive(message)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Make a dead letter of a message that cannot be decompressed or decoded.

        Celery would acknowledge it, and write its body to the log.
        """
        self._dead_letter(message, str(exc), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Make a dead letter of a message that is no task."""
        self._dead_letter(message, "it is no task")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Make a dead letter of a message of which Celery cannot make a request."""
        self._dead_letter(message, str(exc), exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Any) -> None:
        """Make a dead letter of a message that has no handler here, and send the error to its caller."""
        name = _headers(message).get("task") or exc.args[0]
        reject = partial(super().on_unknown_task, body, message, exc)
        self._dead_letter(message, f"the worker has no handler {name!r:.300}", exc, reject)

    def _check(self, message: Any) -> None:
        """Check what Celery takes for granted.

        Raises:
            DecodingFailed: the message is not a valid task.
        """
        headers, guarded = _headers(message), getattr(message, "guarded", False)
        if "task" not in headers:
            body = _decoded(message)
            check_protocol_1_task(body)
            name, callbacks = body["task"], body
        else:
            if not guarded:
                check_task_headers(headers)
            name = headers["task"]
            if guarded and (ENVELOPE_HEADER in headers or not isinstance(self.app.tasks.get(name), AgentTask)):
                return
            body = _decoded(message)
            check_task_body(body)
            callbacks = body[2] or {}
        foreign = ENVELOPE_HEADER not in headers and isinstance(self.app.tasks.get(name), AgentTask)
        if foreign and any(callbacks.get(part) for part in CALLBACK_FIELDS):
            raise DecodingFailed(FOREIGN_CALLBACKS)

    def _dead_letter(
        self,
        message: Any,
        reason: str,
        error: BaseException | None = None,
        reject: Callable[[], None] | None = None,
    ) -> None:
        """Make a dead letter of a message, and acknowledge it; retry while the broker does not accept it.

        Args:
            message: what Kombu delivered.
            reason: why it cannot be handled.
            error: the exception that says so.
            reject: has Celery reject the message and store the error for its caller; None: there is no caller.
        """
        reason = printable(reason)  # it may quote the message, and must be one line of the log
        try:
            self._store(message, reason)
        except BrokerUnavailable as away:
            logger.warning(
                "a message stays unacknowledged until its dead letter is stored: %s",
                away,
                extra={"action": "letter_waits"},
            )
            again = partial(self._dead_letter, message, reason, error, reject)
            self.timer.call_after(RETRY_SECONDS, self.call_soon, (again,))
            return
        errors: Any = self.connection_errors  # type: ignore[attr-defined]  # newer than its stubs
        if reject is not None:
            self._reject(message, reject, errors)
            return
        message.ack_log_error(logger, errors)
        signals.task_rejected.send(sender=self, message=message, exc=error)

    def _store(self, message: Any, reason: str) -> None:
        """Store a dead letter.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        claim = getattr(getattr(message, "_raw", None), "claim", None)
        if claim is None:
            app: Any = self.app  # an AgentApp
            app.dead_letters.bury(self._queue_of(message), reason, _item(message), self.hostname)
            return
        channel = message.channel
        dead_letter(
            *(channel, channel.scripts_client, claim.tag, claim.queue, claim.raw, reason),
            worker=self.hostname,
        )

    def _reject(self, message: Any, reject: Callable[[], None], errors: Any) -> None:
        """Have Celery reject a message and store the error; the dead letter is kept if that fails."""
        try:
            reject()
        except Exception:
            logger.exception(
                "the caller of a message that became a dead letter gets no answer: the result backend failed",
                extra={"action": "caller_not_told"},
            )
            if not message.acknowledged:
                message.ack_log_error(logger, errors)

    def _queue_of(self, message: Any) -> str:
        """Return the queue of a message. Its routing key may differ where a project has its own exchange."""
        consumed = list(self.app.amqp.queues.consume_from)
        routing_key = str((message.delivery_info or {}).get("routing_key", ""))
        return routing_key if routing_key in consumed or len(consumed) != 1 else str(consumed[0])


def _headers(message: Any) -> Any:
    return message.headers if isinstance(message.headers, dict) else {}


def _decoded(message: Any) -> Any:
    try:
        return message.decode()
    except Exception as error:  # a decoder registered with Kombu may raise anything
        raise DecodingFailed(f"its body cannot be decoded: {error!r:.200}") from error


def _item(message: Any) -> bytes:
    """Return a message in the form that messages have on Redis, unchanged where that is known."""
    item = getattr(message, "item", None)
    if isinstance(item, bytes):
        return item
    encoding = message.content_type, message.content_encoding
    return to_redis_item(
        message.body, *encoding, message.headers, {**message.properties, "delivery_info": message.delivery_info}
    )
