"""Celery's consumer, made safe: no message ends the worker, and none is discarded without a dead letter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from celery import signals
from celery.worker.consumer import Consumer

from waooaw_celery.broker.dead_letters.dead_letter import CALLBACK_FIELDS, FOREIGN_CALLBACKS
from waooaw_celery.broker.incoming.delivery import to_redis_item
from waooaw_celery.broker.incoming.guard import (
    check_failed,
    check_protocol_1_task,
    check_task_body,
    check_task_headers,
)
from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.broker.redis.dead_lettering import dead_letter
from waooaw_celery.broker.redis.leases.restore import withdraw_delivery
from waooaw_celery.broker.redis.leases.worker_requests import is_ending
from waooaw_celery.errors import BrokerUnavailable, DecodingFailed
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.store.redis_refusals import refusal_in, remedy
from waooaw_celery.worker.batches.collector import Batches
from waooaw_celery.worker.hand_back.hand_back import HandBack
from waooaw_celery.worker.health.ledgers import is_expired, reason_to_refuse
from waooaw_celery.worker.ordering.message_groups import MessageGroups
from waooaw_celery.worker.outcomes.acknowledged_outcomes import install
from waooaw_celery.worker.task import AgentTask

logger = get_logger(__name__)

#: Seconds between two attempts to keep a dead letter. Its message stays unacknowledged meanwhile.
RETRY_SECONDS = 5.0
#: Seconds for which a message that another ledger records is held before it goes back to its queue, and how many
#: of them a worker holds beside its other messages.
HOLD_SECONDS, MAX_HELD = 3.0, 100


class AgentConsumer(Consumer):
    """Receives the messages of a worker.

    A message that cannot be read, is no task, or has no handler becomes a dead letter. The message is acknowledged
    when the dead letter is stored. On Redis, the transport of this package has checked it before.
    """

    #: The thread of the event loop, if that acknowledges messages at once.
    _acknowledging_thread: int | None = None

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return the function that receives each message."""
        install(self)
        self.groups.install(self)
        self.batches.open()
        worker: Any = self  # its stubs lack these attributes
        # This package's channel for Redis only notes an acknowledgement, for the next claim.
        only_notes = worker.hub is not None and isinstance(worker.task_consumer.channel, Channel)
        if only_notes or worker.connection.transport.driver_type == "amqp":
            self._acknowledging_thread = threading.get_ident()
        return partial(self.consume, super().create_task_handler(*args, **kwargs))

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge or reject a message: at once, if this is the thread of the event loop.

        Celery does it in the next turn of the loop. Kombu also reads messages just before a turn waits for events.
        Then RabbitMQ waits for the acknowledgement before it sends the next message, and the loop waits for that
        message before it acknowledges, until one of its timers wakes it. On Redis, an acknowledgement travels with
        the next claim either way, and to wait for the next turn would only cost time.

        Args:
            p: acknowledges or rejects the message.
            args, kwargs: its arguments.
        """
        # The end of a worker interrupts a handler, and Celery acknowledges its message in a turn that never comes.
        if is_ending() or threading.get_ident() != self._acknowledging_thread:
            done = super().call_soon_ack(p, *args, **kwargs)  # type: ignore[misc]  # newer than its stubs
            self.groups.wake()
            return done
        try:
            p(*args, **kwargs)
        except Exception:
            logger.exception("a message could not be acknowledged", extra={"action": "not_acknowledged"})
        self.groups.wake()
        return p

    def consume(self, receive: Callable[[Any], Any], message: Any) -> Any:
        """Check a message, and give it to Celery or make a dead letter of it.

        Args:
            receive: Celery's function that makes a request of a message and gives it to the pool.
            message: what Kombu delivers.
        """
        try:
            self._check(message)
            self.groups.check(_headers(message), message)
        except DecodingFailed as error:
            return self._dead_letter(message, str(error))
        except Exception as error:  # noqa: BLE001 - a message that makes a check fail must not end the worker
            return self._dead_letter(message, str(check_failed(error)), error)
        refusal = reason_to_refuse(self.app, _headers(message))
        if refusal is not None:
            return self._refuse(message, refusal)
        return self.groups.receive(message, receive, self._requeue)

    def apply_eta_task(self, task: Any) -> None:
        """Give a delayed message that is due to the pool, or back to its queue, where its key has an order."""
        if self.groups.returns_when_due(task):
            self.qos.decrement_eventually()  # type: ignore[attr-defined]
        elif not self.groups.waits_when_due(task, partial(super().apply_eta_task, task)):
            super().apply_eta_task(task)

    def _limit_post_eta(self, request: Any, bucket: Any, tokens: int) -> None:
        """Do the same for a handler with Celery's rate limit."""
        go = partial(super()._limit_post_eta, request, bucket, tokens)  # type: ignore[misc]
        if not self.groups.waits_when_due(request, go):
            go()

    def _requeue(self, message: Any) -> None:
        """Put a message back into its queue."""
        errors: Any = self.connection_errors  # type: ignore[attr-defined]
        message.reject_log_error(logger, errors, requeue=True)
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def add_task_queue(  # type: ignore[override]  # its stubs promise a result; Celery returns none
        self, queue: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Begin to consume a queue; try again while the broker does not answer.

        Celery calls it from its event loop or from a remote command, and gives up after the first error: the
        worker would live and never consume the queue.

        Args:
            queue: name of the queue.
            args: further arguments of Celery's method.
            kwargs: further arguments of Celery's method.
        """
        errors: Any = (*self.connection_errors, *self.channel_errors)  # type: ignore[attr-defined]
        try:
            super().add_task_queue(queue, *args, **kwargs)
        except errors as error:
            logger.warning(
                "the queue %s cannot be consumed yet; next attempt in %g s: %s",
                queue,
                RETRY_SECONDS,
                error,
                extra={"action": "consume_failed"},
            )

            def again() -> None:
                if queue in self.app.amqp.queues.consume_from:  # or else it was cancelled meanwhile
                    self.add_task_queue(queue, *args, **kwargs)

            self.timer.call_after(RETRY_SECONDS, self.call_soon, (again,))

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """Return the connection over which Celery's own events are published: without publisher confirms.

        With gevent and eventlet, one greenlet sends heartbeats while another reads the same connection: Celery
        looks there for its end. If both read, the connection breaks, and all running messages are delivered again.
        """
        options = {"confirm_publish": False}
        connection = self.app.connection_for_write(url=url, heartbeat=heartbeat, transport_options=options)
        return self.ensure_connected(connection)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Prepare to connect again; pause first when the broker refused a command.

        A broker that refuses answers at once: Celery would connect again many times a second, and log each time.
        """
        super().on_connection_error_after_connected(exc)
        refusal = refusal_in(exc)
        if refusal is None:
            return
        logger.error(
            "the broker refuses what this worker needs, the next attempt is in %g s: %s",
            RETRY_SECONDS,
            remedy(refusal) or refusal,
            extra={"action": "broker_refuses"},
        )
        ends_at = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < ends_at and not is_ending():
            time.sleep(0.1)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Make a dead letter of a message that cannot be decompressed or decoded.

        Celery would acknowledge it, and write its body to the log.
        """
        self._dead_letter(message, str(exc), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Make a dead letter of a message that is no task."""
        self._dead_letter(message, "it is not a task")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Make a dead letter of a message of which Celery cannot make a request."""
        withdraw_delivery(message.channel, _claim_of(message))
        self._dead_letter(message, str(exc), exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Any) -> None:
        """Hand back a message whose handler only another worker has.

        If none has it, make a dead letter of the message, and send the error to its caller.
        """
        withdraw_delivery(message.channel, _claim_of(message))
        reject = partial(super().on_unknown_task, body, message, exc)
        give_up = partial(self._dead_letter, message, error=exc, reject=reject)
        self._hand_back.take(message, exc.args[0], self._queue_of(message), give_up)

    @cached_property
    def batches(self) -> Batches:
        """The batches that are being collected."""
        return Batches(self)

    @cached_property
    def groups(self) -> MessageGroups:
        """The keys of the messages, and how these are grouped by sender."""
        return MessageGroups(self.app)

    @cached_property
    def _hand_back(self) -> HandBack:
        return HandBack(self)

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

    def _refuse(self, message: Any, reason: str) -> None:
        """Give a message that another ledger records back to its queue, after a while.

        Meanwhile the worker takes other messages: one such message must not end its work.
        """
        app: Any = self.app  # an AgentApp
        withdraw_delivery(message.channel, _claim_of(message))
        queue, id_ = self._queue_of(message), _headers(message).get("id")
        errors: Any = self.connection_errors  # type: ignore[attr-defined]  # newer than its stubs
        if app.intake.refuse(queue, reason):
            logger.critical(
                "this worker leaves message %s, and others like it, in the queue %s: %s",
                id_,
                queue,
                reason,
                extra={"action": "ledger_refused", "queue": queue, "message_id": id_},
            )
        if is_expired(app, _headers(message)):  # its ledger's sweep records that
            message.ack_log_error(logger, errors)
            signals.task_rejected.send(sender=self, message=message, exc=None)
            return
        qos: Any = self.qos  # type: ignore[attr-defined]
        has_room = qos.value < self.initial_prefetch_count + MAX_HELD  # type: ignore[attr-defined]
        if has_room:  # as for a message that is not due yet
            qos.increment_eventually()

        def give_back() -> None:
            if has_room:
                qos.decrement_eventually()
            message.reject_log_error(logger, errors, requeue=True)
            signals.task_rejected.send(sender=self, message=message, exc=None)

        self.timer.call_after(HOLD_SECONDS, self.call_soon, (give_back,))

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
        reason = escaped(reason)  # it may quote the message, and must be one line of the log
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
        claim = _claim_of(message)
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
                "a request became a dead letter, and its caller gets no answer: the result backend failed",
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


def _claim_of(message: Any) -> Any:
    return getattr(getattr(message, "_raw", None), "claim", None)


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
