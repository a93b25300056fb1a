"""The application: Celery with a publisher, through which every message to an agent passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.result import AsyncResult
from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    celeryd_init,
    worker_process_shutdown,
    worker_shutdown,
)

from waooaw_celery.app.celery_configuration import AgentAMQP, add_defaults, check_worker_urls, transport_options
from waooaw_celery.app.components import Components
from waooaw_celery.app.log_format import set_log_format
from waooaw_celery.app.part import Part
from waooaw_celery.app.publishing.message_factory import MessageFactory
from waooaw_celery.app.publishing.publisher import Publisher
from waooaw_celery.app.publishing.task_publication import handler_of
from waooaw_celery.app.publishing.task_publisher import TaskPublisher
from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.broker.dead_letters.queue import DeadLetterQueue
from waooaw_celery.broker.redis.dead_lettering import dead_lettered
from waooaw_celery.discovery.cache import DirectoryCache
from waooaw_celery.discovery.contracts.known import KnownContracts
from waooaw_celery.discovery.declaration import Declaration
from waooaw_celery.discovery.health.outcomes import Outcomes
from waooaw_celery.discovery.selector import Selector
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.limits.admission_control import AdmissionControl
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.messages.log.loggers import escape_log
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import AGENT_QUEUES, HandlerName, agent_queue
from waooaw_celery.messages.receipt import MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.messages.topics.schemas import SchemaRegistry
from waooaw_celery.messages.urls import check_urls
from waooaw_celery.results.collector import ResultCollector
from waooaw_celery.settings import RedisTransport, WaooawSettings
from waooaw_celery.store.agents.registry import AgentRegistry
from waooaw_celery.store.reference_clock import ReferenceClock
from waooaw_celery.store.resilience.breakers import Breakers
from waooaw_celery.store.resilience.in_flight import InFlight
from waooaw_celery.store.restrictions import Restrictions
from waooaw_celery.store.subscriptions import Subscription, Subscriptions
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.entry_points import register_protobuf
from waooaw_celery.wire.packer import Packer
from waooaw_celery.worker import signals
from waooaw_celery.worker.cancellation import CancellationRegistry
from waooaw_celery.worker.discovery.agent_health import WatchHealth
from waooaw_celery.worker.discovery.drain import DrainAgents
from waooaw_celery.worker.execution.event_loop import close_event_loop
from waooaw_celery.worker.execution.pools import SafePool
from waooaw_celery.worker.health.clock import ReportClock
from waooaw_celery.worker.health.heartbeat import Heartbeat
from waooaw_celery.worker.health.late_handlers import TakeLateHandlers
from waooaw_celery.worker.health.watchdog import Watchdog
from waooaw_celery.worker.intake import Intake, WatchIntake
from waooaw_celery.worker.outcomes import replies
from waooaw_celery.worker.outcomes.follow_ups import FollowUps
from waooaw_celery.worker.outcomes.hidden_payloads import hide_in_log
from waooaw_celery.worker.remote_control import CancelListener, broadcast_beat
from waooaw_celery.worker.retries.retry_budget import RetryBudget
from waooaw_celery.worker.scaling.pool_scaling import PoolScaling

if TYPE_CHECKING:
    from waooaw_celery.ledger.database.engine import Database
    from waooaw_celery.ledger.ledger import Ledger
    from waooaw_celery.ledger.outbox import Outbox


class AgentApp(Celery):
    """A Celery application through which agents talk.

    It does everything that Celery does. ``send_task``, which ``.delay``, ``apply_async``, canvas, retries and beat
    all call, gives a task that is an agent's handler its envelope, queue, priority and expiry, and refuses a
    message without a possible recipient. Ordinary tasks are published as Celery publishes them.

    Attributes:
        agents: the agents whose handlers are in this application, each with the names of its handlers.
        capabilities: the capabilities of these agents.
        declarations: what the code of these agents declares about them.
        identities: the identities of those that have one, such as a DID.
        subscribed: their subscriptions.
        workflows: the functions of their workflows, by name and version.
        schemas: the JSON Schemas of topics that this application's code registers.
        components: the parts that the application is composed of.
    """

    amqp_cls: Any = AgentAMQP

    settings: Part[WaooawSettings] = Part()
    driver: Part[str] = Part()
    publisher: Part[Publisher] = Part()
    task_publisher: Part[TaskPublisher] = Part()
    message_factory: Part[MessageFactory] = Part()
    packer: Part[Packer] = Part()
    limiter: Part[RateLimiter] = Part()
    admission_control: Part[AdmissionControl] = Part()
    result_collector: Part[ResultCollector] = Part()
    dead_letters: Part[DeadLetterQueue] = Part()
    registry: Part[AgentRegistry] = Part()
    directory: Part[DirectoryCache] = Part()
    selector: Part[Selector] = Part()
    contracts: Part[KnownContracts] = Part()
    subscriptions: Part[Subscriptions] = Part()
    restrictions: Part[Restrictions] = Part()
    breakers: Part[Breakers] = Part()
    in_flight: Part[InFlight] = Part()
    receipts: Part[ReceiptStore] = Part()
    reference_clock: Part[ReferenceClock] = Part()
    database: Part[Database] = Part()
    ledger_id: Part[str | None] = Part()
    ledger: Part[Ledger] = Part()
    outbox: Part[Outbox] = Part()
    cancellations: Part[CancellationRegistry] = Part()
    intake: Part[Intake] = Part()
    outcomes: Part[Outcomes] = Part()
    circuit_breaker: Part[CircuitBreaker] = Part()
    follow_ups: Part[FollowUps] = Part()
    retry_budget: Part[RetryBudget] = Part()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agents: dict[str, list[str]] = {}
        self.capabilities: dict[str, tuple[str, ...]] = {}
        self.identities: dict[str, str] = {}
        self.declarations: dict[str, Declaration] = {}
        self.subscribed: list[Subscription] = []
        self.workflows: dict[str, dict[int, Any]] = {}
        self.schemas = SchemaRegistry()
        self.components = Components(self)
        register_protobuf()
        super().__init__(*args, **kwargs)
        self.on_after_configure.connect(add_defaults, weak=False)
        self.steps["worker"].update((SafePool, Heartbeat, TakeLateHandlers, ReportClock, Watchdog, WatchIntake))
        self.steps["worker"].update((PoolScaling, WatchHealth, DrainAgents))
        # By name: only a worker loads what serves health and metrics.
        self.steps["worker"].add("waooaw_celery.worker.monitoring.health_endpoint:HealthEndpoint")
        self.steps["worker"].add("waooaw_celery.worker.monitoring.tracing:Tracing")
        self.steps["consumer"].add(CancelListener)
        replies.connect()
        signals.connect()
        hide_in_log()
        for set_up in (after_setup_logger, after_setup_task_logger):
            set_up.connect(escape_log, weak=False, dispatch_uid="waooaw.escape_log")
            set_up.connect(set_log_format, weak=False, dispatch_uid="waooaw.set_log_format")
        celeryd_init.connect(check_worker_urls, weak=False, dispatch_uid="waooaw.check_worker_urls")
        dead_lettered.connect(self._note_dead_letter)
        for ended in (worker_process_shutdown, worker_shutdown):
            ended.connect(self._finish)

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
            name: an agent's handler, such as ``worker-1.get_status``, or any other task. ``target`` says which.
            args: positional arguments; a message's payload is the only one.
            kwargs: keyword arguments.
            countdown: seconds until the task may be handled.
            eta: the time from which it may be handled.
            message: the message, when the caller has made it.
            options: those of ``apply_async``; ``priority`` is a Priority or its name, and ``wait`` the seconds to
                wait at the sender's rate limit.

        Raises:
            RateLimitExceeded: the sender has reached its rate limit.
            SenderPaused: an operator has paused the sender.
            InvalidMessage: an argument cannot be written or is too large, or an option breaks a rule.
            UnknownSender: no agent sends.
            UnknownAgent: the queue is that of an agent that was never declared; NoHandler, UnknownMethod: the
                agent has no such handler.
            BrokerUnavailable: the broker refused or did not answer. It is not known whether it has the message,
                unless ``uncertain`` is False: then it does not.
            StoreUnavailable: the store does not answer; nothing was published.
            ConfigurationError: a setting is missing or wrong.
        """
        wait = options.pop("wait", None)
        options |= {"countdown": countdown, "eta": eta}
        return self.task_publisher.send(name, args, kwargs, options, message, wait)

    def target(self, task_name: str, options: Mapping[str, Any] = MappingProxyType({})) -> HandlerName | None:
        """Return whose handler a task is, or None for an ordinary Celery task.

        Args:
            task_name: name of the task.
            options: the options of ``send_task``: a queue, exchange or routing key says what the task is.

        Raises:
            StoreUnavailable: the store, which knows the agents, does not answer.
        """
        return handler_of(self, task_name, options)

    def now(self) -> datetime:
        """Return the time of the reference clock. Celery computes ETAs with it."""
        return self.reference_clock.now().astimezone(self.timezone)

    def consumed_agents(self) -> tuple[str, ...]:
        """Return the agents of this application whose queues its worker consumes (``-Q`` may leave some out)."""
        consumed = self.amqp.queues.consume_from
        return tuple(name for name in self.agents if agent_queue(name).name in consumed)

    def autodiscover_tasks(self, packages: Any = None, related_name: str = "tasks", force: bool = False) -> Any:
        """Import the modules ``tasks`` of packages, as Celery does, and their modules ``agents``.

        Args:
            packages: the packages, or a function that returns them; None: with Django, the installed apps.
            related_name: the name of the modules; another one than ``tasks`` is imported alone.
            force: whether to import them now, and not when the worker does.
        """
        result = super().autodiscover_tasks(packages, related_name, force)
        if related_name == "tasks":
            super().autodiscover_tasks(packages, "agents", force)
        return result

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
        settings, celery = self.settings, self.components.publish_settings.read()
        return (
            serializer or settings.agent_serializers.get(agent) or celery.serializer,
            compression or settings.agent_compressions.get(agent) or celery.compression,
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
        """Seconds until the broker redelivers an unacknowledged message; None if the worker renews leases."""
        if self.driver != "redis" or self.claims:
            return None
        return float(self.transport_options["visibility_timeout"])

    def _with_transport_options(
        self, url: str | None, kwargs: dict[str, Any], *, publishes: bool = False
    ) -> dict[str, Any]:
        check_urls("broker_url", url or (self.conf.broker_write_url if publishes else self.conf.broker_read_url))
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

    def announce_order(self) -> None:
        """Have all workers read at once what operators have ordered. Without it, they read it with a heartbeat."""
        broadcast_beat(self)

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

    def _finish(self, sender: Any = None, **_: Any) -> None:
        """Let no process of a worker end with something of its own still to be sent or recorded.

        Celery tells every application of the process when a worker ends. The worker of another one may run in a
        thread, and this application's goes on.
        """
        if getattr(sender, "app", self) is not self:
            self.components.flush()
            return
        self.components.finish()
        close_event_loop()


def create_app(main: str | None = None, **config: Any) -> AgentApp:
    """Return a new application.

    Args:
        main: name of the application, or None.
        config: Celery's settings in lower case, and this package's: ``broker_url``, ``result_backend``,
            ``waooaw_sender``, … The variables ``CELERY_BROKER_URL``, ``CELERY_RESULT_BACKEND`` and ``WAOOAW_*``
            win over them, and a ``SettingOverridden`` warning names both values where they differ.

    Example:
        >>> app = create_app(broker_url="redis://localhost:6379/0")
    """
    app = AgentApp(main)
    app.conf.update(config)
    return app
