"""Sends push notifications: each change of a task, as a POST to the URL that a client has set."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from uuid import uuid4

import httpx2
from a2a.types import StreamResponse, TaskPushNotificationConfig
from a2a.utils.constants import A2A_JSON_MEDIA_TYPE
from google.protobuf.json_format import MessageToDict

from waooaw_celery.edges.a2a.push.configs import CLAIM_SECONDS, PushConfigs, Subscribed
from waooaw_celery.edges.a2a.tasks import a2a_task
from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.edges.gateway.task import TaskInfo, TaskState
from waooaw_celery.edges.protection.outgoing import public_client
from waooaw_celery.errors import NotPermitted, UnknownMessage, WaooawError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.execution.threads import run_in_thread

logger = get_logger(__name__)

#: Seconds between the attempts to send a notification; after the last one it is given up, and the log says so.
PAUSES = (0.5, 2.0, 8.0)
#: Seconds between two looks for tasks whose notifications no living process sends.
LOOK_SECONDS = 5.0
#: Seconds that one attempt may take at most, whatever the receiver does.
_ATTEMPT_SECONDS = 15.0
#: Seconds between two looks at a task.
_PERIOD = 1.0


class PushNotifications:
    """Sends the notifications of the tasks that have settings for them.

    The process that took the settings sends them; when it has died, another edge of the application goes on. So a
    client may get a notification twice, and never a status that the task did not have.

    Args:
        gateway: reads the tasks.
        configs: keeps the settings.
        allowed: inner networks that may be reached.
    """

    def __init__(
        self, gateway: Gateway, configs: PushConfigs, allowed: Sequence[IPv4Network | IPv6Network] = ()
    ) -> None:
        self._gateway, self._configs, self._allowed = gateway, configs, allowed
        self._holder = uuid4().hex
        self._following: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Send notifications, until this is cancelled. A failure is logged, and it goes on."""
        try:
            while True:
                try:
                    await self._look()
                except WaooawError as error:
                    logger.warning(
                        "push notifications wait: %s", error, extra={"action": "push_notifications_wait"}
                    )
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            following = list(self._following.values())
            for each in following:
                each.cancel()
            await asyncio.gather(*following, return_exceptions=True)

    async def begin(self, task_id: str) -> None:
        """Send the notifications of a task whose settings were just kept."""
        await asyncio.wrap_future(run_in_thread(self._configs.renew, task_id, self._holder))
        self._follow(task_id)

    async def _look(self) -> None:
        for task_id in await asyncio.wrap_future(run_in_thread(self._configs.claim, self._holder)):
            self._follow(task_id)

    def _follow(self, task_id: str) -> None:
        if task_id in self._following:
            return
        following = self._following[task_id] = asyncio.create_task(self._send_changes(task_id))

        def ended(task: asyncio.Task[None]) -> None:
            self._following.pop(task_id, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error(
                    "the push notifications of task %s failed: %s",
                    task_id,
                    error,
                    exc_info=error,
                    extra={"action": "push_notifications_failed", "message_id": task_id},
                )

        following.add_done_callback(ended)

    async def _send_changes(self, task_id: str) -> None:
        """Send each change of a task until it has ended, and then remove its settings."""
        last: tuple[TaskState, object] | None = None
        renewed = 0.0
        loop = asyncio.get_running_loop()
        while True:
            found = await asyncio.wrap_future(run_in_thread(self._configs.read, task_id))
            if found is None:
                return
            try:
                task = await self._gateway.task(found.principal, task_id)
            except UnknownMessage:  # it was purged
                await asyncio.wrap_future(run_in_thread(self._configs.remove, task_id))
                return
            if (task.state, task.progress) != last:
                await self._send_to_all(found, task)
                last = task.state, task.progress
            if task.state.final:
                await asyncio.wrap_future(run_in_thread(self._configs.remove, task_id))
                return
            if loop.time() - renewed > CLAIM_SECONDS / 3:
                await asyncio.wrap_future(run_in_thread(self._configs.renew, task_id, self._holder))
                renewed = loop.time()
            await asyncio.sleep(_PERIOD)

    async def _send_to_all(self, found: Subscribed, task: TaskInfo) -> None:
        async with asyncio.TaskGroup() as group:
            for config in found.configs.values():
                group.create_task(self._send(config, task))

    async def _send(self, config: TaskPushNotificationConfig, task: TaskInfo) -> None:
        """Send a notification, a few times if the receiver does not take it."""
        problem: object = None
        for pause in (*PAUSES, None):
            try:
                async with asyncio.timeout(_ATTEMPT_SECONDS), public_client(self._allowed) as client:
                    body = MessageToDict(StreamResponse(task=a2a_task(task)))
                    headers = {**_headers(config), "Content-Type": A2A_JSON_MEDIA_TYPE}
                    async with client.stream("POST", config.url, json=body, headers=headers) as response:
                        if response.is_success:
                            return
                        problem = f"the answer was {response.status_code}"
            except NotPermitted as error:  # another attempt would change nothing
                problem, pause = error, None
            except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError) as error:
                problem = error if str(error) else type(error).__name__
            if pause is None:
                break
            await asyncio.sleep(pause)
        logger.warning(
            "the push notification of task %s (%s) was not delivered: %s",
            task.task_id,
            task.state,
            problem,
            extra={"action": "push_notification_lost", "message_id": task.task_id},
        )


def _headers(config: TaskPushNotificationConfig) -> dict[str, str]:
    """Return the headers by which the receiver knows that a notification is meant."""
    headers = {"X-A2A-Notification-Token": config.token} if config.token else {}
    if config.authentication.scheme and config.authentication.credentials:
        headers["Authorization"] = f"{config.authentication.scheme} {config.authentication.credentials}"
    return headers
