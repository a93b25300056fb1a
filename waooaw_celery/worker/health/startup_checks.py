"""What a worker looks at before it starts: settings, here and in its broker, with which messages would be lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)

#: RabbitMQ's ``consumer_timeout`` unless somebody set it, in seconds: how long a consumer may hold a message.
CONSUMER_TIMEOUT = 1800.0


def check_time_limits(app: Any) -> None:
    """Check that no handler may still run when it is taken for lost.

    Kombu's transport for Redis waits so long before it hands a message to another worker, and the ledger before it
    is marked as FAILED.

    Raises:
        ConfigurationError: one may; the sentence names it and both numbers.
    """
    lost = app.settings.lost_seconds if app.settings.database_url is not None else None
    patience = (
        (
            app.visibility_timeout,
            "Redis hands its message to another worker",
            "broker_transport_options['visibility_timeout']",
        ),
        (lost, "the ledger takes its message for lost", "waooaw_lost_seconds"),
    )
    for name, task in app.tasks.items():
        for seconds, what, setting in patience:
            if seconds is not None and isinstance(task, AgentTask):
                limit = _limit(app, task)
                if limit is None or limit >= seconds:
                    raise ConfigurationError(
                        f"{name} may run for {limit or 'ever'} s, and after {seconds:g} s {what}: "
                        f"give it a shorter time_limit, or raise {setting}"
                    )


def check_once(app: Any) -> None:
    """Check that there is a database in which effects and the note of them can be committed together.

    Raises:
        ConfigurationError: a handler says ``once=True``, and there is none.
    """
    for name, task in app.tasks.items():
        if getattr(task, "once", False) and not (app.settings.database_url and app.database.is_postgresql):
            raise ConfigurationError(
                f"{name} has once=True: that takes a ledger in PostgreSQL, where its effect and the note of it "
                "are committed together (in SQLite nobody else could write meanwhile): set waooaw_database_url"
            )


def check_broker(app: Any) -> None:
    """Check that the broker keeps what it is given; warn of what it may lose.

    A broker that does not answer, or does not tell, is not waited for: Celery connects when it is back.

    Raises:
        ConfigurationError: it removes messages when its memory is full.
    """
    try:
        with app.connection_for_write() as connection:
            connection.connect()
            if app.driver == "redis":
                _check_redis(connection.default_channel.client.info(), app.settings)
            elif app.driver == "amqp":
                _check_holding(app)
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
        kept = "the ledger's recovery publishes it again" if settings.database_url is not None else "it is lost"
        logger.warning(
            "the broker's Redis does not write down what waits (appendonly no): after a crash of its server %s. "
            "Set appendonly yes",
            kept,
            extra={"action": "broker_forgets"},
        )


def _check_holding(app: Any) -> None:
    limits = {name: _limit(app, task) for name, task in app.tasks.items() if isinstance(task, AgentTask)}
    for name, limit in limits.items():
        if limit is None or limit >= CONSUMER_TIMEOUT:
            logger.warning(
                "%s may run for %s s, and RabbitMQ takes a message from a worker that holds it for longer than "
                "its consumer_timeout, %g s unless somebody set it: raise that, or give it a shorter time_limit",
                name,
                limit or "ever",
                CONSUMER_TIMEOUT,
                extra={"action": "consumer_timeout"},
            )


def _limit(app: Any, task: Any) -> float | None:
    limit: float | None = task.time_limit or app.conf.task_time_limit
    return limit
