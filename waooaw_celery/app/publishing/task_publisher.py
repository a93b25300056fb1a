"""The entrance for Celery tasks: `.delay`, `apply_async`, canvas, retries and beat come here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from waooaw_celery.app.publishing.publish_failures import withdraw
from waooaw_celery.app.publishing.task_publication import TaskPublication, handler_of
from waooaw_celery.errors import StoreUnavailable, UnknownAgent
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName, broker_priority, priority_of_number
from waooaw_celery.worker.current_task import is_sent_by_finished_handler
from waooaw_celery.worker.outcomes.follow_up_sender import (
    FollowUpRequest,
    send_follow_up,
    send_ordinary_follow_up,
)

logger = get_logger(__name__)

#: The header that Celery's beat adds to each task.
_BEAT_HEADER = "celery_beat_task"


class TaskPublisher:
    """Publishes tasks: those of agents through the publisher, and ordinary ones as Celery does.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        #: Tasks of beat whose priority is a number, and was logged.
        self._numbered: set[str] = set()

    def send(
        self, name: str, args: Any, kwargs: Any, options: dict[str, Any], message: Message | None, wait: Any
    ) -> AsyncResult[Any]:
        """Publish a task.

        Args:
            name: name of the task.
            args: its positional arguments.
            kwargs: its keyword arguments.
            options: the options of ``send_task``.
            message: its message, when the caller has made it.
            wait: seconds to wait at the sender's rate limit.

        Raises:
            WaooawError: as ``AgentApp.send_task``.
        """
        app = self._app
        target = HandlerName.parse(name) if message is not None else self._target_or_kept(name, options)
        if target is None:
            return self._send_ordinary(name, args, kwargs, options)
        if options.get("retries"):
            message = app.message_factory.of_retry(target, args, kwargs, options)
            result: AsyncResult[Any] = app.publisher.publish_retry(
                self._publication(target, message, args, kwargs, options)
            )
            return result
        if is_sent_by_finished_handler():
            return send_follow_up(app, FollowUpRequest(target, args, kwargs, options, message))
        self._read_priority_of_beat(name, options)
        app.circuit_breaker.check(tries=False)  # the publisher asks again
        message = app.message_factory.of_task(target, args, kwargs, options, message)
        return self.publish(target, message, args, kwargs, options, wait)

    def publish(
        self,
        target: HandlerName,
        message: Message,
        args: Any,
        kwargs: Any,
        options: dict[str, Any],
        wait: Any = None,
    ) -> AsyncResult[Any]:
        """Publish a task whose message is complete.

        Args:
            target: the handler that the task is.
            message: its message.
            args: its positional arguments.
            kwargs: its keyword arguments.
            options: the options of ``send_task``.
            wait: seconds to wait at the sender's rate limit.

        Raises:
            WaooawError: as ``AgentApp.send_task``.
        """
        publication = self._publication(target, message, args, kwargs, options)
        result: AsyncResult[Any] = self._app.publisher.publish_task(publication, wait)
        return result

    def publish_kept(
        self, target: HandlerName, message: Message, args: Any, kwargs: Any, options: dict[str, Any]
    ) -> None:
        """Publish a task that was kept while broker or store did not answer.

        Args:
            target, message, args, kwargs, options: as ``publish``.

        Raises:
            WaooawError: as ``AgentApp.send_task``.
        """
        if handler_of(self._app, str(target), options) is not None:
            self.publish(target, message, args, kwargs, options)
            return
        self._send_ordinary(str(target), args, kwargs, options)
        reason = UnknownAgent(f"no agent {target.agent!r} is known, so an ordinary Celery task was published")
        withdraw(self._app.receipts, [message], reason)

    def record(self, target: HandlerName, message: Message, args: Any, options: Mapping[str, Any]) -> set[str]:
        """Record a task's message without publishing it, and return its id if it is new.

        Raises:
            StoreUnavailable: the message could not be recorded.
        """
        recorded: set[str] = self._app.publisher.record(
            self._publication(target, message, args, None, dict(options))
        )()
        return recorded

    def _target_or_kept(self, name: str, options: dict[str, Any]) -> HandlerName | None:
        """Return the target of a task; while the store does not answer, a follow-up counts as a message."""
        try:
            return handler_of(self._app, name, options)
        except StoreUnavailable:
            if not is_sent_by_finished_handler():
                raise
            return HandlerName.parse(name)  # it is recorded and kept, and the store is asked again

    def _read_priority_of_beat(self, name: str, options: dict[str, Any]) -> None:
        """Replace the number that a schedule has as priority, for example from Django's admin, by a Priority.

        Everywhere else a number is refused: it means the opposite on another broker.
        """
        number = options.get("priority")
        if type(number) is not int or number < 0 or not (options.get("headers") or {}).get(_BEAT_HEADER):
            return
        options["priority"] = priority = priority_of_number(number, self._app.driver)
        if name not in self._numbered:
            self._numbered.add(name)
            logger.warning(
                "the schedule of %s has the priority %d, which is %s on this broker: set priority=%r",
                *(name, number, priority.name, priority.name),
                extra={"action": "priority_read_as_name"},
            )

    def _publication(
        self, target: HandlerName, message: Message, args: Any, kwargs: Any, options: dict[str, Any]
    ) -> TaskPublication:
        send_task = partial(Celery.send_task, self._app)
        return TaskPublication(self._app, target, message, args, kwargs, options, send_task)

    def _send_ordinary(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> AsyncResult[Any]:
        if options.get("priority") is None:
            # On Redis a message without priority would be the most urgent of all.
            options["priority"] = broker_priority(Priority.NORMAL, self._app.driver)

        # Celery may change the options when the send is repeated later.
        def send() -> AsyncResult[Any]:
            return Celery.send_task(self._app, name, args, kwargs, **options)

        if is_sent_by_finished_handler():
            return send_ordinary_follow_up(self._app, name, options, send)
        return send()
