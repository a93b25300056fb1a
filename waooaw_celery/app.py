"""The application: a Celery app whose every publish to an agent passes one door."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from amqp.exceptions import AMQPError
from celery.result import AsyncResult
from kombu.exceptions import (  # type: ignore[attr-defined]  # its stubs are old
    BatchPublishError,
    EncodeError,
    LimitExceeded,
    OperationalError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from waooaw_celery.calls import CALL_HEADER, Call
from waooaw_celery.envelope import check_delay, message_of_delay, message_of_retry, moment, threaded
from waooaw_celery.errors import (
    BlockingCall,
    BrokerUnavailable,
    InvalidMessage,
    StoreUnavailable,
    UnknownMessage,
    UnknownSender,
    WaooawError,
)
from waooaw_celery.handover import HIDDEN, HandOver, address, envelope_headers
from waooaw_celery.limits.turn import Wait
from waooaw_celery.message import Message, MessageStatus, MessageType, Priority
from waooaw_celery.receipts import Event, Fact
from waooaw_celery.remembered import Remembered, of_messages, of_task
from waooaw_celery.routing import HandlerName, broker_priority, takes_message
from waooaw_celery.wire.packing import Packed
from waooaw_celery.wiring import WiredCelery
from waooaw_celery.worker.loop import on_loop
from waooaw_celery.worker.signals import MAX_ERROR
from waooaw_celery.worker.task import current_message, current_task, goes_on

logger = logging.getLogger(__name__)

#: Messages that go to the ledger and to the broker together.
MAX_BATCH = 1000


class AgentApp(WiredCelery):
    """A Celery application through which agents talk.

    Everything that Celery can do, it does. What it adds is the door: ``send_task``, which ``.delay``,
    ``apply_async``, canvas, retries and beat all pass. It gives a task that is an agent's handler its envelope,
    queue, priority and expiry, and refuses what nobody would receive.
    """

    def send_task(  # type: ignore[override]
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        *,
        message: Message | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Publish a task: the door that every message passes.

        Args:
            name: an agent's handler, such as ``worker-1.get_status``, or any other task.
            args: positional arguments; a message's payload is the only one.
            kwargs: keyword arguments.
            countdown: seconds until it may first be handled.
            eta: moment from which it may be handled.
            message: the envelope, when the caller has made it; otherwise it is made here.
            options: those of ``apply_async``; ``priority`` is a Priority or its name, and ``wait`` the seconds for
                which a sender at its limit waits for its turn.

        Raises:
            RateLimitExceeded: the sender has sent as much as it may for now.
            InvalidMessage: an argument cannot travel or is too large, or an option breaks a rule.
            UnknownSender: no agent is speaking.
            UnknownAgent: nobody ever declared the recipient; NoHandler, UnknownMethod: it does not handle this.
            BrokerUnavailable: the broker refused or did not answer; whether it has the message is not known, but
                where ``uncertain`` is False: it has just failed to answer another sender, and nothing was tried.
            StoreUnavailable: Redis does not answer; nothing was published.
            ConfigurationError: a setting is missing or wrong.
        """
        wait = options.pop("wait", None)
        options |= {"countdown": countdown, "eta": eta}
        target = self.target(name)
        if target is None:
            return self._send_ordinary(name, args, kwargs, options)
        if options.get("retries"):
            message = self._retried_message(target, args, kwargs, options)
            return self._publish(target, message, args, kwargs, options)
        if not goes_on():
            self.breaker.check()
        if self._was_sent_on(options.get("task_id")):
            return self.AsyncResult(options["task_id"])
        message = self._new_message(target, args, kwargs, options, message)
        self.registry.check_handler(target)
        self.packer.check((args or (), kwargs or {}), *self._written_as(target, message, options))
        self._admit([message], wait)
        besides = of_task(target.handler, message, args, options, self.timezone, self._usual)
        new = self._begin_record([(target, message)], besides=besides)()
        try:
            self._check_new([(target, message)], new)
        except InvalidMessage as error:
            if not goes_on():
                raise
            # Two workers had the same message at once, and what follows it is on its way already.
            logger.info("%s", error, extra={"action": "sent_on_before", "message_id": message.message_id})
            return self.AsyncResult(message.message_id)
        try:
            result = self._publish(target, message, args, kwargs, options)
        except (EncodeError, TypeError, ValueError) as error:  # its options cannot travel, so that nothing did
            self._withdraw([message] if new else [], error)
            raise
        self._note_sent([message])
        return result

    def send_messages(
        self,
        batch: Sequence[tuple[HandlerName, Message]],
        call: Call | None = None,
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
        if session is None and not answers and not goes_on():
            self.breaker.check()
        hand_over = HandOver(self, self.driver, call, self.answers.reply_to if call is not None else None)
        bodies = hand_over.pack(batch) if batch else []
        told = [message for _, message in batch if message.event is None or not message.event.replay]
        self._admit(told if record is None else [record], wait)
        if session is not None:
            self.outbox.entrust(batch, session)
            return
        if not batch:
            self._begin_record([], record)()
        for start in range(0, len(batch), MAX_BATCH):
            part = slice(start, start + MAX_BATCH)
            try:
                self._send_batch(hand_over, batch[part], bodies[part], None if start else record)
            except WaooawError as error:
                error.message_ids = (*(message.message_id for _, message in batch[:start]), *error.message_ids)
                raise

    def _send_batch(
        self,
        hand_over: HandOver,
        batch: Sequence[tuple[HandlerName, Message]],
        bodies: Sequence[Packed],
        record: Message | None,
        *,
        is_written: bool = False,
    ) -> None:
        published: list[Message] = []
        written = (lambda: {message.message_id for _, message in batch}) if is_written else None
        try:
            with self.breaker.watching(), self.producer_or_acquire() as producer:
                note = self._publish_messages(producer, hand_over, batch, bodies, published, record, written)
        except (OperationalError, AMQPError, BatchPublishError) as error:
            self._note_sent(published)
            missing = [message for _, message in batch[len(published) :]]
            failure = BrokerUnavailable(
                f"{len(missing)} of {len(batch)} messages, the first of them {missing[0].message_id} to "
                f"{missing[0].to_agent!r}, were not confirmed by the broker: {error.__cause__ or error}"
            )
            failure.message_ids = tuple(message.message_id for message in published)
            raise failure from error
        except LimitExceeded as error:
            raise self._no_connection(error) from error
        self._note_sent(published, note)

    def publish_written(self, batch: Sequence[tuple[HandlerName, Message]]) -> None:
        """Publish messages that are in the ledger already, such as those of a transaction that was committed.

        Raises:
            BrokerUnavailable: the broker failed; they stay PENDING.
        """
        self.breaker.check()
        hand_over = HandOver(self, self.driver)
        for start in range(0, len(batch), MAX_BATCH):
            part = batch[start : start + MAX_BATCH]
            self._send_batch(hand_over, part, hand_over.pack(part), None, is_written=True)

    def complete(self, target: HandlerName, message: Message) -> Message:
        """Fill in what the sender of a message left open: the ids of its thread, and how long it is kept.

        Without a ledger nothing is kept, and the envelope does not say so.
        """
        kept = None if self._database is None else message.retention or self.settings.retention
        return threaded(target, message, current_message(), kept)

    def _admit(self, messages: Sequence[Message], wait: Wait) -> None:
        """Count messages, or refuse them; not answers, and not what Celery sends on when a handler has ended.

        Both were accepted with what they answer or go on from, such as the first step of a chain: refused here,
        they would be lost.
        """
        if wait and on_loop():
            raise BlockingCall(
                "waiting for a turn would stop every coroutine of this process: in an async def handler, await "
                "agent.aio.send(..., wait=...) or waooaw_celery.aio.MessageBus"
            )
        if self.gate is not None and not goes_on():
            counted = [message for message in messages if message.message_type is not MessageType.RESPONSE]
            if counted:
                self.gate.admit(counted, wait)

    @property
    def _usual(self) -> str:
        """The format that Celery names for every task that does not choose one."""
        return str(self.conf.task_serializer)

    def _begin_record(
        self,
        batch: Sequence[tuple[HandlerName, Message]],
        record: Message | None = None,
        call: Call | None = None,
        besides: Remembered | None = None,
    ) -> Callable[[], set[str]]:
        if besides is None:
            remembered = of_messages((message for _, message in batch), call)
        else:
            remembered = {batch[0][1].message_id: besides}
        messages = [(message, target.handler) for target, message in batch]
        return self.receipts.pending(messages, record, remembered)

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

    def _withdraw(self, messages: Sequence[Message], error: Exception) -> None:
        """End messages that were written down and are not published: a recovery would publish them otherwise."""
        sentence = f"not published: {error}"[:MAX_ERROR]
        if messages:
            about: dict[str, Any] = {"event": Event.FAILED, "error": sentence}
            self.receipts.note(*(Fact(message_id=each.message_id, message=each, **about) for each in messages))

    def _note_sent(self, messages: Sequence[Message], note: Callable[[], None] | None = None) -> None:
        """Note that the broker has messages, with what was made ready for that when there was time."""
        if not messages:
            return
        try:
            (note or self.receipts.sent(messages))()
        except StoreUnavailable as error:  # they are published: to say that it failed would be wrong
            logger.warning("%s; a receipt stays PENDING", error, extra={"action": "receipt_stays_pending"})

    def _send_ordinary(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> AsyncResult[Any]:
        if options.get("priority") is None:
            # On Redis a message without priority would be the most urgent of all.
            options["priority"] = broker_priority(Priority.NORMAL, self.driver)
        return super().send_task(name, args, kwargs, **options)

    def _new_message(
        self, target: HandlerName, args: Any, kwargs: Any, options: Mapping[str, Any], message: Message | None
    ) -> Message:
        if message is None:
            sender, ttl = self.speaker(target), self.settings.ttl_seconds
            message = message_of_delay(
                target, args, kwargs, options, sender=sender, default_ttl=ttl, zone=self.timezone
            )
        self._check_delay(target, options)
        message.check_in_time()
        return self.complete(target, message)

    def _retried_message(self, target: HandlerName, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Message:
        try:
            self._check_delay(target, options)
        except InvalidMessage as error:  # to refuse it here would lose the message
            logger.warning("retry of %s: %s", options["task_id"], error, extra={"action": "retry_too_late"})
        return message_of_retry(target, args, kwargs, options)

    def _written_as(
        self, target: HandlerName, message: Message, options: Mapping[str, Any]
    ) -> tuple[str, str | None]:
        """Return the format and the codec of a message that is published with these options."""
        said = options.get("serializer")
        if said == self._usual:  # Celery says it for every task that does not say another
            said = None
        compression = message.compression or options.get("compression")
        return self.written_as(target.agent, message.serializer or said, compression)

    def _was_sent_on(self, task_id: str | None) -> bool:
        """Whether what follows a handler, such as the next step of a chain, was sent when it was run before.

        The ledger would take it for new when it has ended meanwhile: its time of sending is another.
        """
        task = current_task()
        if task_id is None or task is None or not goes_on() or not task.may_be_duplicate():
            return False
        try:
            return self.receipts.get(task_id).status is not MessageStatus.PENDING
        except UnknownMessage:
            return False

    def _check_delay(self, target: HandlerName, options: Mapping[str, Any]) -> None:
        due = options.get("countdown") or options.get("eta")
        visible = self.visibility_timeout if due else None
        if visible is not None:
            task = self.tasks.get(str(target))
            limit = getattr(task, "time_limit", None) or self.conf.task_time_limit or 0
            check_delay(options, limit, visible, self.timezone)

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

    def speaker(self, target: HandlerName) -> str:
        """Return who says what is sent without a sender: never a guess, since it is evidence."""
        task = current_task()
        if task is not None:
            return task.agent
        if self.settings.sender is not None:
            return self.settings.sender
        # An ordinary task of the application, such as Celery's for chords, speaks for its only agent.
        if len(self.agents) == 1 and (target.agent not in self.agents or self.current_worker_task is not None):
            return next(iter(self.agents))
        raise UnknownSender(
            f"who sends to {target}? Outside of a handler, set waooaw_sender (or WAOOAW_SENDER) to the name of "
            "the sender, or send with a Message, whose from_agent says it"
        )

    def _publish(
        self, target: HandlerName, message: Message, args: Any, kwargs: Any, options: dict[str, Any]
    ) -> AsyncResult[Any]:
        # A retry expires when its first attempt would have.
        expires_at = (
            moment(options.get("expires"), self.timezone) if options.get("retries") else message.expires_at
        )
        serializer, compression = self._written_as(target, message, options)
        options |= {
            "serializer": serializer,
            "compression": compression,
            "task_id": message.message_id,
            "root_id": message.conversation_id,
            "parent_id": message.causation_id,
            **address(target, message, self.driver),
            # As a header only: as Celery's option it would become RabbitMQ's per-message TTL as well, and RabbitMQ
            # drops an expired message without telling anyone.
            "expires": None,
            "headers": {**self._headers(message, options), **envelope_headers(message, expires_at)},
            "argsrepr": HIDDEN,
            "kwargsrepr": HIDDEN,
            "ignore_result": True if takes_message(target.handler) else options.get("ignore_result"),
        }
        options.pop("exchange_type", None)
        try:
            with self.breaker.watching():
                return super().send_task(str(target), args, kwargs, **options)
        except (OperationalError, AMQPError) as error:
            raise BrokerUnavailable(
                f"message {message.message_id} to {message.to_agent!r} was not confirmed by the broker: {error}"
            ) from error
        except LimitExceeded as error:
            raise self._no_connection(error) from error

    def _no_connection(self, limit: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"all {limit} connections to the broker were in use for {self.conf.broker_pool_acquire_timeout:g} s: "
            "does it answer slowly, or is broker_pool_limit lower than the number of threads that send?"
        )

    def _headers(self, message: Message, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the headers that a caller gave, with the call's only where it is the same request again."""
        headers = dict(options.get("headers") or {})
        if options.get("retries"):
            return headers
        task = current_task()
        headers.pop(CALL_HEADER, None)
        if task is not None and task.request.id == message.message_id and task.call is not None:
            headers[CALL_HEADER] = task.call.to_header()  # it replaced itself, and its caller waits for the other
        return headers

    def _publish_messages(
        self,
        producer: Any,
        hand_over: HandOver,
        batch: Sequence[tuple[HandlerName, Message]],
        bodies: Sequence[Packed],
        published: list[Message],
        record: Message | None,
        written: Callable[[], set[str]] | None = None,
    ) -> Callable[[], None] | None:
        """Have messages written down and made ready at the same time, and hand them over when they are written.

        Returns:
            What notes that the broker has them, when it was made ready meanwhile.
        """
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


def create_app(main: str | None = None, **config: Any) -> AgentApp:
    """Return a new application.

    Args:
        main: name of the application, or None.
        config: Celery's settings in lower case and ours: ``broker_url``, ``result_backend``, ``waooaw_sender``, …
            The variables ``CELERY_BROKER_URL``, ``CELERY_RESULT_BACKEND`` and ``WAOOAW_*`` win over them.

    Example:
        >>> app = create_app(broker_url="redis://localhost:6379/0")
    """
    app = AgentApp(main)
    app.conf.update(config)
    return app
