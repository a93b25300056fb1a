"""The application: a Celery app whose every publish to an agent passes one door."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from amqp.exceptions import AMQPError
from celery import Celery
from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from waooaw_celery.audit.agents import LedgerAgentRegistry
from waooaw_celery.audit.engine import Database, database_url
from waooaw_celery.audit.ledger import Ledger
from waooaw_celery.audit.version import check_version
from waooaw_celery.celery_setup import AgentAMQP, add_defaults, transport_options, with_transport_options
from waooaw_celery.envelope import check_delay, message_of_delay, message_of_retry, moment, threaded
from waooaw_celery.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidMessage,
    StoreUnavailable,
    UnknownSender,
)
from waooaw_celery.message import ENVELOPE_HEADER, TYPE_NAMES, Message, MessageStatus, Priority
from waooaw_celery.receipts import Receipts, RedisReceipts
from waooaw_celery.registry import AgentRegistry, RedisAgentRegistry
from waooaw_celery.routing import HandlerName, agent_queue, broker_priority, check_ordered, driver_type, first_url
from waooaw_celery.settings import WaooawSettings
from waooaw_celery.store import Client, connect, store_url
from waooaw_celery.worker import signals
from waooaw_celery.worker.presence import Presence
from waooaw_celery.worker.task import AgentTask, current_message, current_task

logger = logging.getLogger(__name__)

#: What Celery, its logs and Flower show in place of the arguments, which may be confidential.
_HIDDEN = "…"


class AgentApp(Celery):
    """A Celery application through which agents talk.

    Everything that Celery can do, it does. What it adds is the door: ``send_task``, which ``.delay``,
    ``apply_async``, canvas, retries and beat all pass. It gives a task that is an agent's handler its envelope,
    queue, priority and expiry, and refuses what nobody would receive.

    Attributes:
        agents: the agents whose handlers are in this application, and the names of these.
    """

    amqp_cls: Any = AgentAMQP

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agents: dict[str, list[str]] = {}
        super().__init__(*args, **kwargs)
        self.on_after_configure.connect(add_defaults, weak=False)
        self.steps["worker"].add(Presence)
        signals.connect()

    @cached_property
    def settings(self) -> WaooawSettings:
        """The `waooaw_*` settings, read when they are first needed.

        Raises:
            ConfigurationError: one is unknown or wrong.
        """
        namespace: str | None = getattr(self, "namespace", None)  # Celery has it; its type stubs do not
        return WaooawSettings.read(self.conf, namespace)

    @cached_property
    def driver(self) -> str:
        """Kombu's name for the kind of broker, such as ``redis`` or ``amqp``.

        Raises:
            ConfigurationError: no broker is set, or it does not order messages by priority.
        """
        if not self.conf.broker_url:
            raise ConfigurationError(
                "no broker is set: give create_app(broker_url=...) or the variable CELERY_BROKER_URL, "
                "such as redis://localhost:6379/0 or amqp://guest:guest@localhost:5672//"
            )
        driver = driver_type(first_url(self.conf.broker_url) or "")
        check_ordered(driver, self.settings.allow_unordered)
        return driver

    @cached_property
    def registry(self) -> AgentRegistry:
        """The known agents."""
        return self.open_registry()

    def open_registry(self) -> AgentRegistry:
        """Return the known agents over a connection of their own, for a thread beside the others."""
        if self._database is not None:
            return LedgerAgentRegistry(Database(self._database.url), self.settings.agents)
        return RedisAgentRegistry(self._connect(), self.settings.agents)

    @cached_property
    def receipts(self) -> Receipts:
        """What became of each message."""
        if self._database is not None:
            return Ledger(self._database, self.settings.retention)
        return RedisReceipts(self._connect(), self.settings.receipt_seconds)

    @cached_property
    def database(self) -> Database:
        """The ledger's database.

        Raises:
            ConfigurationError: none is set.
        """
        if self._database is None:
            raise ConfigurationError(
                "there is no ledger: set waooaw_database_url (or WAOOAW_DATABASE_URL), such as "
                "postgresql://user:password@host/name, and run `waooaw db upgrade`"
            )
        return self._database

    @cached_property
    def _database(self) -> Database | None:
        url = self.settings.database_url
        return None if url is None else Database(database_url(url))

    def _connect(self) -> Client:
        return connect(
            store_url(self.settings.redis_url, self.conf.result_backend, first_url(self.conf.broker_url))
        )

    def check(self) -> None:
        """Check at start-up what would otherwise fail at the first message.

        Raises:
            ConfigurationError: a setting is missing, misspelt or impossible.
        """
        _ = self.settings, self.driver, self.receipts
        if self._database is not None:
            check_version(self._database)

    def close(self) -> None:
        """Close all connections."""
        super().close()
        for part in ("registry", "receipts"):
            if part in self.__dict__:  # made so far
                getattr(self, part).close()

    def consumed_agents(self) -> tuple[str, ...]:
        """Return the agents of this application whose queues its worker consumes (``-Q`` may leave some out)."""
        consumed = self.amqp.queues.consume_from
        return tuple(name for name in self.agents if agent_queue(name).name in consumed)

    def target(self, task_name: str) -> HandlerName | None:
        """Return whose handler a task is, or None for an ordinary Celery task of this application."""
        name = HandlerName.parse(task_name)
        if name is None:
            return None
        task = self.tasks.get(task_name)
        return name if task is None or isinstance(task, AgentTask) else None

    @property
    def transport_options(self) -> dict[str, Any]:
        """Options of the broker's transport: a project's own, and ours for what it does not say."""
        return transport_options(self.conf)

    def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
        """Return a connection for consuming, with our deadlines."""
        return super().connection_for_read(url, **with_transport_options(self.conf, url, kwargs))

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
        """Return a connection for publishing, with our deadlines."""
        return super().connection_for_write(url, **with_transport_options(self.conf, url, kwargs))

    @property
    def visibility_timeout(self) -> float | None:
        """Seconds after which the broker hands out again what is not acknowledged; None where it does not."""
        return float(self.transport_options["visibility_timeout"]) if self.driver == "redis" else None

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
            options: those of ``apply_async``; ``priority`` is a Priority or its name.

        Raises:
            InvalidMessage: an argument is no JSON value, or an option breaks a rule.
            UnknownSender: no agent is speaking.
            UnknownAgent: nobody ever declared the recipient; NoHandler, UnknownMethod: it does not handle this.
            BrokerUnavailable: the broker refused or did not answer; whether it has the message is not known.
            StoreUnavailable: Redis does not answer; nothing was published.
            ConfigurationError: a setting is missing or wrong.
        """
        options |= {"countdown": countdown, "eta": eta}
        target = self.target(name)
        if target is None:
            return self._send_ordinary(name, args, kwargs, options)
        if options.get("retries"):
            message = self._retried_message(target, args, kwargs, options)
        else:
            message = self._new_message(target, args, kwargs, options, message)
            self.registry.check_handler(target)
            if not self.receipts.pending(message, target.handler):
                self._check_resending(message)
        result = self._publish(target, message, args, kwargs, options)
        self._note_sent(message)
        return result

    def _note_sent(self, message: Message) -> None:
        try:
            self.receipts.sent(message.message_id)
        except StoreUnavailable as error:  # it is published: to say that it failed would be wrong
            logger.warning("%s; its receipt stays PENDING", error, extra={"action": "receipt_stays_pending"})

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
        return threaded(target, message, current_message())

    def _retried_message(self, target: HandlerName, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Message:
        try:
            self._check_delay(target, options)
        except InvalidMessage as error:  # to refuse it here would lose the message
            logger.warning("retry of %s: %s", options["task_id"], error, extra={"action": "retry_too_late"})
        return message_of_retry(target, args, kwargs, options)

    def _check_delay(self, target: HandlerName, options: Mapping[str, Any]) -> None:
        visible = self.visibility_timeout
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
        one_way = target.handler in TYPE_NAMES
        # A retry expires when its first attempt would have.
        expires_at = (
            moment(options.get("expires"), self.timezone) if options.get("retries") else message.expires_at
        )
        queue = agent_queue(target.agent)
        options |= {
            "task_id": message.message_id,
            "root_id": message.conversation_id,
            "parent_id": message.causation_id,
            "queue": queue,
            # Said too, so that no entry of a project's task_routes can say otherwise.
            "exchange": queue.exchange.name,
            "routing_key": queue.routing_key,
            "priority": broker_priority(message.priority, self.driver),
            # As a header only: as Celery's option it would become RabbitMQ's per-message TTL as well, and RabbitMQ
            # drops an expired message without telling anyone.
            "expires": None,
            "headers": {
                **(options.get("headers") or {}),
                ENVELOPE_HEADER: message.to_envelope(),
                "expires": expires_at.isoformat() if expires_at else None,
            },
            "argsrepr": _HIDDEN,
            "kwargsrepr": _HIDDEN,
            "ignore_result": True if one_way else options.get("ignore_result"),
        }
        options.pop("exchange_type", None)
        if self.driver == "amqp":
            options["mandatory"] = True  # RabbitMQ says so when the queue is gone
        try:
            return super().send_task(str(target), args, kwargs, **options)
        except (OperationalError, AMQPError) as error:
            raise BrokerUnavailable(
                f"message {message.message_id} to {message.to_agent!r} was not confirmed by the broker: {error}"
            ) from error


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
