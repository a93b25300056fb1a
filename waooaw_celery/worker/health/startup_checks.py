"""Checks before a worker starts: settings, of the worker and of its broker, that would lose or delay messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from amqp.exceptions import AccessRefused, AMQPError, NotAllowed
from celery.app.routes import MapRoute
from kombu import Queue
from kombu.exceptions import KombuError
from redis.exceptions import AuthenticationError, RedisError

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import AGENT_QUEUES, SYSTEM_QUEUE, queue_depth
from waooaw_celery.settings import AuditMode
from waooaw_celery.worker.batches.task import BatchTask
from waooaw_celery.worker.ordering.message_groups import key_policies
from waooaw_celery.worker.task import AgentTask

logger = get_logger(__name__)

#: RabbitMQ's default ``consumer_timeout``, in seconds: how long a consumer may hold a message.
CONSUMER_TIMEOUT = 1800.0
#: Celery's default queue. Programs that know nothing of agents send to it.
CELERY_QUEUE = "celery"


class BrokerFault(NamedTuple):
    """Something with which a broker may lose or repeat messages.

    Attributes:
        action: its name in the log, for programs.
        sentence: what it is, what follows, and what to change.
        is_fatal: whether a worker does not start with it.
    """

    action: str
    sentence: str
    is_fatal: bool = False


def check_time_limits(app: Any) -> None:
    """Check that no handler may run for longer than its message is held for it.

    Redis hands a message to another worker after ``visibility_timeout``. The ledger marks a message as FAILED
    after ``waooaw_lost_seconds``.

    Args:
        app: the application, an AgentApp.

    Raises:
        ConfigurationError: a handler may run longer; the text names it and both times.
    """
    lost_seconds = app.settings.lost_seconds if app.settings.database_url is not None else None
    deadlines = (
        (
            app.visibility_timeout,
            "Redis redelivers its message to another worker",
            "broker_transport_options['visibility_timeout']",
        ),
        (lost_seconds, "the ledger marks its message as lost", "waooaw_lost_seconds"),
    )
    for name, task in app.tasks.items():
        for seconds, consequence, setting in deadlines:
            if seconds is not None and isinstance(task, AgentTask):
                limit = _time_limit(app, task)
                if limit is None or limit >= seconds:
                    raise ConfigurationError(
                        f"{name} may run {_for_seconds(limit)}, and after {seconds:g} s {consequence}: "
                        f"give it a shorter time_limit, or raise {setting}"
                    )


def check_once(app: Any) -> None:
    """Check that handlers with ``once=True`` have a PostgreSQL ledger, where effect and note are one transaction.

    Args:
        app: the application, an AgentApp.

    Raises:
        ConfigurationError: there is such a handler, and no ledger in PostgreSQL.
    """
    for name, task in app.tasks.items():
        if getattr(task, "once", False) and not (app.settings.database_url and app.database.is_postgresql):
            raise ConfigurationError(
                f"{name} has once=True, which needs a ledger in PostgreSQL: set waooaw_database_url to "
                "postgresql://..."
            )


def check_batches(app: Any, worker: Any) -> None:
    """Check that a worker can collect batches for the handlers that take them.

    Args:
        app: the application, an AgentApp.
        worker: Celery's worker, which knows its pool's class.

    Raises:
        ConfigurationError: there is such a handler, and the worker has no event loop or a pool of greenlets.
    """
    for name, task in app.tasks.items():
        if isinstance(task, BatchTask) and (worker.pool_cls.is_green or not worker.use_eventloop):
            raise ConfigurationError(
                f"{name} has batch=, which this pool cannot collect: start the worker with --pool prefork, "
                "threads or solo, on Redis or RabbitMQ"
            )


def check_groups(app: Any) -> None:
    """Check that the broker can group messages, if the application wants it.

    Args:
        app: the application, an AgentApp.

    Raises:
        ConfigurationError: it cannot: it is no Redis, or Kombu's own transport carries the messages; or a setting
            has no effect.
    """
    settings = app.settings
    if settings.fair_weights and not settings.fair_queues:
        raise ConfigurationError("waooaw_fair_weights has no effect: set waooaw_fair_queues too")
    keyed = next(iter(key_policies(app)), None)
    if keyed is not None and app.driver == "amqp":
        _check_ledger_for_keys(settings, keyed)
        keyed = None
    wanted = f"{keyed} has key=" if keyed else "waooaw_fair_queues is set" if settings.fair_queues else None
    if wanted is None and settings.priority_share:
        wanted = "waooaw_priority_share is set"
    if wanted is None or (app.driver == "redis" and app.claims):
        return
    if app.driver == "redis":
        raise ConfigurationError(f"{wanted}, which Kombu's transport cannot do: remove waooaw_redis_transport")
    raise ConfigurationError(
        f"{wanted}, which needs Redis or Valkey as the broker: RabbitMQ decides by itself which message is next"
    )


def _check_ledger_for_keys(settings: Any, keyed: str) -> None:
    """Check that the ledger knows the order of messages, which RabbitMQ does not keep by key."""
    if settings.database_url is None:
        raise ConfigurationError(
            f"{keyed} has key=, which needs a ledger on RabbitMQ: set waooaw_database_url for the workers and all "
            "senders, or use Redis or Valkey as the broker"
        )
    if settings.audit_mode is not AuditMode.STRICT:
        raise ConfigurationError(
            f"{keyed} has key=, and on RabbitMQ each message must be in the ledger before it is published: set "
            "waooaw_audit_mode to strict, or use Redis or Valkey as the broker"
        )


def check_key_pool(app: Any, worker: Any) -> None:
    """Check that a worker on RabbitMQ can hold messages until it is the turn of their keys.

    Args:
        app: the application, an AgentApp.
        worker: Celery's worker, which knows its pool's class.

    Raises:
        ConfigurationError: it has a pool of greenlets, or no event loop.
    """
    keyed = next(iter(key_policies(app)), None)
    if keyed is not None and app.driver == "amqp" and (worker.pool_cls.is_green or not worker.use_eventloop):
        raise ConfigurationError(
            f"{keyed} has key=, which this pool cannot order on RabbitMQ: start the worker with --pool prefork, "
            "threads or solo"
        )


def check_broker(app: Any) -> None:
    """Check that the broker keeps the messages that it accepts; log a warning of those that it may lose.

    A broker that does not answer, or does not report its settings, is not waited for: Celery connects when it is
    back.

    Args:
        app: the application, an AgentApp.

    Raises:
        ConfigurationError: the broker removes messages when its memory is full, or refuses the login.
    """
    try:
        with app.connection_for_write() as connection:
            connection.connect()
            if app.driver == "redis":
                _report(redis_faults(connection.default_channel.client.info(), app.settings))
            elif app.driver == "amqp":
                _report(consumer_timeout_faults(app))
    except (AccessRefused, NotAllowed, AuthenticationError) as error:
        reason = str(getattr(error, "reply_text", error)).rstrip(".")
        raise ConfigurationError(
            f"the broker refused the login ({reason}): check the user name, the password and the virtual host in "
            "broker_url (or CELERY_BROKER_URL)"
        ) from error
    except (KombuError, RedisError, AMQPError, OSError) as error:
        logger.info(
            "the broker's settings could not be checked for message loss: %s",
            error,
            extra={"action": "broker_unchecked"},
        )


def check_queues(app: Any) -> None:
    """Log a warning of queues for ordinary tasks that this worker does not read.

    A worker of an application with agents reads their queues only. A queue counts if messages wait in it, or if
    ``task_default_queue`` or ``task_routes`` names it and ``-Q`` does not say which queues this worker reads.

    Args:
        app: the application, an AgentApp, after the worker has selected its queues.
    """
    queues = app.amqp.queues
    consumed = list(queues.consume_from)
    if not app.agents or not consumed:
        return
    named = {} if queues.is_selected else dict(_queues_of_settings(app))
    unread: dict[str, str] = {}
    try:
        with app.connection_for_write() as connection:
            for name in dict(_queues_of_settings(app)) | {CELERY_QUEUE: ""}:
                if name in consumed or name.startswith(AGENT_QUEUES) or name == SYSTEM_QUEUE:
                    continue
                waiting = queue_depth(connection, Queue(name)).total
                if waiting:
                    unread[name] = f"{name} holds {waiting} message{'s' if waiting > 1 else ''}"
                elif name in named:
                    unread[name] = f"{named[name]} names {name}"
    except (KombuError, RedisError, OSError) as error:
        logger.info("the queues could not be checked: %s", error, extra={"action": "queues_unchecked"})
    if unread:
        logger.warning(
            "this worker reads only %s, but %s: these tasks wait for ever unless another worker reads them. "
            "To read them here, start this worker with -Q %s",
            ", ".join(consumed),
            ", ".join(unread.values()),
            ",".join([*consumed, *unread]),
            extra={"action": "queues_unread"},
        )


def _queues_of_settings(app: Any) -> Iterator[tuple[str, str]]:
    """Yield the names of the queues that the settings name, each with its setting."""
    for route in app.amqp.routes or ():
        if isinstance(route, MapRoute):
            for target in (*route.map.values(), *route.patterns.values()):  # type: ignore[attr-defined]  # stubs
                queue = target.get("queue") if isinstance(target, Mapping) else target
                if isinstance(queue, str | Queue):
                    yield queue.name if isinstance(queue, Queue) else queue, "task_routes"
    if app.conf.task_default_queue:
        yield app.conf.task_default_queue, "task_default_queue"


def redis_faults(info: Mapping[str, Any], settings: Any) -> Iterator[BrokerFault]:
    """Yield the settings of a Redis with which it may lose messages.

    Args:
        info: its reply to INFO.
        settings: the application's `waooaw_*` settings.
    """
    policy, bounded = str(info.get("maxmemory_policy", "noeviction")), int(info.get("maxmemory", 0)) > 0
    if policy.startswith("allkeys") and bounded and not settings.allow_eviction:
        yield BrokerFault(
            "broker_evicts",
            f"the broker's Redis removes whole queues when its memory is full (maxmemory-policy {policy}): set it "
            "to noeviction, give the broker a Redis of its own, or accept the loss with waooaw_allow_eviction",
            is_fatal=True,
        )
    elif policy != "noeviction" and bounded:
        yield BrokerFault(
            "broker_evicts",
            "the broker's Redis removes keys when its memory is full (maxmemory-policy "
            f"{policy}): set it to noeviction",
        )
    if not int(info.get("aof_enabled", 0)):
        has_ledger = settings.database_url is not None
        consequence = "the ledger's recovery publishes them again" if has_ledger else "they are lost"
        yield BrokerFault(
            "broker_forgets",
            "the broker's Redis does not store messages on disk (appendonly no): after a crash of its server "
            f"{consequence}. Set appendonly yes",
        )


def consumer_timeout_faults(app: Any) -> Iterator[BrokerFault]:
    """Yield the handlers that may hold a message for longer than RabbitMQ allows.

    Args:
        app: the application, an AgentApp.
    """
    limits = {name: _time_limit(app, task) for name, task in app.tasks.items() if isinstance(task, AgentTask)}
    for name, limit in limits.items():
        if limit is None or limit >= CONSUMER_TIMEOUT:
            yield BrokerFault(
                "consumer_timeout",
                f"{name} may run {_for_seconds(limit)}, and RabbitMQ requeues a message that is not "
                f"acknowledged within its consumer_timeout (default: {CONSUMER_TIMEOUT:g} s): raise that, or give "
                "the handler a shorter time_limit",
            )


def _report(faults: Iterable[BrokerFault]) -> None:
    for fault in faults:
        if fault.is_fatal:
            raise ConfigurationError(fault.sentence)
        logger.warning("%s", fault.sentence, extra={"action": fault.action})


def _for_seconds(limit: float | None) -> str:
    return f"for {limit} s" if limit else "without a limit"


def _time_limit(app: Any, task: Any) -> float | None:
    limit: float | None = task.time_limit or app.conf.task_time_limit
    return limit
