"""Takes the push-notification settings of clients, once they were checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from urllib.parse import urlsplit
from uuid import uuid4

from a2a.types import SendMessageConfiguration, TaskPushNotificationConfig
from a2a.utils.errors import InvalidParamsError, TaskNotFoundError

from waooaw_celery.edges.a2a.push.configs import MAX_EACH, PushConfigs
from waooaw_celery.edges.a2a.push.notifications import PushNotifications
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.protection.outgoing import checked_address
from waooaw_celery.errors import NotPermitted
from waooaw_celery.messages.validation import check_id
from waooaw_celery.worker.execution.threads import run_in_thread

#: The longest token, and credentials, of a client.
_MAX_SECRET = 4096


class PushSettings:
    """The push-notification settings of tasks.

    Args:
        configs: keeps them.
        notifications: sends the notifications.
        allowed: inner networks that may be reached.
    """

    def __init__(
        self, configs: PushConfigs, notifications: PushNotifications, allowed: Sequence[IPv4Network | IPv6Network]
    ) -> None:
        self._configs, self._notifications, self._allowed = configs, notifications, allowed

    async def check(self, configuration: SendMessageConfiguration) -> None:
        """Check the settings that come with a message, before anything is sent.

        Raises:
            InvalidParamsError: they cannot be used.
        """
        if configuration.HasField("task_push_notification_config"):
            await self._check(configuration.task_push_notification_config)

    async def keep_with(self, configuration: SendMessageConfiguration, principal: Principal, task_id: str) -> None:
        """Keep the settings that came with the message of a task, if there are any."""
        if configuration.HasField("task_push_notification_config"):
            config = TaskPushNotificationConfig()
            config.CopyFrom(configuration.task_push_notification_config)
            config.task_id = task_id
            await self.keep(config, principal)

    async def keep(self, config: TaskPushNotificationConfig, principal: Principal) -> TaskPushNotificationConfig:
        """Keep settings and send notifications from now on; return the settings with their id.

        Raises:
            InvalidParamsError: they cannot be used, or the task has too many.
        """
        await self._check(config)
        kept = TaskPushNotificationConfig()
        kept.CopyFrom(config)
        kept.id = check_id(config.id, "the id of the settings") if config.id else str(uuid4())
        known = {each.id for each in await self.all(kept.task_id)}
        if kept.id not in known and len(known) >= MAX_EACH:
            raise InvalidParamsError(f"the task has {MAX_EACH} push-notification settings: delete one")
        await asyncio.wrap_future(run_in_thread(self._configs.put, principal, kept))
        await self._notifications.begin(kept.task_id)
        return kept

    async def all(self, task_id: str) -> list[TaskPushNotificationConfig]:
        """Return all settings of a task."""
        found = await asyncio.wrap_future(run_in_thread(self._configs.read, task_id))
        return list(found.configs.values()) if found is not None else []

    async def get(self, task_id: str, config_id: str) -> TaskPushNotificationConfig:
        """Return settings of a task.

        Raises:
            TaskNotFoundError: it has none with this id.
        """
        for each in await self.all(task_id):
            if each.id == config_id:
                return each
        raise TaskNotFoundError(f"the task has no push-notification settings {config_id!r:.80}")

    async def remove(self, task_id: str, config_id: str) -> None:
        """Remove settings of a task. It is no error if there are none."""
        await asyncio.wrap_future(run_in_thread(self._configs.remove, task_id, config_id))

    async def _check(self, config: TaskPushNotificationConfig) -> None:
        try:
            url = urlsplit(config.url)
            host, port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        except ValueError as error:
            raise InvalidParamsError(f"the url of the push notifications is none: {error}") from error
        if url.scheme not in ("http", "https") or not host:
            raise InvalidParamsError("the url of the push notifications must begin with https:// or http://")
        for text in (config.token, config.authentication.scheme, config.authentication.credentials):
            if len(text) > _MAX_SECRET or not (text.isascii() and (text.isprintable())):
                raise InvalidParamsError(
                    f"token and authentication must be printable ASCII, of {_MAX_SECRET} characters at most"
                )
        try:
            await checked_address(host, port, self._allowed)
        except NotPermitted as error:
            raise InvalidParamsError(f"the url of the push notifications cannot be used: {error}") from error
