"""Checks before a worker starts: settings, of the worker and of its broker, that would lose messages."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)

#: RabbitMQ's default ``consumer_timeout``, in seconds: how long a consumer may hold a message.
CONSUMER_TIMEOUT = 1800.0


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
            "Redis hands its message to another worker",
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
                f"{name} has once=True: that takes a ledger in PostgreSQL, where its effect and the note of it "
                "are committed together (in SQLite nobody else could write meanwhile): set waooaw_database_url"
            )


def check_broker(app: Any) -> None:
    """Check that the broker keeps the messages that it accepts; log a warning of those that it may lose.

    A broker that does not answer, or does not report its settings, is not waited for: Celery connects when it is
    back.

    Args:
        app: the application, an AgentApp.

    Raises:
        ConfigurationError: the broker removes messages when its memory is full.
    """
    try:
        with app.connection_for_write() as connection:
            connection.connect()
            if app.driver == "redis":
                _check_redis(connection.default_channel.client.info(), app.settings)
            elif app.driver == "amqp":
                _check_consumer_timeout(app)
    except (KombuError, RedisError, OSError) as error:
        logger.info("the broker's settings were not checked: %s", error, extra={"action": "broker_unchecked"})


def _check_redis(info: Mapping[str, Any], settings: Any) -> None:
    policy, bounded = str(info.get("maxmemory_policy", "noeviction")), int(info.get("maxmemory", 0)) > 0
    if policy.startswith("allkeys") and bounded and not settings.allow_eviction:
        raise ConfigurationError(
            f"the broker's Redis removes whole queues when its memory is full (maxmemory-policy {policy}): set it "
            "to noeviction, give the broker a Redis of its own, or set waooaw_allow_eviction and lose messages"
        )
    if policy != "noeviction" and bounded:
        logger.warning(
            "the broker's Redis removes keys when its memory is full (maxmemory-policy %s): set it to noeviction",
            policy,
            extra={"action": "broker_evicts"},
        )
    if not int(info.get("aof_enabled", 0)):
        has_ledger = settings.database_url is not None
        consequence = "the ledger's recovery publishes them again" if has_ledger else "they are lost"
        logger.warning(
            "the broker's Redis does not store messages on disk (appendonly no): after a crash of its server %s. "
            "Set appendonly yes",
            consequence,
            extra={"action": "broker_forgets"},
        )


def _check_consumer_timeout(app: Any) -> None:
    limits = {name: _time_limit(app, task) for name, task in app.tasks.items() if isinstance(task, AgentTask)}
    for name, limit in limits.items():
        if limit is None or limit >= CONSUMER_TIMEOUT:
            logger.warning(
                "%s may run %s, and RabbitMQ takes a message from a worker that holds it for longer than its "
                "consumer_timeout, by default %g s: raise that, or give the handler a shorter time_limit",
                name,
                _for_seconds(limit),
                CONSUMER_TIMEOUT,
                extra={"action": "consumer_timeout"},
            )


def _for_seconds(limit: float | None) -> str:
    return f"for {limit} s" if limit else "without a limit"


def _time_limit(app: Any, task: Any) -> float | None:
    limit: float | None = task.time_limit or app.conf.task_time_limit
    return limit
