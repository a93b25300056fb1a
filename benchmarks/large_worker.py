"""The workers of the benchmark of large messages: handlers that only note when they start."""

from __future__ import annotations

import os
import time

from celery import Celery
from redis import Redis

from benchmarks.large import STARTED
from waooaw_celery import Agent, Message, MessageType, create_app

_redis = Redis.from_url(os.environ["CELERY_BROKER_URL"])
plain = Celery("plain")
plain.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_default_queue="plain")
app = create_app("large_worker")
agent = Agent("receiver", app)


@plain.task(name="plain.work", ignore_result=True)
def work(payload: object) -> None:
    """Note when it starts."""
    _redis.rpush(STARTED, time.monotonic())


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    """Note when it starts."""
    _redis.rpush(STARTED, time.monotonic())
