"""The application: a Celery app whose every publish to an agent passes one door."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from amqp.exceptions import AMQPError
from celery.result import AsyncResult
from kombu.exceptions import (
    EncodeError,
    LimitExceeded,
    OperationalError,
)

from waooaw_celery.app.publish_batch import HIDDEN_ARGUMENTS, envelope_headers, routing_options
from waooaw_celery.app.publisher import Door
from waooaw_celery.errors import BrokerUnavailable, InvalidMessage, UnknownMessage, UnknownSender
from waooaw_celery.messages.headers import check_delay, message_of_delay, message_of_retry, parse_datetime
from waooaw_celery.messages.message import Message, MessageStatus, Priority
from waooaw_celery.messages.publish_options import options_of_task
from waooaw_celery.messages.queues import HandlerName, broker_priority, takes_message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER
from waooaw_celery.worker.current_task import current_task, is_sent_by_finished_handler
from waooaw_celery.worker.outcomes.committed_effects import is_redelivered
from waooaw_celery.worker.outcomes.follow_up_sender import FollowUpRequest, send_follow_up, send_ordinary_follow_up

logger = logging.getLogger(__name__)


class AgentApp(Door):
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
            ordinary = partial(self._send_ordinary, name, args, kwargs, options)
            return (
                send_ordinary_follow_up(self, name, options, ordinary)
                if is_sent_by_finished_handler()
                else ordinary()
            )
        if options.get("retries"):
            message = self._retried_message(target, args, kwargs, options)
            return self._publish(target, message, args, kwargs, options)
        if is_sent_by_finished_handler():
            return send_follow_up(self, FollowUpRequest(target, args, kwargs, options, message))
        self.circuit_breaker.check()
        message = self.new_message(target, args, kwargs, options, message)
        return self.send_new(target, message, args, kwargs, options, wait)

    def send_new(
        self,
        target: HandlerName,
        message: Message,
        args: Any,
        kwargs: Any,
        options: dict[str, Any],
        wait: Any = None,
    ) -> AsyncResult[Any]:
        """Check, count, write down and publish a complete message.

        Args:
            target: the handler that it is for.
            message: the message.
            args: positional arguments of its task.
            kwargs: keyword arguments of its task.
            options: those of ``send_task``.
            wait: seconds for which a sender at its limit waits for its turn.

        Raises:
            WaooawError: what ``send_task`` raises.
        """
        if self._was_sent_on(options.get("task_id")):
            return self.AsyncResult(options["task_id"])
        self.registry.check_handler(target)
        self.packer.check((args or (), kwargs or {}), *self._written_as(target, message, options))
        self._admit([message], wait)
        new = self.record_task(target, message, args, options)
        try:
            self._check_new([(target, message)], new)
        except InvalidMessage as error:
            if not is_sent_by_finished_handler():
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

    def record_task(
        self, target: HandlerName, message: Message, args: Any, options: Mapping[str, Any]
    ) -> set[str]:
        """Write a task's message down, with all that its publish has besides; return its id if it is new.

        Raises:
            StoreUnavailable: it could not be written down.
        """
        besides = options_of_task(target.handler, message, args, options, self.timezone, self._usual)
        return self._begin_record([(target, message)], besides=besides)()

    @property
    def _usual(self) -> str:
        """The format that Celery names for every task that does not choose one."""
        return str(self.conf.task_serializer)

    def _send_ordinary(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> AsyncResult[Any]:
        if options.get("priority") is None:
            # On Redis a message without priority would be the most urgent of all.
            options["priority"] = broker_priority(Priority.NORMAL, self.driver)
        return super().send_task(name, args, kwargs, **options)

    def new_message(
        self, target: HandlerName, args: Any, kwargs: Any, options: Mapping[str, Any], message: Message | None
    ) -> Message:
        """Return the complete message of a task that is to be sent.

        Raises:
            InvalidMessage: an argument is no JSON value, or an option breaks a rule.
            UnknownSender: no agent is speaking.
        """
        if message is None:
            sender, ttl = self.speaker(target), self.settings.ttl_seconds
            message = message_of_delay(
                *(target, args, kwargs, options),
                sender=sender,
                default_ttl=ttl,
                zone=self.timezone,
                now=self.reference_clock.now(),
            )
        self._check_delay(target, options)
        message = self.complete(target, message)
        message.check_in_time(self.reference_clock.now())
        return message

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
        """Whether what follows a handler, such as the next step of a chain, was sent when it was run before."""
        task = current_task()
        if (
            task_id is None
            or task is None
            or not is_sent_by_finished_handler()
            or not is_redelivered(task.request)
        ):
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
            check_delay(options, limit, visible, self.timezone, self.reference_clock.now())

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
            parse_datetime(options.get("expires"), self.timezone) if options.get("retries") else message.expires_at
        )
        serializer, compression = self._written_as(target, message, options)
        options |= {
            "serializer": serializer,
            "compression": compression,
            "task_id": message.message_id,
            "root_id": message.conversation_id,
            "parent_id": message.causation_id,
            **routing_options(target, message, self.driver),
            # As a header only: as Celery's option it would become RabbitMQ's per-message TTL as well, and RabbitMQ
            # drops an expired message without telling anyone.
            "expires": None,
            "headers": {**self._headers(message, options), **envelope_headers(message, expires_at)},
            "argsrepr": HIDDEN_ARGUMENTS,
            "kwargsrepr": HIDDEN_ARGUMENTS,
            "ignore_result": True if takes_message(target.handler) else options.get("ignore_result"),
        }
        options.pop("exchange_type", None)
        try:
            with self.circuit_breaker.watching():
                return super().send_task(str(target), args, kwargs, **options)
        except (OperationalError, AMQPError) as error:
            if isinstance(error.__cause__, LimitExceeded):
                raise self._no_connection(error.__cause__) from error
            raise BrokerUnavailable(
                f"message {message.message_id} to {message.to_agent!r} was not confirmed by the broker: {error}"
            ) from error

    def _headers(self, message: Message, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the headers that a caller gave, with the call's only where it is the same request again."""
        headers = dict(options.get("headers") or {})
        if options.get("retries"):
            return headers
        task = current_task()
        headers.pop(REPLY_TO_HEADER, None)
        if task is not None and task.request.id == message.message_id and task.call is not None:
            headers[REPLY_TO_HEADER] = (
                task.call.to_header()
            )  # it replaced itself, and its caller waits for the other
        return headers


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
