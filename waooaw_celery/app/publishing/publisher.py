"""The publishing pipeline: every message to an agent is checked, admitted, recorded, published and noted as sent.

Two entrances lead into it: ``publish`` for messages and requests, ``publish_task`` for Celery tasks (``.delay``,
``apply_async``, ``send_task``, canvas, beat).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from amqp.exceptions import AMQPError, ChannelError, IrrecoverableConnectionError
from celery.result import AsyncResult
from kombu.exceptions import (  # type: ignore[attr-defined]  # its stubs are old
    BatchPublishError,
    EncodeError,
    LimitExceeded,
    OperationalError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from waooaw_celery.app.publishing.already_sent import check_not_sent_before, is_sent, was_sent_by_earlier_attempt
from waooaw_celery.app.publishing.brokers.redis import RedisSend
from waooaw_celery.app.publishing.publication import Batch, Publication, ids_of
from waooaw_celery.app.publishing.publish_batch import PublishBatch
from waooaw_celery.app.publishing.publish_failures import no_connection, not_confirmed, refuse, withdraw
from waooaw_celery.app.publishing.publisher_parts import PublisherParts
from waooaw_celery.app.publishing.task_publication import TaskPublication
from waooaw_celery.broker.amqp.batch import PartlyPublished
from waooaw_celery.broker.redis.batch import BatchRefused
from waooaw_celery.errors import (
    BlockingCall,
    BrokerUnavailable,
    InvalidMessage,
    StoreUnavailable,
    WaooawError,
)
from waooaw_celery.limits.admission_control import CountAndSend
from waooaw_celery.limits.rules import Demand
from waooaw_celery.limits.waiting import Wait
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.reply_to import ReplyTo
from waooaw_celery.monitoring.metrics.measured_send import MeasuredSend
from waooaw_celery.monitoring.metrics.process_metrics import process_metrics
from waooaw_celery.monitoring.tracing.sending import SendingSpan, is_traced
from waooaw_celery.store.redis_refusals import refusal_in
from waooaw_celery.worker.current_task import is_sent_by_finished_handler
from waooaw_celery.worker.execution.event_loop import is_on_event_loop

logger = get_logger(__name__)

#: What the clients of brokers raise.
BROKER_ERRORS = (OperationalError, AMQPError, BatchPublishError, RedisConnectionError, ResponseError)
#: The causes of a failure after which one message is not published again: the broker may read it later, or it has
#: no queue for it.
NOT_REPEATED = (RedisTimeoutError, IrrecoverableConnectionError, ChannelError)
#: Messages that are recorded and published together.
MAX_BATCH_SIZE = 1000


class Publisher:
    """Publishes messages: check, admit, record, hand to the broker, note.

    Args:
        app: the application, an AgentApp, whose Celery publishes.
        components: the parts that a publish passes.
    """

    def __init__(self, app: Any, components: PublisherParts) -> None:
        self._app, self._components = app, components
        self._redis_send = RedisSend(app, components)
        self._warned_of_eager = False

    def publish(
        self,
        batch: Batch,
        reply_to: ReplyTo | None = None,
        wait: Wait = None,
        record: Message | None = None,
        session: Any = None,
    ) -> None:
        """Publish messages or requests.

        All of them pass their senders' rate limits, or none does.

        Args:
            batch: complete messages, whose handlers and times were checked, each with its handler.
            reply_to: how the answers of requests arrive; None for one-way messages.
            wait: seconds to wait at the sender's rate limit.
            record: the event that the messages deliver to its subscribers, of which there may be none. It counts
                as one message.
            session: a SQLAlchemy Session: the messages are recorded in its transaction, and published when that is
                committed.

        Raises:
            RateLimitExceeded: a sender has reached its rate limit; nothing was published.
            InvalidMessage: a message cannot be written in its format, exceeds a cap, or was sent already.
            StoreUnavailable: the messages could not be recorded.
            BrokerUnavailable: the broker failed. The error's ``message_ids`` are the messages that the broker has
                confirmed.
        """
        if not self._warned_of_eager and self._components.publish_settings.read().always_eager:
            self._warn_of_eager()
        if batch or record is not None:
            self._publish(PublishBatch(self._app, batch, reply_to), wait, record, session)

    def publish_task(self, task: TaskPublication, wait: Wait = None) -> AsyncResult[Any]:
        """Publish a Celery task that is an agent's handler.

        Args:
            task: the task, whose message is complete.
            wait: seconds to wait at the sender's rate limit.

        Returns:
            Celery's AsyncResult.

        Raises:
            WaooawError: as ``AgentApp.send_task``.
        """
        [(target, message)] = task.batch
        if was_sent_by_earlier_attempt(self._components.receipts, message.message_id):
            return AsyncResult(message.message_id, app=self._app)
        self._components.registry.check_handler(target)
        try:
            self._publish(task, wait)
        except InvalidMessage as error:
            if not (is_sent_by_finished_handler() and is_sent(self._components.receipts, message.message_id)):
                raise
            # Two workers had the same message at once, and one of them has sent what follows it.
            logger.info("%s", error, extra={"action": "sent_on_before", "message_id": message.message_id})
            return AsyncResult(message.message_id, app=self._app)
        return task.sent()

    def publish_retry(self, task: TaskPublication) -> AsyncResult[Any]:
        """Publish a retry: its first attempt was checked, admitted and recorded.

        Returns:
            Celery's AsyncResult.

        Raises:
            BrokerUnavailable: the broker did not confirm it.
        """
        with self._broker_errors(task, []):
            task.publish_one(None, *task.batch[0])
        return task.sent()

    def publish_recorded(self, batch: Batch) -> None:
        """Publish messages that are in the ledger already, such as those of a committed transaction.

        Raises:
            BrokerUnavailable: the broker failed; the messages stay PENDING.
        """
        self._components.circuit_breaker.check()
        for part in PublishBatch(self._app, batch).parts(MAX_BATCH_SIZE):
            self._record_and_publish(part, is_recorded=True, is_follow_up=is_sent_by_finished_handler())

    def record(self, publication: Publication, event: Message | None = None) -> Callable[[], set[str]]:
        """Begin to record messages, and the event that they deliver.

        Returns:
            A function that waits until they are recorded, and returns the ids of those that are new. It raises
            StoreUnavailable when they could not be recorded.
        """
        messages = [(message, target.handler) for target, message in publication.batch]
        # The end of a handler and an answer were accepted with their message: they are recorded in the spool when
        # the ledger is unavailable.
        is_follow_up = bool(messages) and (
            is_sent_by_finished_handler()
            or all(message.message_type is MessageType.RESPONSE for message, _ in messages)
        )
        return self._components.receipts.begin_recording(
            messages,
            event,
            publication.options(),
            is_follow_up=is_follow_up,
            payload_texts=publication.payload_texts(),
        )

    def _warn_of_eager(self) -> None:
        self._warned_of_eager = True
        logger.warning(
            "task_always_eager runs a .delay in place, but messages, requests and events go through the broker "
            "and need a worker: leave it off where agents talk",
            extra={"action": "eager_not_applied"},
        )

    # --- the pipeline

    def _publish(
        self, publication: Publication, wait: Wait, event: Message | None = None, session: Any = None
    ) -> None:
        metrics = process_metrics()
        if metrics is None and not is_traced():
            self._pass_pipeline(publication, wait, event, session)
            return
        with (
            nullcontext() if metrics is None else MeasuredSend(metrics, publication.batch),
            SendingSpan(publication.batch, self._app) as publication.batch,
        ):
            self._pass_pipeline(publication, wait, event, session)

    def _pass_pipeline(self, publication: Publication, wait: Wait, event: Message | None, session: Any) -> None:
        is_follow_up = is_sent_by_finished_handler()  # it does not change meanwhile
        self._check(publication, session, is_follow_up)
        # A large payload is stored after its message was counted, so that what is refused was not stored.
        large = self._components.large_payloads
        is_large = publication.is_large(large)
        is_small = session is None and len(publication.batch) <= MAX_BATCH_SIZE and not is_large
        send = partial(self._send_at_once, publication) if is_small else None
        if not is_follow_up and self._admit(publication, event, wait, send):
            return
        if is_large:
            if session is not None:
                self._components.outbox.check(session)
            event = publication.store_large_payloads(large, session, event)
        if session is not None:
            self._components.outbox.add_to_outbox(publication.batch, session)
            return
        if not publication.batch:  # an event without a subscriber
            self.record(publication, event)()
            return
        published: list[str] = []
        for part in publication.parts(MAX_BATCH_SIZE):
            try:
                self._record_and_publish(part, None if published else event, is_follow_up=is_follow_up)
            except WaooawError as error:
                error.message_ids = (*published, *error.message_ids)
                raise
            published += (message.message_id for _, message in part.batch)

    def _check(self, publication: Publication, session: Any, is_follow_up: bool) -> None:
        """Refuse what cannot be published, before it costs anything."""
        batch = publication.batch
        answers = all(message.message_type is MessageType.RESPONSE for _, message in batch)
        # Answers, and what follows a handler's end, were accepted already: they are recorded in any case.
        if session is None and not answers and not is_follow_up:
            self._components.circuit_breaker.check()
        publication.check_bodies()

    def _admit(
        self, publication: Publication, event: Message | None, wait: Wait, send: CountAndSend | None
    ) -> bool:
        """Count messages against their senders' rate limits, or refuse all of them.

        Answers and replays pass, and what follows a handler's end is not counted either: each was accepted with
        the message that it belongs to.

        Returns:
            Whether ``send`` has counted and sent them.
        """
        if wait and is_on_event_loop():
            raise BlockingCall(
                "waiting at the rate limit would block all coroutines of this process: in an async def handler, "
                "await agent.aio.send(..., wait=...) or waooaw_celery.aio.MessageBus"
            )
        messages = [event] if event is not None else [message for _, message in publication.batch]
        counted = [
            message
            for message in messages
            if message.message_type is not MessageType.RESPONSE and (message is event or not _is_replay(message))
        ]
        if not counted:
            return False
        sends = send if event is not None or len(counted) == len(publication.batch) else None
        return self._components.admission_control.admit(counted, wait, sends)

    def _send_at_once(self, part: Publication, demands: Sequence[Demand] = ()) -> bool:
        """Count, record and publish messages in one round trip. False: this broker and this store cannot."""
        if not self._redis_send.may_take(part):
            return False
        with self._broker_errors(part, []):
            with self._connection() as connection:  # a producer would cost as much as the message
                channel = connection.default_channel
                if part.is_declared(channel):
                    return self._redis_send.send(part, channel, demands)
            with part.producer() as producer:
                part.declare_queues(producer)
                return self._redis_send.send(part, producer.channel, demands)

    def _connection(self) -> Any:
        """Return a connection of the application's pool, to be used in a ``with`` statement."""
        timeout = self._components.publish_settings.read().pool_timeout
        try:
            return self._app.pool.acquire(block=True, timeout=timeout)
        except LimitExceeded as error:
            raise OperationalError(f"no connection of the pool was free within {timeout} s") from error

    def _record_and_publish(
        self, part: Publication, event: Message | None = None, *, is_recorded: bool = False, is_follow_up: bool
    ) -> None:
        # Without a ledger, an event itself is not recorded.
        if not is_recorded and not is_follow_up and self._send_at_once(part):
            return
        published: list[Message] = []
        belongs_to_accepted = is_recorded or event is not None or is_follow_up
        with self._broker_errors(part, published), part.producer() as producer:
            note_sent = self._hand_to_broker(part, producer, published, event, is_recorded, belongs_to_accepted)
        self._note_sent(published, note_sent)

    def _hand_to_broker(
        self,
        part: Publication,
        producer: Any,
        published: list[Message],
        event: Message | None,
        is_recorded: bool,
        belongs_to_accepted: bool,
    ) -> Callable[[], None] | None:
        """Record messages and prepare their publish at the same time, and publish them when they are recorded.

        Returns:
            The prepared note that the broker has the messages, where there was time to prepare it.
        """
        batch = part.batch
        recorded: Callable[[], set[str]] = partial(ids_of, batch) if is_recorded else self.record(part, event)
        notes: list[Callable[[], None]] = []
        was_tried = False

        def when_ready() -> None:
            notes.append(self._components.receipts.prepare_sent([message for _, message in batch]))
            check_not_sent_before(self._components.receipts, batch, recorded())

        try:
            if part.publish_together(producer, when_ready):
                published.extend(message for _, message in batch)
                return notes[0]
        except BROKER_ERRORS as error:
            if isinstance(error, BatchRefused) or refusal_in(error) is not None:
                refuse(self._components.receipts, batch, recorded(), belongs_to_accepted, error)
            confirmed = error.confirmed if isinstance(error, PartlyPublished) else frozenset()
            published.extend(message for _, message in batch if message.message_id in confirmed)
            # Kombu meets a dead connection here. Celery would publish again, and so do we, where it is safe.
            is_repeatable = isinstance(error, BatchPublishError) and not isinstance(error.__cause__, NOT_REPEATED)
            if len(batch) > 1 or not is_repeatable:
                raise
            was_tried = True
        finally:
            new = recorded()  # nothing stays on its way
        check_not_sent_before(self._components.receipts, batch, new)
        for target, message in batch:
            try:
                part.publish_one(producer, target, message)
            except (
                EncodeError,
                TypeError,
                ValueError,
            ) as error:  # its options cannot be written: it was not sent
                withdraw(self._components.receipts, [message] if message.message_id in new else [], error)
                raise
            except BROKER_ERRORS as error:
                if not was_tried and not published and refusal_in(error) is not None:
                    refuse(self._components.receipts, batch, new, belongs_to_accepted, error)
                raise
            published.append(message)
        return None

    # --- what can go wrong

    @contextmanager
    def _broker_errors(self, part: Publication, published: list[Message]) -> Iterator[None]:
        """Raise BrokerUnavailable for every error of the broker in this block, and tell the circuit breaker."""
        _ = self._components.receipts  # a store or a spool that cannot be used says nothing about the broker
        try:
            with self._components.circuit_breaker.watching():
                yield
        except BrokerUnavailable:
            raise
        except BROKER_ERRORS as error:
            if isinstance(error.__cause__, LimitExceeded):
                failure = no_connection(error.__cause__, self._app.conf.broker_pool_acquire_timeout)
                # Celery's own ``send_task`` may have tried before it ran out of connections.
                failure.uncertain = isinstance(part, TaskPublication)
                raise failure from error
            self._note_sent(published)
            raise not_confirmed(part.batch, published, error) from error

    def _note_sent(self, messages: Sequence[Message], note: Callable[[], None] | None = None) -> None:
        """Note that the broker has messages."""
        if not messages:
            return
        try:
            (note or self._components.receipts.prepare_sent(messages))()
        except StoreUnavailable as error:  # the messages are published: raising would deny that
            logger.warning(
                "%s; messages were published, but their receipts stay PENDING",
                error,
                extra={"action": "receipt_stays_pending"},
            )


def _is_replay(message: Message) -> bool:
    return message.event is not None and message.event.replay
