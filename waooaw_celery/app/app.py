"""The application: Celery with a publisher, through which every message to an agent passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from celery import Celery
from celery.result import AsyncResult
from celery.signals import worker_process_shutdown, worker_shutdown

from waooaw_celery.app.celery_configuration import AgentAMQP, add_defaults, transport_options
from waooaw_celery.app.components import Components
from waooaw_celery.app.message_factory import MessageFactory
from waooaw_celery.app.publisher import Publisher
from waooaw_celery.app.task_publication import TaskPublication
from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.broker.dead_letters.queue import DeadLetterQueue
from waooaw_celery.broker.redis.dead_lettering import dead_lettered
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.limits.admission_control import AdmissionControl
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import AGENT_QUEUES, HandlerName, agent_queue, broker_priority
from waooaw_celery.messages.receipt import MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.messages.topics.schemas import SchemaRegistry
from waooaw_celery.results.collector import ResultCollector
from waooaw_celery.settings import RedisTransport, WaooawSettings
from waooaw_celery.store.agents import AgentRegistry
from waooaw_celery.store.reference_clock import ReferenceClock
from waooaw_celery.store.subscriptions import Subscription, Subscriptions
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import install_codecs
from waooaw_celery.wire.formats import install_formats
from waooaw_celery.wire.packer import Packer
from waooaw_celery.worker import signals
from waooaw_celery.worker.cancellation import CancellationRegistry
from waooaw_celery.worker.current_task import is_sent_by_finished_handler
from waooaw_celery.worker.execution.event_loop import close_event_loop
from waooaw_celery.worker.execution.pools import SafePool
from waooaw_celery.worker.health.clock import ReportClock
from waooaw_celery.worker.health.heartbeat import Heartbeat
from waooaw_celery.worker.health.watchdog import Watchdog
from waooaw_celery.worker.intake import Intake, WatchIntake
from waooaw_celery.worker.outcomes import replies
from waooaw_celery.worker.outcomes.follow_up_sender import FollowUpRequest, send_follow_up, send_ordinary_follow_up
from waooaw_celery.worker.outcomes.follow_ups import FollowUps
from waooaw_celery.worker.remote_control import CancelListener
from waooaw_celery.worker.task import AgentTask

if TYPE_CHECKING:
    from waooaw_celery.ledger.database.engine import Database
    from waooaw_celery.ledger.ledger import Ledger
    from waooaw_celery.ledger.outbox import Outbox

T = TypeVar("T")


class Part(Generic[T]):
    """An attribute of an application that is a part of its components."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, app: None, owner: type) -> Part[T]: ...
    @overload
    def __get__(self, app: AgentApp, owner: type) -> T: ...
    def __get__(self, app: AgentApp | None, owner: type) -> Part[T] | T:
        if app is None:
            return self
        part: T = getattr(app.components, self._name)
        return part


class AgentApp(Celery):
    """A Celery application through which agents talk.

    Everything that Celery can do, it does. It adds components, of which the publisher is one: ``send_task``, which
    ``.delay``, ``apply_async``, canvas, retries and beat all call, gives a task that is an agent's handler its
    envelope, queue, priority and expiry, and refuses what no agent would receive. Ordinary tasks stay ordinary.

    Attributes:
        agents: the agents whose handlers are in this application, each with the names of its handlers.
        capabilities: the capabilities of these agents.
        subscribed: their subscriptions.
        schemas: the JSON Schemas of topics that this application's code registers.
        components: the parts that the application is composed of.
    """

    amqp_cls: Any = AgentAMQP

    settings: Part[WaooawSettings] = Part()
    driver: Part[str] = Part()
    publisher: Part[Publisher] = Part()
    message_factory: Part[MessageFactory] = Part()
    packer: Part[Packer] = Part()
    limiter: Part[RateLimiter] = Part()
    admission_control: Part[AdmissionControl | None] = Part()
    result_collector: Part[ResultCollector] = Part()
    dead_letters: Part[DeadLetterQueue] = Part()
    registry: Part[AgentRegistry] = Part()
    subscriptions: Part[Subscriptions] = Part()
    receipts: Part[ReceiptStore] = Part()
    reference_clock: Part[ReferenceClock] = Part()
    database: Part[Database] = Part()
    ledger: Part[Ledger] = Part()
    outbox: Part[Outbox] = Part()
    cancellations: Part[CancellationRegistry] = Part()
    intake: Part[Intake] = Part()
    circuit_breaker: Part[CircuitBreaker] = Part()
    follow_ups: Part[FollowUps] = Part()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agents: dict[str, list[str]] = {}
        self.capabilities: dict[str, tuple[str, ...]] = {}
        self.subscribed: list[Subscription] = []
        self.schemas = SchemaRegistry()
        self.components = Components(self)
        install_formats()
        install_codecs()
        super().__init__(*args, **kwargs)
        self.on_after_configure.connect(add_defaults, weak=False)
        self.steps["worker"].update((SafePool, Heartbeat, ReportClock, Watchdog, WatchIntake))
        self.steps["consumer"].add(CancelListener)
        replies.connect()
        signals.connect()
        dead_lettered.connect(self._note_dead_letter)
        for ended in (worker_process_shutdown, worker_shutdown):
            ended.connect(self._finish)
            ended.connect(close_event_loop)

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
        """Publish a task.

        Args:
            name: an agent's handler, such as ``worker-1.get_status``, or any other task.
            args: positional arguments; a message's payload is the only one.
            kwargs: keyword arguments.
            countdown: seconds until the task may be handled.
            eta: the time from which it may be handled.
            message: the message, when the caller has made it.
            options: those of ``apply_async``; ``priority`` is a Priority or its name, and ``wait`` the seconds to
                wait at the sender's rate limit.

        Raises:
            RateLimitExceeded: the sender has reached its rate limit.
            InvalidMessage: an argument cannot be written or is too large, or an option breaks a rule.
            UnknownSender: no agent sends.
            UnknownAgent: the recipient was never declared; NoHandler, UnknownMethod: it has no such handler.
            BrokerUnavailable: the broker refused or did not answer. It is not known whether it has the message,
                unless ``uncertain`` is False: then it does not.
            StoreUnavailable: the store does not answer; nothing was published.
            ConfigurationError: a setting is missing or wrong.
        """
        wait = options.pop("wait", None)
        options |= {"countdown": countdown, "eta": eta}
        target = self.target(name)
        if target is None:
            return self._send_ordinary_task(name, args, kwargs, options)
        if options.get("retries"):
            message = self.message_factory.of_retry(target, args, kwargs, options)
            return self.publisher.publish_retry(self._publication(target, message, args, kwargs, options))
        if is_sent_by_finished_handler():
            return send_follow_up(self, FollowUpRequest(target, args, kwargs, options, message))
        self.circuit_breaker.check()
        message = self.message_factory.of_task(target, args, kwargs, options, message)
        return self.publish_task(target, message, args, kwargs, options, wait)

    def publish_task(
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
            WaooawError: as ``send_task``.
        """
        return self.publisher.publish_task(self._publication(target, message, args, kwargs, options), wait)

    def record_task(
        self, target: HandlerName, message: Message, args: Any, options: Mapping[str, Any]
    ) -> set[str]:
        """Record a task's message without publishing it, and return its id if it is new.

        Raises:
            StoreUnavailable: the message could not be recorded.
        """
        return self.publisher.record(self._publication(target, message, args, None, dict(options)))()

    def _publication(
        self, target: HandlerName, message: Message, args: Any, kwargs: Any, options: dict[str, Any]
    ) -> TaskPublication:
        return TaskPublication(self, target, message, args, kwargs, options, super().send_task)

    def _send_ordinary_task(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> AsyncResult[Any]:
        if options.get("priority") is None:
            # On Redis a message without priority would be the most urgent of all.
            options["priority"] = broker_priority(Priority.NORMAL, self.driver)

        # Celery may change the options when the send is repeated later.
        def send() -> AsyncResult[Any]:
            return super(AgentApp, self).send_task(name, args, kwargs, **options)

        return send_ordinary_follow_up(self, name, options, send) if is_sent_by_finished_handler() else send()

    def target(self, task_name: str) -> HandlerName | None:
        """Return whose handler a task is, or None for an ordinary Celery task of this application."""
        name = HandlerName.parse(task_name)
        if name is None:
            return None
        task = self.tasks.get(task_name)
        return name if task is None or isinstance(task, AgentTask) else None

    def now(self) -> datetime:
        """Return the time of the reference clock. Celery computes ETAs with it."""
        return self.reference_clock.now().astimezone(self.timezone)

    def consumed_agents(self) -> tuple[str, ...]:
        """Return the agents of this application whose queues its worker consumes (``-Q`` may leave some out)."""
        consumed = self.amqp.queues.consume_from
        return tuple(name for name in self.agents if agent_queue(name).name in consumed)

    def wire_format(
        self, agent: str, serializer: str | None = None, compression: str | None = None
    ) -> tuple[str, str | None]:
        """Return the serializer and the compression of a message to an agent.

        Args:
            agent: the recipient.
            serializer: the message's own choice, or None.
            compression: the message's own choice, or None.

        Returns:
            The message's choice, or else the setting for the agent, or else the application's.
        """
        settings = self.settings
        return (
            serializer or settings.agent_serializers.get(agent) or self.conf.task_serializer,
            compression or settings.agent_compressions.get(agent) or self.conf.task_compression,
        )

    # --- connections

    def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
        """Return a connection for consuming, with this package's deadlines."""
        return super().connection_for_read(url, **self._with_transport_options(url, kwargs))

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
        """Return a connection for publishing, with this package's deadlines."""
        return super().connection_for_write(url, **self._with_transport_options(url, kwargs, publishes=True))

    @property
    def transport_options(self) -> dict[str, Any]:
        """Options of the broker's transport: the project's own, and this package's for the others."""
        return self._transport_options(None)

    @property
    def claims(self) -> bool:
        """Whether this package's transport carries messages on Redis, and not Kombu's."""
        try:
            return self.settings.redis_transport is RedisTransport.WAOOAW
        except ConfigurationError:  # the worker's check reports it in a moment
            return True

    @property
    def visibility_timeout(self) -> float | None:
        """Seconds until the broker redelivers what a worker holds; None where the worker renews its leases."""
        if self.driver != "redis" or self.claims:
            return None
        return float(self.transport_options["visibility_timeout"])

    def _with_transport_options(
        self, url: str | None, kwargs: dict[str, Any], *, publishes: bool = False
    ) -> dict[str, Any]:
        given = kwargs.get("transport_options") or {}
        return {**kwargs, "transport_options": {**self._transport_options(url, publishes=publishes), **given}}

    def _transport_options(self, url: str | None, *, publishes: bool = False) -> dict[str, Any]:
        caps, max_dead_letters = Caps(), None
        with suppress(ConfigurationError):  # Celery prints the broker before the worker's check reports it
            caps, max_dead_letters = self.packer.caps, self.settings.dead_letters_max
        return transport_options(
            self.conf, self.claims, caps, url, publishes=publishes, max_dead_letters=max_dead_letters
        )

    # --- start and end

    def check(self) -> None:
        """Check at start-up what would otherwise fail at the first message.

        Raises:
            ConfigurationError: a setting is missing, misspelt or impossible.
        """
        self.components.check()

    def close(self) -> None:
        """Close all connections."""
        if "result_collector" in vars(self.components):
            self.result_collector.close()
        super().close()
        self.components.close()

    def open_registry(self) -> AgentRegistry:
        """Return the known agents over a connection of their own, for use in another thread."""
        return self.components.open_registry()

    def open_subscriptions(self) -> Subscriptions:
        """Return the subscriptions over a connection of their own, for use in another thread."""
        return self.components.open_subscriptions()

    def _note_dead_letter(
        self, queue: str, message_id: str | None, reason: str, worker: str | None = None, **_: Any
    ) -> None:
        """Record that a message to an agent became a dead letter."""
        if message_id is not None and queue.startswith(AGENT_QUEUES):
            fact = MessageFact(message_id=message_id, event=MessageEvent.DEAD, error=reason, worker=worker)
            self.receipts.note(fact)

    def _finish(self, **_: Any) -> None:
        """Let no process of a worker end with something of its own still to be sent or recorded."""
        self.components.finish()


def create_app(main: str | None = None, **config: Any) -> AgentApp:
    """Return a new application.

    Args:
        main: name of the application, or None.
        config: Celery's settings in lower case, and this package's: ``broker_url``, ``result_backend``,
            ``waooaw_sender``, … The variables ``CELERY_BROKER_URL``, ``CELERY_RESULT_BACKEND`` and ``WAOOAW_*``
            win over them.

    Example:
        >>> app = create_app(broker_url="redis://localhost:6379/0")
    """
    app = AgentApp(main)
    app.conf.update(config)
    return app
