"""The door that all messages pass: the breaker, limits and the ledger stand before the broker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NoReturn

from amqp.exceptions import AMQPError
from kombu.exceptions import (  # type: ignore[attr-defined]  # its stubs are old
    BatchPublishError,
    LimitExceeded,
    OperationalError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.orm import Session

from waooaw_celery.app.composition import WiredCelery
from waooaw_celery.app.publish_batch import PublishBatch
from waooaw_celery.broker.redis.batch import BatchRefused
from waooaw_celery.errors import BlockingCall, BrokerUnavailable, InvalidMessage, StoreUnavailable, WaooawError
from waooaw_celery.ledger.outbox import Outbox
from waooaw_celery.limits.waiting import Wait
from waooaw_celery.messages.headers import threaded
from waooaw_celery.messages.message import Message, MessageStatus, MessageType
from waooaw_celery.messages.publish_options import PublishOptions, options_of_messages
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.messages.reply_to import ReplyTo
from waooaw_celery.wire.packer import PackedBody
from waooaw_celery.worker.current_task import current_message, current_task, is_sent_by_finished_handler
from waooaw_celery.worker.execution.event_loop import is_on_event_loop
from waooaw_celery.worker.record import MAX_ERROR

logger = logging.getLogger(__name__)

#: Messages that go to the ledger and to the broker together.
MAX_BATCH_SIZE = 1000


class Door(WiredCelery):
    """A Celery application whose messages are counted, written down and handed to the broker, in this order."""

    def send_messages(
        self,
        batch: Sequence[tuple[HandlerName, Message]],
        call: ReplyTo | None = None,
        wait: Wait = None,
        record: Message | None = None,
        session: Any = None,
    ) -> None:
        """Publish messages and requests: the door for those that come as messages and not as tasks.

        All of them pass their senders' limits, or none. Many at a time are written down with one statement, and
        handed to the broker in as few round trips as it takes.

        Args:
            batch: complete messages, whose handlers and times were checked.
            call: how the answers of requests are to come; None for one-way messages.
            wait: seconds for which a sender at its limit waits for its turn.
            record: the event that the messages tell subscribers of, who may be none; it counts as one message.
            session: a SQLAlchemy Session: they are written down in its transaction, and published when that is
                committed.

        Raises:
            RateLimitExceeded: a sender has sent as much as it may for now; nothing was published.
            InvalidMessage: one cannot be written in its format or breaks a cap, and nothing was published; or one
                was sent already.
            StoreUnavailable: they could not be written down.
            BrokerUnavailable: the broker failed.
                The ``message_ids`` of all three are those that it has confirmed.
        """
        if not batch and record is None:
            return
        # An answer, and what follows a handler's end, were accepted before: they are written down all the same.
        answers = all(message.message_type is MessageType.RESPONSE for _, message in batch)
        if session is None and not answers and not is_sent_by_finished_handler():
            self.circuit_breaker.check()
        hand_over = PublishBatch(
            self, self.driver, call, self.result_collector.reply_to if call is not None else None
        )
        bodies = hand_over.pack(batch) if batch else []
        told = [message for _, message in batch if message.event is None or not message.event.replay]
        self._admit(told if record is None else [record], wait)
        if session is not None:
            self.outbox.entrust(batch, session)
            return
        if not batch:
            self._begin_record([], record)()
        for start in range(0, len(batch), MAX_BATCH_SIZE):
            part = slice(start, start + MAX_BATCH_SIZE)
            try:
                self._send_batch(hand_over, batch[part], bodies[part], None if start else record)
            except WaooawError as error:
                error.message_ids = (*(message.message_id for _, message in batch[:start]), *error.message_ids)
                raise

    @cached_property
    def outbox(self) -> Outbox:
        """What writes messages down in transactions of others.

        Raises:
            ConfigurationError: there is no ledger.
        """
        return Outbox(self.ledger, self.publish_written)

    def relay(self, session: Session) -> None:
        """Publish what was entrusted to a session whose transaction was committed."""
        if self._database is not None:
            self.outbox.relay(session)

    def publish_written(self, batch: Sequence[tuple[HandlerName, Message]]) -> None:
        """Publish messages that are in the ledger already, such as those of a transaction that was committed.

        Raises:
            BrokerUnavailable: the broker failed; they stay PENDING.
        """
        self.circuit_breaker.check()
        hand_over = PublishBatch(self, self.driver)
        for start in range(0, len(batch), MAX_BATCH_SIZE):
            part = batch[start : start + MAX_BATCH_SIZE]
            self._send_batch(hand_over, part, hand_over.pack(part), None, is_written=True)

    def complete(self, target: HandlerName, message: Message) -> Message:
        """Fill in what the sender left open: the ids of its thread, how long it is kept, when it is sent.

        Without a ledger nothing is kept, and the envelope does not say so.
        """
        kept = None if self._database is None else message.retention or self.settings.retention
        sent_at = self.reference_clock.corrected(message.sent_at)
        return threaded(target, message, current_message(), kept, sent_at)

    def _send_batch(
        self,
        hand_over: PublishBatch,
        batch: Sequence[tuple[HandlerName, Message]],
        bodies: Sequence[PackedBody],
        record: Message | None,
        *,
        is_written: bool = False,
    ) -> None:
        published: list[Message] = []
        written = (lambda: {message.message_id for _, message in batch}) if is_written else None
        try:
            with self.circuit_breaker.watching(), self.producer_or_acquire() as producer:
                note = self._publish_messages(producer, hand_over, batch, bodies, published, record, written)
        except BrokerUnavailable:  # all of them were refused
            raise
        except (OperationalError, AMQPError, BatchPublishError, RedisConnectionError) as error:
            if isinstance(error.__cause__, LimitExceeded):
                failure = self._no_connection(error.__cause__)
                failure.uncertain = False
                raise failure from error
            self._note_sent(published)
            missing = [message for _, message in batch[len(published) :]]
            failure = BrokerUnavailable(
                f"{len(missing)} of {len(batch)} messages, the first of them {missing[0].message_id} to "
                f"{missing[0].to_agent!r}, were not confirmed by the broker: {error.__cause__ or error}"
            )
            failure.message_ids = tuple(message.message_id for message in published)
            raise failure from error
        self._note_sent(published, note)

    def _publish_messages(
        self,
        producer: Any,
        hand_over: PublishBatch,
        batch: Sequence[tuple[HandlerName, Message]],
        bodies: Sequence[PackedBody],
        published: list[Message],
        record: Message | None,
        written: Callable[[], set[str]] | None = None,
    ) -> Callable[[], None] | None:
        """Have messages written down and made ready at the same time, and hand them over when they are written.

        Returns:
            What notes that the broker has them, when it was made ready meanwhile.
        """
        accepted = written is not None or record is not None or is_sent_by_finished_handler()
        written = written or self._begin_record(batch, record, hand_over.call)
        notes: list[Callable[[], None]] = []

        def when_ready() -> None:
            notes.append(self.receipts.sent([message for _, message in batch]))
            self._check_new(batch, written())

        try:
            hand_over.declare(producer, batch)
            if hand_over.all_or_none(producer, batch, bodies, when_ready):
                published.extend(message for _, message in batch)
                return notes[0]
        except BatchRefused as error:
            self._refuse([message for _, message in batch], written(), accepted, error)
        except BatchPublishError as error:
            # A connection that had died meanwhile is found out here; what Celery does then is to publish again.
            if len(batch) > 1 or isinstance(error.__cause__, RedisTimeoutError):
                raise
        finally:
            new = written()  # nothing is left on its way
        self._check_new(batch, new)
        for target, message in batch:
            hand_over.one(producer, target, message)
            published.append(message)
        return None

    def _admit(self, messages: Sequence[Message], wait: Wait) -> None:
        """Count messages, or refuse them; not answers, and not what Celery sends on when a handler has ended.

        Both were accepted with what they answer or go on from, such as the first step of a chain: refused here,
        they would be lost.
        """
        if wait and is_on_event_loop():
            raise BlockingCall(
                "waiting for a turn would stop every coroutine of this process: in an async def handler, await "
                "agent.aio.send(..., wait=...) or waooaw_celery.agents.aio.MessageBus"
            )
        if self.gate is not None and not is_sent_by_finished_handler():
            counted = [message for message in messages if message.message_type is not MessageType.RESPONSE]
            if counted:
                self.gate.admit(counted, wait)

    def _begin_record(
        self,
        batch: Sequence[tuple[HandlerName, Message]],
        record: Message | None = None,
        call: ReplyTo | None = None,
        besides: PublishOptions | None = None,
    ) -> Callable[[], set[str]]:
        if besides is None:
            remembered = options_of_messages((message for _, message in batch), call)
        else:
            remembered = {batch[0][1].message_id: besides}
        messages = [(message, target.handler) for target, message in batch]
        # What was accepted with another message is written down all the same, where it is safe for a while.
        follows = is_sent_by_finished_handler() or all(
            message.message_type is MessageType.RESPONSE for _, message in batch
        )
        return self.receipts.pending(messages, record, remembered, follows=bool(batch) and follows)

    def _check_new(self, batch: Sequence[tuple[HandlerName, Message]], new: set[str]) -> None:
        """Check that the broker cannot have any of the messages that were written down before.

        Raises:
            InvalidMessage: it may; those that are new are withdrawn, since none is published.
        """
        for _, message in batch:
            if message.message_id not in new:
                try:
                    self._check_resending(message)
                except InvalidMessage as error:
                    self._withdraw([each for _, each in batch if each.message_id in new], error)
                    raise

    def _check_resending(self, message: Message) -> None:
        """Let a message be sent again only when the broker may not have it, or its own handler replaces it."""
        task = current_task()
        if task is not None and task.request.id == message.message_id:
            return
        status = self.receipts.get(message.message_id).status
        if status is not MessageStatus.PENDING:
            raise InvalidMessage(
                f"message {message.message_id} was sent already and is {status}: "
                "to say the same again, send a new Message"
            )

    def _withdraw(self, messages: Sequence[Message], error: Exception) -> None:
        """End messages that were written down and are not published: a recovery would publish them otherwise."""
        sentence = f"not published: {error}"[:MAX_ERROR]
        if messages:
            about: dict[str, Any] = {"event": MessageEvent.FAILED, "error": sentence}
            self.receipts.note(
                *(MessageFact(message_id=each.message_id, message=each, **about) for each in messages)
            )

    def _refuse(self, messages: Sequence[Message], new: set[str], accepted: bool, error: Exception) -> NoReturn:
        """End messages that the broker refused, all of them, unless it may have one or recovery is to publish it.

        Args:
            messages: the messages.
            new: ids of those that were written down for this call: the broker cannot have them from another one.
            accepted: whether they belong to what was accepted: an outbox, an event, the end of a handler.
            error: the refusal.

        Raises:
            BrokerUnavailable: always.
        """
        failure = BrokerUnavailable(f"{len(messages)} messages were not published: {error}")
        answers = any(message.message_type is MessageType.RESPONSE for message in messages)
        if not accepted and not answers and all(message.message_id in new for message in messages):
            try:
                self._withdraw(messages, error)
            except StoreUnavailable as away:  # recovery may find them, and publish them
                logger.warning(
                    "refused messages stay PENDING: %s", away, extra={"action": "receipt_stays_pending"}
                )
            else:
                failure.uncertain = False
        raise failure from error

    def _note_sent(self, messages: Sequence[Message], note: Callable[[], None] | None = None) -> None:
        """Note that the broker has messages, with what was made ready for that when there was time."""
        if not messages:
            return
        try:
            (note or self.receipts.sent(messages))()
        except StoreUnavailable as error:  # they are published: to say that it failed would be wrong
            logger.warning("%s; a receipt stays PENDING", error, extra={"action": "receipt_stays_pending"})

    def _no_connection(self, limit: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"all {limit} connections to the broker were in use for {self.conf.broker_pool_acquire_timeout:g} s: "
            "does it answer slowly, or is broker_pool_limit lower than the number of threads that send?"
        )
