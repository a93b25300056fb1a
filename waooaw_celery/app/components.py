"""The parts that an application of agents is composed of."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from waooaw_celery.app.celery_configuration import make_packer
from waooaw_celery.app.message_factory import MessageFactory
from waooaw_celery.app.publisher import Publisher
from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.broker.dead_letters.queue import DeadLetterQueue
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.limits.admission_control import AdmissionControl
from waooaw_celery.limits.configured import configured_limiter
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.messages.queues import check_ordered, driver_type, first_url
from waooaw_celery.messages.receipt import ReceiptStore
from waooaw_celery.results.collector import ResultCollector
from waooaw_celery.settings import WaooawSettings
from waooaw_celery.store.agents import AgentRegistry, RedisAgentRegistry
from waooaw_celery.store.clock_reading import Source, redis_source
from waooaw_celery.store.connection import Client, connect, store_url
from waooaw_celery.store.receipts import RedisReceipts
from waooaw_celery.store.reference_clock import ReferenceClock
from waooaw_celery.store.subscriptions import RedisSubscriptions, Subscriptions
from waooaw_celery.wire.packer import Packer
from waooaw_celery.worker.cancellation import CancellationRegistry
from waooaw_celery.worker.intake import Intake
from waooaw_celery.worker.outcomes.follow_ups import FollowUps

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
        circuit_breaker: whether the broker is worth trying.
        follow_ups: messages that follow a handler's end and could not be sent yet.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.cancellations = CancellationRegistry()
        self.intake = Intake(app)
        self.circuit_breaker = CircuitBreaker()
        self.follow_ups = FollowUps(lambda: self.reference_clock.now())

    @cached_property
    def settings(self) -> WaooawSettings:
        """The `waooaw_*` settings.

        Raises:
            ConfigurationError: a setting is unknown or wrong.
        """
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
    def message_factory(self) -> MessageFactory:
        """Makes messages complete."""
        return MessageFactory(self._app)

    @cached_property
    def packer(self) -> Packer:
        """Writes the bodies of messages and answers.

        Raises:
            ConfigurationError: a codec is not installed, or an encryption key is malformed.
        """
        return make_packer(self._app.conf, self.settings)

    @cached_property
    def limiter(self) -> RateLimiter:
        """The rate limiter. Messages are counted when ``waooaw_rate_limit`` is set.

        Raises:
            ConfigurationError: a limit is malformed, or there is no Redis to count in.
        """
        return configured_limiter(
            self.settings, self._app.conf.result_backend, first_url(self._app.conf.broker_url)
        )

    @cached_property
    def admission_control(self) -> AdmissionControl | None:
        """The rate limit of the publishing pipeline; None when no agent is limited."""
        if not self.settings.limited:
            return None
        return AdmissionControl(self.limiter, self.receipts, self.reference_clock.now)

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

            return LedgerAgentRegistry(self._open_database(), self.settings.agents)
        return RedisAgentRegistry(self._connect(), self.settings.agents)

    @cached_property
    def subscriptions(self) -> Subscriptions:
        """The known subscriptions."""
        return self.open_subscriptions()

    def open_subscriptions(self) -> Subscriptions:
        """Return the subscriptions over a connection of their own, for use in another thread."""
        if self.has_ledger:
            from waooaw_celery.ledger.subscriptions import LedgerSubscriptions

            return LedgerSubscriptions(self._open_database())
        return RedisSubscriptions(self._connect())

    @cached_property
    def receipts(self) -> ReceiptStore:
        """The receipts of messages."""
        if self.has_ledger:
            return self.ledger
        return RedisReceipts(self._connect(), self.settings.receipt_seconds, self.reference_clock)

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

    # --- the ledger

    @property
    def has_ledger(self) -> bool:
        """Whether the setting ``waooaw_database_url`` names a ledger."""
        return self.settings.database_url is not None

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
            ConfigurationError: no ledger is set.
        """
        from waooaw_celery.ledger.ledger import Ledger

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
        _ = self.settings, self.driver, self.receipts, self.admission_control, self.packer
        if self.has_ledger:
            from waooaw_celery.ledger.database.version import check_version

            check_version(self.database)
            self.ledger.spool.check()

    def finish(self) -> None:
        """Send and record what this process still holds, before it ends."""
        self.follow_ups.close()
        if "receipts" in self.__dict__:
            self.receipts.finish()

    def close(self) -> None:
        """Close every part that was made."""
        for name in ("result_collector", "registry", "subscriptions", "receipts", "limiter", "ledger", "database"):
            if name in self.__dict__:
                getattr(self, name).close()

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
        others = self._app.conf.result_backend, first_url(self._app.conf.broker_url)
        return store_url(self.settings.redis_url, *others)
