"""How a message becomes complete before it is published: its sender, the ids of its conversation, its times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from waooaw_celery.errors import InvalidMessage, UnknownSender
from waooaw_celery.messages.headers import check_delay, message_of_delay, message_of_retry, with_conversation_ids
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.worker.current_task import current_message, current_task

logger = get_logger(__name__)


class MessageFactory:
    """Makes the messages of an application complete.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def sender_of(self, target: HandlerName) -> str:
        """Return the sender of a message that names none. It is evidence, so it is never guessed.

        Args:
            target: the handler that the message is for.

        Raises:
            UnknownSender: no handler runs, and neither the settings nor the application name one agent.
        """
        app, task = self._app, current_task()
        if task is not None:
            return task.agent
        if app.settings.sender is not None:
            return str(app.settings.sender)
        # An ordinary task of the application, such as Celery's for chords, sends for the application's only agent.
        if len(app.agents) == 1 and (target.agent not in app.agents or app.current_worker_task is not None):
            return str(next(iter(app.agents)))
        raise UnknownSender(
            f"the sender of the message to {target} is unknown: outside a handler, set waooaw_sender "
            "(or WAOOAW_SENDER), or send a Message with from_agent"
        )

    def identity_of(self, agent: str) -> str | None:
        """Return the identity of an agent of this application, or of its ``waooaw_sender``; None: it has none.

        Args:
            agent: name of the agent.
        """
        identity: str | None = self._app.identities.get(agent)
        if identity is None and agent == self._app.settings.sender:
            identity = self._app.settings.sender_identity
        return identity

    def complete(self, target: HandlerName, message: Message) -> Message:
        """Fill in what the sender left open: the ids of the conversation, the retention, the time, the ledger.

        Without a ledger nothing is retained, and the envelope names no retention and no ledger.

        Args:
            target: the handler that the message is for.
            message: the message.

        Raises:
            AuditUnavailable: this process has not read its ledger's id yet, and the database does not answer.
        """
        [(_, complete)] = self.complete_all([(target, message)])
        return complete

    def complete_all(self, batch: Iterable[tuple[HandlerName, Message]]) -> list[tuple[HandlerName, Message]]:
        """Fill in what the sender of messages left open. See ``complete``.

        Args:
            batch: the messages, each with the handler that it is for.
        """
        app = self._app
        has_ledger, retention = app.settings.database_url is not None, app.settings.retention
        corrected, ledger, cause = app.reference_clock.correction(), app.ledger_id, current_message()
        completed: list[tuple[HandlerName, Message]] = []
        for target, message in batch:
            kept = message.retention or retention if has_ledger else None
            sent_at = corrected(message.sent_at)
            complete = with_conversation_ids(target, message, cause, kept, sent_at, ledger)
            if message.identity is None and (identity := self.identity_of(message.from_agent)) is not None:
                complete = complete.filled_in(identity=identity)
            if sent_at != message.sent_at:
                # Each send corrects the time anew. So the ledger must look for the id under any time of sending.
                complete = complete.filled_in(has_new_id=False)
            completed.append((target, complete))
        return completed

    def of_task(
        self,
        target: HandlerName,
        args: Any,
        kwargs: Any,
        options: Mapping[str, Any],
        message: Message | None = None,
    ) -> Message:
        """Return the complete message of a task.

        Args:
            target: the handler that the task is.
            args: its positional arguments.
            kwargs: its keyword arguments.
            options: the options of ``send_task``.
            message: the message, when the caller has made it.

        Raises:
            InvalidMessage: an argument is not a JSON value, or an option breaks a rule.
            UnknownSender: no agent sends.
        """
        app, now = self._app, self._app.reference_clock.now()
        if message is None:
            message = message_of_delay(
                *(target, args, kwargs, options),
                sender=self.sender_of(target),
                default_ttl=app.settings.ttl_seconds,
                zone=app.timezone,
                now=now,
            )
        self._check_delay(target, options)
        message = self.complete(target, message)
        message.check_in_time(app.reference_clock.now())
        return message

    def of_retry(self, target: HandlerName, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Message:
        """Return the message of a retry, which is the message of the first attempt."""
        try:
            self._check_delay(target, options)
        except InvalidMessage as error:  # refusing it here would lose the message
            logger.warning(
                "the retry of %s may be handled twice: %s",
                options["task_id"],
                error,
                extra={"action": "retry_too_late"},
            )
        return message_of_retry(target, args, kwargs, options)

    def _check_delay(self, target: HandlerName, options: Mapping[str, Any]) -> None:
        """Refuse a delay that Kombu's own Redis transport would redeliver before it is over."""
        app, delay = self._app, options.get("countdown") or options.get("eta")
        visibility_timeout = app.visibility_timeout if delay else None
        if visibility_timeout is not None:
            task = app.tasks.get(str(target))
            time_limit = getattr(task, "time_limit", None) or app.conf.task_time_limit or 0
            check_delay(options, time_limit, visibility_timeout, app.timezone, app.reference_clock.now())
