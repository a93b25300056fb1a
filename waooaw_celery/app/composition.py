"""What an application of agents is made of, and how the parts are put together."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property, partial
from typing import Any

from celery import Celery
from celery.signals import worker_process_shutdown, worker_shutdown

from waooaw_celery.app.celery_configuration import AgentAMQP, add_defaults, make_packer, transport_options
from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.broker.dead_letters.queue import DeadLetterQueue
from waooaw_celery.broker.redis.dead_lettering import dead_lettered
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.agents import LedgerAgentRegistry
from waooaw_celery.ledger.database import clock as database_time
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.version import check_version
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.subscriptions import LedgerSubscriptions
from waooaw_celery.limits.configured import configured_limiter
from waooaw_celery.limits.gate import AdmissionControl
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.messages.queues import (
    AGENT_QUEUES,
    HandlerName,
    agent_queue,
    check_ordered,
    driver_type,
    first_url,
)
from waooaw_celery.messages.receipt import MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.messages.topics.schemas import SchemaRegistry
from waooaw_celery.results.collector import ResultCollector
from waooaw_celery.settings import RedisTransport, WaooawSettings
from waooaw_celery.store.agents import AgentRegistry, RedisAgentRegistry
from waooaw_celery.store.clock_reading import Source, redis_source
from waooaw_celery.store.connection import Client, connect, store_url
from waooaw_celery.store.receipts import RedisReceipts
from waooaw_celery.store.reference_clock import ReferenceClock
from waooaw_celery.store.subscriptions import RedisSubscriptions, Subscription, Subscriptions
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import install_codecs
from waooaw_celery.wire.formats import install_formats
from waooaw_celery.wire.packer import Packer
from waooaw_celery.worker import signals
from waooaw_celery.worker.cancellation import CancellationRegistry
from waooaw_celery.worker.execution.event_loop import close_event_loop
from waooaw_celery.worker.execution.pools import SafePool
from waooaw_celery.worker.health.clock import ReportClock
from waooaw_celery.worker.health.heartbeat import Heartbeat
from waooaw_celery.worker.health.watchdog import Watchdog
from waooaw_celery.worker.intake import Intake, WatchIntake
from waooaw_celery.worker.outcomes import replies
from waooaw_celery.worker.outcomes.follow_ups import FollowUps
from waooaw_celery.worker.remote_control import CancelListener
from waooaw_celery.worker.task import AgentTask


class WiredCelery(Celery):
    """A Celery application with what agents need: settings, known agents, receipts and the ledger.

    Attributes:
        agents: the agents whose handlers are in this application, and the names of these.
        capabilities: the tags of these agents.
        subscribed: their subscriptions.
        schemas: the JSON Schemas of topics that this application's code registers.
    """

    amqp_cls: Any = AgentAMQP

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agents: dict[str, list[str]] = {}
        self.capabilities: dict[str, tuple[str, ...]] = {}
        self.subscribed: list[Subscription] = []
        self.schemas = SchemaRegistry()
        install_formats()
        install_codecs()
        super().__init__(*args, **kwargs)
        self.on_after_configure.connect(add_defaults, weak=False)
        self.steps["worker"].add(SafePool)
        self.steps["worker"].add(Heartbeat)
        self.steps["worker"].add(ReportClock)
        self.steps["worker"].add(Watchdog)
        self.steps["worker"].add(WatchIntake)
        self.steps["consumer"].add(CancelListener)
        #: What this process, when it is a worker, knows of cancelled messages.
        self.cancellations = CancellationRegistry()
        #: Whether it takes messages, and which it does not acknowledge yet.
        self.intake = Intake(self)
        #: Whether the broker is worth trying.
        self.circuit_breaker = CircuitBreaker()
        replies.connect()
        signals.connect()
        #: What follows a handler's end and could not be sent yet.
        self.follow_ups = FollowUps(lambda: self.reference_clock.now())
        worker_process_shutdown.connect(self._flush)
        worker_shutdown.connect(self._flush)
        for ended in (worker_process_shutdown, worker_shutdown):
            ended.connect(close_event_loop)
        dead_lettered.connect(self._note_dead)

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
    def reference_clock(self) -> ReferenceClock:
        """The time by which messages expire and facts are written down, the same for all processes.

        The ledger's database's, or that of the Redis that keeps agents and receipts where there is no ledger.
        """
        if self._database is not None:
            return ReferenceClock(database_time.NAME, database_time.source_of(self._database))
        try:
            url = self._store_url()
        except ConfigurationError:  # no message can be sent without one; whoever sends is told
            return ReferenceClock()
        return ReferenceClock("Redis", redis_source(partial(connect, url)))

    def witnesses(self) -> dict[str, Source]:
        """Return the clocks, by name, that a purge compares with the ledger's: Redis's, where there is one."""
        try:
            return {"Redis": redis_source(partial(connect, self._store_url()))}
        except ConfigurationError:
            return {}

    def now(self) -> datetime:
        """Return the time, by the reference clock: Celery makes moments of countdowns with it."""
        return self.reference_clock.now().astimezone(self.timezone)

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
    def subscriptions(self) -> Subscriptions:
        """Who wants which events."""
        return self.open_subscriptions()

    def open_subscriptions(self) -> Subscriptions:
        """Return the subscriptions over a connection of their own, for a thread beside the others."""
        if self._database is not None:
            return LedgerSubscriptions(Database(self._database.url))
        return RedisSubscriptions(self._connect())

    @cached_property
    def receipts(self) -> ReceiptStore:
        """What became of each message."""
        if self._database is not None:
            return self.ledger
        return RedisReceipts(self._connect(), self.settings.receipt_seconds, self.reference_clock)

    @cached_property
    def result_collector(self) -> ResultCollector:
        """The answers that this process waits for."""
        return ResultCollector(self)

    @cached_property
    def dead_letters(self) -> DeadLetterQueue:
        """What died on the way or in a handler, kept by the broker: ``list``, ``get``, ``retry``, ``discard``."""
        return DeadLetterQueue(self)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger: ``MessageAuditTrail(app.ledger)`` answers the questions.

        Raises:
            ConfigurationError: none is set.
        """
        settings = self.settings
        return Ledger(
            self.database,
            settings.retention,
            settings.audit_mode,
            settings.spool_folder,
            settings.lost_seconds,
            self.reference_clock,
        )

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
        return connect(self._store_url())

    def _store_url(self) -> str:
        others = self.conf.result_backend, first_url(self.conf.broker_url)
        return store_url(self.settings.redis_url, *others)

    @cached_property
    def limiter(self) -> RateLimiter:
        """What counts what agents send; the door asks it when ``waooaw_rate_limit`` is set.

        Raises:
            ConfigurationError: a limit cannot be read, or there is no Redis to count in.
        """
        return configured_limiter(self.settings, self.conf.result_backend, first_url(self.conf.broker_url))

    @cached_property
    def gate(self) -> AdmissionControl | None:
        """The limit in the door, or None when nobody is limited."""
        return (
            AdmissionControl(self.limiter, self.receipts, self.reference_clock.now)
            if self.settings.limited
            else None
        )

    @cached_property
    def packer(self) -> Packer:
        """What writes the bodies of messages and answers.

        Raises:
            ConfigurationError: there is no such codec, or an encryption key is none.
        """
        return make_packer(self.conf, self.settings)

    @property
    def _caps(self) -> Caps:
        try:
            return self.packer.caps
        except ConfigurationError:  # Celery prints the broker before the worker's check says it
            return Caps()

    def check(self) -> None:
        """Check at start-up what would otherwise fail at the first message.

        Raises:
            ConfigurationError: a setting is missing, misspelt or impossible.
        """
        _ = self.settings, self.driver, self.receipts, self.gate, self.packer
        if self._database is not None:
            check_version(self._database)
            self.ledger.spool.check()

    def _note_dead(
        self, queue: str, message_id: str | None, reason: str, worker: str | None = None, **_: Any
    ) -> None:
        """Write down that a message to an agent became a dead letter."""
        if message_id is not None and queue.startswith(AGENT_QUEUES):
            self.receipts.note(
                MessageFact(message_id=message_id, event=MessageEvent.DEAD, error=reason, worker=worker)
            )

    def _flush(self, **_: Any) -> None:
        """Let no pool process end with something of its own still to be sent or to be written."""
        self.follow_ups.close()
        if "receipts" in self.__dict__:
            self.receipts.finish()

    def close(self) -> None:
        """Close all connections."""
        if "result_collector" in self.__dict__:
            self.result_collector.close()
        super().close()
        for part in ("registry", "subscriptions", "receipts", "limiter", "ledger", "_database"):
            if self.__dict__.get(part) is not None:  # made so far
                getattr(self, part).close()

    def written_as(
        self, agent: str, serializer: str | None = None, compression: str | None = None
    ) -> tuple[str, str | None]:
        """Return the format and the codec of what is sent to an agent.

        Args:
            agent: the recipient.
            serializer: what the message says, or None.
            compression: what the message says, or None.

        Returns:
            What the message says, or else the setting for the agent, or else the application's.
        """
        settings = self.settings
        return (
            serializer or settings.agent_serializers.get(agent) or self.conf.task_serializer,
            compression or settings.agent_compressions.get(agent) or self.conf.task_compression,
        )

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
    def _letters_max(self) -> int | None:
        try:
            return self.settings.dead_letters_max
        except ConfigurationError:  # the worker's check says it in a moment
            return None

    @property
    def claims(self) -> bool:
        """Whether our transport carries messages on Redis, and not Kombu's."""
        try:
            return self.settings.redis_transport is RedisTransport.WAOOAW
        except ConfigurationError:  # the worker's check says it in a moment
            return True

    @property
    def transport_options(self) -> dict[str, Any]:
        """Options of the broker's transport: a project's own, and ours for what it does not say."""
        return transport_options(self.conf, self.claims, self._caps, letters=self._letters_max)

    def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
        """Return a connection for consuming, with our deadlines."""
        return super().connection_for_read(url, **self._with_options(url, kwargs))

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
        """Return a connection for publishing, with our deadlines."""
        return super().connection_for_write(url, **self._with_options(url, kwargs, publishes=True))

    def _with_options(self, url: str | None, kwargs: dict[str, Any], *, publishes: bool = False) -> dict[str, Any]:
        given = kwargs.get("transport_options") or {}
        ours = transport_options(
            self.conf, self.claims, self._caps, url, publishes=publishes, letters=self._letters_max
        )
        return {**kwargs, "transport_options": {**ours, **given}}

    @property
    def visibility_timeout(self) -> float | None:
        """Seconds after which the broker hands out again what a worker still holds; None where it does not.

        Our transport's workers renew what they hold, so that no handler is too long and no countdown too far.
        """
        if self.driver != "redis" or self.claims:
            return None
        return float(self.transport_options["visibility_timeout"])
