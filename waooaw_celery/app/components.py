"""The parts that an application of agents is composed of."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from waooaw_celery.app.celery_configuration import check_server_urls, make_packer, warn_of_overrides
from waooaw_celery.app.publishing.large_payloads import LargePayloads, open_store
from waooaw_celery.app.publishing.message_factory import MessageFactory
from waooaw_celery.app.publishing.publish_settings import SettingsReader
from waooaw_celery.app.publishing.publisher import Publisher
from waooaw_celery.app.publishing.task_publisher import TaskPublisher
from waooaw_celery.app.publishing.task_templates import TaskTemplates
from waooaw_celery.app.sender_counts import check_counts_senders, waiting_count_of_sender
from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.broker.dead_letters.queue import DeadLetterQueue
from waooaw_celery.discovery.cache import DirectoryCache
from waooaw_celery.discovery.contracts.known import KnownContracts
from waooaw_celery.discovery.health.outcomes import Outcomes
from waooaw_celery.discovery.loads import waiting_count, waiting_counts
from waooaw_celery.discovery.selector import Selector
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.limits.admission_control import AdmissionControl
from waooaw_celery.limits.configured import configured_limiter
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.limits.queue_limit import QueueLimit
from waooaw_celery.messages.queues import check_ordered, driver_type, first_url
from waooaw_celery.messages.receipt import ReceiptStore
from waooaw_celery.results.collector import ResultCollector
from waooaw_celery.settings import WaooawSettings
from waooaw_celery.store.agents.redis import RedisAgentRegistry
from waooaw_celery.store.agents.registry import AgentRegistry
from waooaw_celery.store.agents.shared_declarations import SharedDeclarations
from waooaw_celery.store.clock_reading import Source, redis_source
from waooaw_celery.store.connection import Client, connect, is_redis, store_url
from waooaw_celery.store.housekeeping import Housekeeping
from waooaw_celery.store.keys import key_prefix
from waooaw_celery.store.receipts import RedisReceipts
from waooaw_celery.store.reference_clock import ReferenceClock
from waooaw_celery.store.resilience.breaker_rules import BreakerLimits
from waooaw_celery.store.resilience.breakers import Breakers
from waooaw_celery.store.resilience.failures import failure_rule
from waooaw_celery.store.resilience.in_flight import InFlight
from waooaw_celery.store.resilience.redis_breaker_store import RedisBreakerStore
from waooaw_celery.store.resilience.redis_in_flight import RedisInFlight
from waooaw_celery.store.restrictions import RedisRestrictions, Restrictions
from waooaw_celery.store.subscriptions import RedisSubscriptions, Subscriptions
from waooaw_celery.wire.packer import Packer
from waooaw_celery.worker.cancellation import CancellationRegistry
from waooaw_celery.worker.health.late_handlers import LateHandlers
from waooaw_celery.worker.intake import Intake
from waooaw_celery.worker.outcomes.follow_ups import FollowUps
from waooaw_celery.worker.retries.retry_budget import RetryBudget

if TYPE_CHECKING:
    from waooaw_celery.ledger.database.engine import Database
    from waooaw_celery.ledger.ledger import Ledger
    from waooaw_celery.ledger.outbox import Outbox


class Components:
    """The parts of an application, each made when it is first needed and closed by ``close``.

    Assign a part to replace it in a test: ``app.components.receipts = MyReceipts()``. The ledger's modules are
    imported when there is a ledger: a process without one does not load SQLAlchemy.

    Args:
        app: the application, an AgentApp.

    Attributes:
        cancellations: the cancelled messages that this process, when it is a worker, knows of.
        intake: whether this process, when it is a worker, takes messages, and which it acknowledges later.
        outcomes: how the messages of the last minute ended in this process, when it is a worker.
        circuit_breaker: whether the broker is worth trying.
        late_handlers: gives handlers to this process, when it is a worker, that are registered while it runs.
        publish_settings: the settings of Celery that each publish needs.
        task_templates: what the task messages to one handler share.
        before_finish: called before ``finish``, such as to give workflows back.
        follow_ups: messages that follow a handler's end and could not be sent yet.
        sleep: how a thread waits for a number of seconds before it asks again.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.cancellations = CancellationRegistry()
        self.intake = Intake(app)
        self.outcomes = Outcomes()
        self.circuit_breaker = CircuitBreaker()
        self.late_handlers = LateHandlers(app)
        self.task_templates = TaskTemplates()
        self.publish_settings = SettingsReader(app)
        self.before_finish: list[Callable[[], None]] = []
        self.sleep: Callable[[float], None] = time.sleep
        self.follow_ups = FollowUps(lambda: self.reference_clock.now())

    @cached_property
    def settings(self) -> WaooawSettings:
        """The `waooaw_*` settings.

        Raises:
            ConfigurationError: a setting is unknown or wrong.
        """
        check_server_urls(self._app.conf)
        warn_of_overrides(self._app.conf)
        return WaooawSettings.read(self._app.conf, getattr(self._app, "namespace", None))

    @cached_property
    def driver(self) -> str:
        """Kombu's name for the kind of broker, such as ``redis`` or ``amqp``.

        Raises:
            ConfigurationError: no broker is set, or it ignores priority.
        """
        if not self._app.conf.broker_url:
            raise ConfigurationError(
                "no broker is set: give create_app(broker_url=...) or the variable CELERY_BROKER_URL, "
                "such as redis://localhost:6379/0 or amqp://guest:guest@localhost:5672//"
            )
        driver = driver_type(first_url(self._app.conf.broker_url) or "")
        check_ordered(driver, self.settings.allow_unordered)
        return driver

    # --- publishing

    @cached_property
    def publisher(self) -> Publisher:
        """The publishing pipeline."""
        return Publisher(self._app, self)

    @cached_property
    def task_publisher(self) -> TaskPublisher:
        """The publisher's entrance for Celery tasks."""
        return TaskPublisher(self._app)

    @cached_property
    def message_factory(self) -> MessageFactory:
        """Makes messages complete."""
        return MessageFactory(self._app)

    @cached_property
    def packer(self) -> Packer:
        """Writes the bodies of messages and answers.

        Raises:
            ConfigurationError: a codec is not installed, or an encryption key is malformed.
        """
        claims_from_redis = False
        with suppress(ConfigurationError):  # the broker's URL: what connects to it reports that
            claims_from_redis = self._app.driver == "redis" and self._app.claims
        return make_packer(self._app.conf, self.settings, bytes_become_base64=claims_from_redis)

    @cached_property
    def large_payloads(self) -> LargePayloads:
        """Stores and loads the payloads that travel by reference."""
        settings = self.settings
        return LargePayloads(
            settings.reference_above,
            settings.retention,
            self.packer.caps,
            lambda: open_store(settings.reference_store, self.has_ledger, lambda: self.database),
        )

    @property
    def has_large_payloads(self) -> bool:
        """Whether there is a store of large payloads: a ledger, or the setting ``waooaw_reference_store``."""
        return self.has_ledger or self.settings.reference_store is not None

    @cached_property
    def limiter(self) -> RateLimiter:
        """The rate limiter. It counts all messages when ``waooaw_rate_limit`` is set.

        Otherwise it counts the messages of agents whose quota was set at run time.

        Raises:
            ConfigurationError: a limit is malformed, or there is no Redis to count in.
        """
        return configured_limiter(
            *(self.settings, self._app.conf.result_backend, first_url(self._app.conf.broker_url)),
            prefix=key_prefix(self._app.conf),
            restrictions=lambda: self.restrictions,
        )

    @cached_property
    def admission_control(self) -> AdmissionControl:
        """Refuses paused senders, and counts messages.

        Raises:
            ConfigurationError: a limit is malformed, or there is no Redis to count in.
        """
        if self.settings.limited:
            _ = self.limiter  # so that a wrong setting is found at the start
        return AdmissionControl(
            lambda: self.limiter,
            self.receipts,
            self.restrictions,
            self.reference_clock.now,
            counts_all=self.settings.limited,
            queue_limits=self._queue_limits(),
        )

    def _queue_limits(self) -> list[QueueLimit]:
        """Return the limits of what waits in a queue.

        Raises:
            ConfigurationError: the messages of a sender in a queue cannot be counted.
        """
        limits, settings = [], self.settings
        if settings.max_waiting_per_sender is not None:
            check_counts_senders(self._app)
            count = partial(waiting_count_of_sender, self._app)
            limits.append(QueueLimit(settings.max_waiting_per_sender, count, by_sender=True))
        if settings.max_waiting is not None:
            limits.append(QueueLimit(settings.max_waiting, partial(waiting_count, self._app)))
        return limits

    @cached_property
    def retry_budget(self) -> RetryBudget:
        """The retries of requests that this process, when it is a worker, still may make."""
        return RetryBudget(self.settings.retry_budget)

    @cached_property
    def result_collector(self) -> ResultCollector:
        """Collects the answers that this process waits for."""
        return ResultCollector(self._app)

    @cached_property
    def dead_letters(self) -> DeadLetterQueue:
        """The broker's dead letters: ``list``, ``get``, ``retry``, ``discard``."""
        return DeadLetterQueue(self._app)

    # --- what is known: in the ledger, or in Redis where there is no ledger

    @cached_property
    def registry(self) -> AgentRegistry:
        """The known agents."""
        return self.open_registry()

    def open_registry(self) -> AgentRegistry:
        """Return the known agents over a connection of their own, for use in another thread."""
        if self.has_ledger:
            from waooaw_celery.ledger.agents import LedgerAgentRegistry

            shared = SharedDeclarations(self._redis_registry()) if self.has_redis else None
            return LedgerAgentRegistry(self._open_database(), self.settings.agents, lambda: self.ledger_id, shared)
        return self._redis_registry()

    def _redis_registry(self) -> RedisAgentRegistry:
        return RedisAgentRegistry(self._connect(), self.settings.agents, key_prefix(self._app.conf))

    @cached_property
    def directory(self) -> DirectoryCache:
        """The agents as this process knows them, at most one second old."""
        return DirectoryCache(self.open_registry, partial(waiting_counts, self._app))

    @cached_property
    def selector(self) -> Selector:
        """Chooses the agent that gets a message to a capability."""
        return Selector(self.directory, self.settings.routing_policy, lambda: self.breakers.refusing())

    @cached_property
    def contracts(self) -> KnownContracts:
        """The contracts of other agents' methods, by which requests are checked."""
        return KnownContracts(lambda: self.registry)

    @cached_property
    def subscriptions(self) -> Subscriptions:
        """The known subscriptions."""
        return self.open_subscriptions()

    def open_subscriptions(self) -> Subscriptions:
        """Return the subscriptions over a connection of their own, for use in another thread."""
        if self.has_ledger:
            from waooaw_celery.ledger.subscriptions import LedgerSubscriptions

            return LedgerSubscriptions(self._open_database())
        return RedisSubscriptions(self._connect(), key_prefix(self._app.conf))

    @cached_property
    def restrictions(self) -> Restrictions:
        """Which senders are paused, and which have a quota that was set at run time."""
        if self.has_ledger:
            from waooaw_celery.ledger.restrictions import LedgerRestrictions

            return LedgerRestrictions(self.database)
        return RedisRestrictions(self._connect(), key_prefix(self._app.conf))

    @cached_property
    def breakers(self) -> Breakers:
        """The circuit breakers of agents: whether requests to them are let through."""
        settings = self.settings
        limits = BreakerLimits(settings.breaker_failures, settings.breaker_window, settings.breaker_open_seconds)
        if self.has_ledger:
            from waooaw_celery.ledger.resilience.breaker_store import LedgerBreakerStore

            return Breakers(LedgerBreakerStore(self.database, limits))
        return Breakers(RedisBreakerStore(self._connect(), limits, key_prefix(self._app.conf)))

    @cached_property
    def is_target_failure(self) -> Callable[[BaseException], bool]:
        """Tells whether an error of a request counts as a failure of its agent.

        Raises:
            ConfigurationError: the setting ``waooaw_breaker_is_failure`` names no function.
        """
        return failure_rule(self.settings.breaker_is_failure)

    @cached_property
    def in_flight(self) -> InFlight:
        """The open requests of agents to those that have a limit: in Redis, or in the ledger if there is none."""
        limits = self.settings.max_in_flight
        if self.has_ledger and not self.has_redis:
            from waooaw_celery.ledger.resilience.in_flight import LedgerInFlight

            return LedgerInFlight(self.database, limits)
        return RedisInFlight(self._connect(), limits, key_prefix(self._app.conf))

    @cached_property
    def receipts(self) -> ReceiptStore:
        """The receipts of messages."""
        return self.ledger if self.has_ledger else self._redis_receipts()

    def _redis_receipts(self) -> RedisReceipts:
        keep_seconds, prefix = self.settings.receipt_seconds, key_prefix(self._app.conf)
        return RedisReceipts(self._connect(), keep_seconds, self.reference_clock, prefix)

    @cached_property
    def reference_clock(self) -> ReferenceClock:
        """The time by which messages expire and facts are recorded, the same for all processes.

        It is the clock of the ledger's database, or of the Redis that stores receipts where there is no ledger.
        """
        if self.has_ledger:
            from waooaw_celery.ledger.database import clock

            return ReferenceClock(clock.NAME, clock.source_of(self.database))
        try:
            url = self._store_url()
        except ConfigurationError:  # nothing can be sent without a store: each send says so
            return ReferenceClock()
        return ReferenceClock("Redis", redis_source(partial(connect, url)))

    def witnesses(self) -> dict[str, Source]:
        """Return the clocks, by name, that a purge compares with the ledger's: that of Redis, if there is one."""
        try:
            return {"Redis": redis_source(partial(connect, self._store_url()))}
        except ConfigurationError:
            return {}

    @cached_property
    def housekeeping(self) -> Housekeeping | None:
        """When each periodic task ran last, in Redis; None: there is none."""
        return Housekeeping(self._connect(), key_prefix(self._app.conf)) if self.has_redis else None

    # --- the ledger

    @property
    def has_ledger(self) -> bool:
        """Whether the setting ``waooaw_database_url`` names a ledger."""
        return self.settings.database_url is not None

    @property
    def has_store(self) -> bool:
        """Whether the settings name a store of agents and receipts: a ledger, or a Redis."""
        return self.has_ledger or self.has_redis

    @property
    def has_redis(self) -> bool:
        """Whether the settings name a Redis, in which processes without a ledger store agents and receipts."""
        return any(is_redis(url) for url in self._redis_urls())

    @cached_property
    def ledger_id(self) -> str | None:
        """The id of this process's ledger; None: it has none.

        Raises:
            AuditUnavailable: it was not read yet, and the database does not answer.
        """
        if not self.has_ledger:
            return None
        from waooaw_celery.ledger.database.identity import ledger_id

        return ledger_id(self.database)

    @cached_property
    def database(self) -> Database:
        """The ledger's database.

        Raises:
            ConfigurationError: no ledger is set.
        """
        return self._open_database()

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger: ``MessageAuditTrail(app.ledger)`` answers questions.

        Raises:
            ConfigurationError: no ledger is set, or its spool cannot be written.
        """
        from waooaw_celery.ledger.ledger import Ledger
        from waooaw_celery.ledger.sender_receipts import SenderReceipts

        settings = self.settings
        ledger = Ledger(
            self.database,
            settings.retention,
            settings.audit_mode,
            settings.spool_folder,
            settings.lost_seconds,
            self.reference_clock,
            SenderReceipts(self._redis_receipts) if self.has_redis else None,
            lambda reference: self.large_payloads.load(reference),
        )
        ledger.spool.check()
        return ledger

    @cached_property
    def outbox(self) -> Outbox:
        """Records messages in transactions of other code, and publishes them when those are committed.

        Raises:
            ConfigurationError: no ledger is set.
        """
        from waooaw_celery.ledger.outbox import Outbox

        return Outbox(self.ledger, self.publisher.publish_recorded)

    # --- start and end

    def check(self) -> None:
        """Check at start-up what would otherwise fail at the first message.

        Raises:
            ConfigurationError: a setting is missing, misspelt or impossible.
        """
        had_ledger = "ledger" in self.__dict__
        _ = self.settings, self.driver, self.receipts, self.admission_control, self.packer
        _ = self.selector.default_policy, self.is_target_failure
        if self.large_payloads.is_on or self.settings.reference_store is not None:
            _ = self.large_payloads.store
        if self.has_ledger:
            from waooaw_celery.ledger.database.version import check_version

            check_version(self.database)
            _ = self.ledger_id  # read before the pool forks
            if had_ledger:  # a new one has just been checked
                self.ledger.spool.check()

    def flush(self) -> None:
        """Write what this process has recorded and not written yet; it may do more afterwards."""
        if "receipts" in self.__dict__:
            self.receipts.flush()

    def finish(self) -> None:
        """Send and record what this process still holds, before it ends."""
        for call in self.before_finish:
            call()
        self.follow_ups.close()
        if "receipts" in self.__dict__:
            self.receipts.finish()

    def close(self) -> None:
        """Close every part that was made."""
        for name in (
            "result_collector",
            "directory",
            "registry",
            "subscriptions",
            "restrictions",
            "breakers",
            "in_flight",
            "receipts",
            "limiter",
            "ledger",
            "database",
        ):
            if name in self.__dict__:
                getattr(self, name).close()
        if (housekeeping := self.__dict__.get("housekeeping")) is not None:
            housekeeping.close()

    def _open_database(self) -> Database:
        from waooaw_celery.ledger.database.engine import Database, database_url

        url = self.settings.database_url
        if url is None:
            raise ConfigurationError(
                "there is no ledger: set waooaw_database_url (or WAOOAW_DATABASE_URL), such as "
                "postgresql://user:password@host/name, and run `waooaw db upgrade`"
            )
        return Database(database_url(url))

    def _connect(self) -> Client:
        return connect(self._store_url())

    def _store_url(self) -> str:
        return store_url(*self._redis_urls())

    def _redis_urls(self) -> tuple[str | None, str | None, str | None]:
        conf = self._app.conf
        return self.settings.redis_url, conf.result_backend, first_url(conf.broker_url)
