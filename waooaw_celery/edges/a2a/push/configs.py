"""Keeps the push-notification settings of tasks, in Redis where the application has one.

There they survive this process, and any edge of the application goes on with the notifications. Without a Redis
they are kept in the memory of this process, and are lost with it. They contain what the client gave to
authenticate the edge at its URL: who reads this Redis can read that.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from a2a.types import TaskPushNotificationConfig
from google.protobuf.json_format import MessageToDict, ParseDict

from waooaw_celery.app.app import AgentApp
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.messages.queues import first_url
from waooaw_celery.store.connection import Client, connect, store_errors, store_url
from waooaw_celery.store.keys import key_prefix

#: Settings of one task, and settings of all tasks that a process without a Redis keeps.
MAX_EACH, MAX_IN_MEMORY = 10, 10_000
#: Seconds that settings are kept, at most.
KEEP_SECONDS = 7 * 86_400
#: Seconds for which a process alone sends the notifications of a task. It renews its claim while it does.
CLAIM_SECONDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """The push-notification settings of a task.

    Attributes:
        task_id: the task.
        principal: who set them.
        configs: the settings, by their ids.
    """

    task_id: str
    principal: Principal
    configs: Mapping[str, TaskPushNotificationConfig]


class PushConfigs(ABC):
    """Keeps the settings. All methods block."""

    @abstractmethod
    def read(self, task_id: str) -> Subscribed | None:
        """Return the settings of a task; None: it has none."""

    @abstractmethod
    def put(self, principal: Principal, config: TaskPushNotificationConfig) -> None:
        """Keep settings; the same id of the same task replaces them."""

    @abstractmethod
    def remove(self, task_id: str, config_id: str | None = None) -> None:
        """Remove settings of a task; None: all."""

    @abstractmethod
    def claim(self, holder: str) -> list[str]:
        """Return the tasks with settings for which this holder is to send now, and claim them."""

    @abstractmethod
    def renew(self, task_id: str, holder: str) -> None:
        """Claim a task for some more seconds."""


def open_configs(app: AgentApp) -> PushConfigs:
    """Return what keeps the settings of an application.

    Args:
        app: the application.
    """
    if not app.components.has_redis:
        return MemoryConfigs()
    conf = app.conf
    url = store_url(app.settings.redis_url, conf.result_backend, first_url(conf.broker_url))
    return RedisConfigs(connect(url), key_prefix(conf))


class MemoryConfigs(PushConfigs):
    """Keeps the settings in the memory of this process."""

    def __init__(self) -> None:
        self._kept: dict[str, Subscribed] = {}

    def read(self, task_id: str) -> Subscribed | None:
        """Return the settings of a task; None: it has none."""
        return self._kept.get(task_id)

    def put(self, principal: Principal, config: TaskPushNotificationConfig) -> None:
        """Keep settings. Those of the oldest tasks go when there are too many."""
        before = self._kept.pop(config.task_id, None)
        configs = {**(before.configs if before is not None else {}), config.id: config}
        self._kept[config.task_id] = Subscribed(task_id=config.task_id, principal=principal, configs=configs)
        while len(self._kept) > MAX_IN_MEMORY:
            del self._kept[next(iter(self._kept))]

    def remove(self, task_id: str, config_id: str | None = None) -> None:
        """Remove settings of a task; None: all."""
        found = self._kept.pop(task_id, None)
        if found is None or config_id is None:
            return
        if configs := {key: each for key, each in found.configs.items() if key != config_id}:
            self._kept[task_id] = Subscribed(task_id=task_id, principal=found.principal, configs=configs)

    def claim(self, holder: str) -> list[str]:
        """Return all tasks: there is no other holder."""
        return list(self._kept)

    def renew(self, task_id: str, holder: str) -> None:
        """Do nothing: there is no other holder."""


class RedisConfigs(PushConfigs):
    """Keeps the settings in Redis.

    Args:
        redis: a client.
        prefix: what stands before every key.
    """

    def __init__(self, redis: Client, prefix: str = "") -> None:
        self._redis, self._root = redis, f"{prefix}waooaw:a2a:push"

    def read(self, task_id: str) -> Subscribed | None:
        """Return the settings of a task; None: it has none."""
        with store_errors("read push-notification settings"):
            found = self._redis.hgetall(f"{self._root}:{task_id}")
        configs = {key: json.loads(text) for key, text in found.items()}
        if not configs:
            return None
        first = next(iter(configs.values()))
        return Subscribed(
            task_id=task_id,
            principal=Principal(name=first["principal"], from_agent=first["from_agent"]),
            configs={
                key: ParseDict(each["config"], TaskPushNotificationConfig()) for key, each in configs.items()
            },
        )

    def put(self, principal: Principal, config: TaskPushNotificationConfig) -> None:
        """Keep settings; the same id of the same task replaces them."""
        text = json.dumps(
            {
                "principal": principal.name,
                "from_agent": principal.from_agent,
                "config": MessageToDict(config),
            }
        )
        key = f"{self._root}:{config.task_id}"
        with store_errors("keep push-notification settings"), self._redis.pipeline() as pipeline:
            pipeline.hset(key, config.id, text)
            pipeline.expire(key, KEEP_SECONDS)
            pipeline.zadd(self._root, {config.task_id: time.time()})
            pipeline.execute()

    def remove(self, task_id: str, config_id: str | None = None) -> None:
        """Remove settings of a task; None: all."""
        key = f"{self._root}:{task_id}"
        with store_errors("remove push-notification settings"):
            if config_id is not None and self._redis.hdel(key, config_id) and self._redis.exists(key):
                return
            if config_id is None or not self._redis.exists(key):
                self._redis.delete(key)
                self._redis.zrem(self._root, task_id)

    def claim(self, holder: str) -> list[str]:
        """Return the tasks that this holder has claimed, or claims now because nobody has."""
        with store_errors("claim push notifications"):
            self._redis.zremrangebyscore(self._root, 0, time.time() - KEEP_SECONDS)
            tasks = self._redis.zrange(self._root, 0, MAX_IN_MEMORY)
            with self._redis.pipeline(transaction=False) as pipeline:
                for task_id in tasks:
                    pipeline.set(f"{self._root}:{task_id}:holder", holder, nx=True, ex=CLAIM_SECONDS)
                claimed = pipeline.execute()
        return [task_id for task_id, is_mine in zip(tasks, claimed, strict=True) if is_mine]

    def renew(self, task_id: str, holder: str) -> None:
        """Claim a task for some more seconds."""
        with store_errors("claim push notifications"):
            self._redis.set(f"{self._root}:{task_id}:holder", holder, ex=CLAIM_SECONDS)
