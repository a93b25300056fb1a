"""Celery's consumer, in which nothing that arrives ends a worker, and nothing dies without a letter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import signals
from celery.worker.consumer import Consumer

from waooaw_celery.broker.dead_letters.dead_letter import CALLBACK_FIELDS, FOREIGN_CALLBACKS, printable
from waooaw_celery.broker.incoming.delivery import as_item
from waooaw_celery.broker.incoming.guard import check_old_task, check_task_body, check_task_headers, uncheckable
from waooaw_celery.broker.redis.dead_lettering import dead_letter
from waooaw_celery.errors import BrokerUnavailable, DecodingFailed
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)

#: Seconds between two attempts to keep a dead letter; meanwhile its message is not acknowledged.
PAUSE = 5.0


class AgentConsumer(Consumer):
    """Receives the messages of a worker.

    What cannot be read, is no task, or has no handler here becomes a dead letter: it is acknowledged when the
    letter is safe. (On Redis this package's transport has looked at each message before.)
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return what takes a message: Celery's, of those that it can take."""
        take = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            try:
                self._check(message)
            except DecodingFailed as error:
                return self._bury(message, str(error))
            except Exception as error:  # noqa: BLE001 - a check that fails is a verdict too, never the worker's end
                return self._bury(message, str(uncheckable(error)), error)
            return take(message)

        return on_task_received

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Make a dead letter of a message that cannot be unpacked or decoded.

        Celery would acknowledge it, and write its body to the log.
        """
        self._bury(message, str(exc), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Make a dead letter of what is no task."""
        self._bury(message, "it is no task")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Make a dead letter of what Celery can make no task of."""
        self._bury(message, str(exc), exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Any) -> None:
        """Make a dead letter of a message for which there is no handler; who waits for the answer is told."""
        name = _headers(message).get("task") or exc.args[0]
        tell = partial(super().on_unknown_task, body, message, exc)
        self._bury(message, f"the worker has no handler {name!r:.300}", exc, tell)

    def _check(self, message: Any) -> None:
        """Check what Celery takes for granted.

        Raises:
            DecodingFailed: something is not as it should be.
        """
        headers, guarded = _headers(message), getattr(message, "guarded", False)
        if "task" not in headers:
            said = _decoded(message)
            check_old_task(said)
            name, asked = said["task"], said
        else:
            if not guarded:
                check_task_headers(headers)
            name = headers["task"]
            if guarded and (ENVELOPE_HEADER in headers or not isinstance(self.app.tasks.get(name), AgentTask)):
                return
            said = _decoded(message)
            check_task_body(said)
            asked = said[2] or {}
        foreign = ENVELOPE_HEADER not in headers and isinstance(self.app.tasks.get(name), AgentTask)
        if foreign and any(asked.get(part) for part in CALLBACK_FIELDS):
            raise DecodingFailed(FOREIGN_CALLBACKS)

    def _bury(
        self,
        message: Any,
        reason: str,
        error: BaseException | None = None,
        tell: Callable[[], None] | None = None,
    ) -> None:
        """Keep a message as a dead letter, and acknowledge it; when the broker does not take it, again later."""
        claim = getattr(getattr(message, "_raw", None), "claim", None)
        reason = printable(reason)  # it may quote what arrived, and is to be one line of the log
        try:
            if claim is not None:
                channel = message.channel
                dead_letter(
                    *(channel, channel.scripts_client, claim.tag, claim.queue, claim.raw, reason),
                    worker=self.hostname,
                )
            else:
                queue = self._queue_of(message)
                app: Any = self.app  # an AgentApp
                app.dead_letters.bury(queue, reason, _item(message), self.hostname)
        except BrokerUnavailable as away:
            logger.warning(
                "a message is kept unacknowledged until there is a dead letter of it: %s",
                away,
                extra={"action": "letter_waits"},
            )
            again = partial(self._bury, message, reason, error, tell)
            self.timer.call_after(PAUSE, self.call_soon, (again,))
            return
        errors: Any = self.connection_errors  # type: ignore[attr-defined]  # newer than its stubs
        if tell is not None:
            self._tell(message, tell, errors)
            return
        message.ack_log_error(logger, errors)
        signals.task_rejected.send(sender=self, message=message, exc=error)

    def _tell(self, message: Any, tell: Callable[[], None], errors: Any) -> None:
        """Have Celery reject a message and tell its caller; when that fails, the letter is kept all the same."""
        try:
            tell()
        except Exception:
            logger.exception(
                "the caller of a message that became a dead letter is not told: the result backend failed",
                extra={"action": "caller_not_told"},
            )
            if not message.acknowledged:
                message.ack_log_error(logger, errors)

    def _queue_of(self, message: Any) -> str:
        """Return the queue from which a message came: an exchange of a project's own may have brought it there."""
        consumed = list(self.app.amqp.queues.consume_from)
        routing_key = str((message.delivery_info or {}).get("routing_key", ""))
        return routing_key if routing_key in consumed or len(consumed) != 1 else str(consumed[0])


def _headers(message: Any) -> Any:
    return message.headers if isinstance(message.headers, dict) else {}


def _decoded(message: Any) -> Any:
    try:
        return message.decode()
    except Exception as error:  # a decoder that Kombu knows may raise anything
        raise DecodingFailed(f"its body cannot be decoded: {error!r:.200}") from error


def _item(message: Any) -> bytes:
    """Return a message in the form in which messages travel on Redis, as it came, as far as that is known."""
    item = getattr(message, "item", None)
    if isinstance(item, bytes):
        return item
    way = message.content_type, message.content_encoding
    return as_item(
        message.body, *way, message.headers, {**message.properties, "delivery_info": message.delivery_info}
    )
