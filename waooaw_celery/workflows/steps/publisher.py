"""Publishes what workflows send, from a thread: the requests of one round of the event loop together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from waooaw_celery.app.publishing.already_sent import is_sent
from waooaw_celery.errors import InvalidMessage, UnknownMessage, WaooawError
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.reply_to import ReplyTo
from waooaw_celery.settings import ArgumentChecks
from waooaw_celery.workflows.start import ANSWER_HANDLER, start_message

#: Seconds for which a workflow that stops waits for its requests that are being published.
PUBLISH_SECONDS = 30.0
#: Requests that are published together.
_BATCH = 500


class NeverPublished(WaooawError):
    """The broker has refused a message for certain, and its id cannot be used any more."""


class _Request(NamedTuple):
    target: HandlerName
    message: Message
    #: Whether an earlier process may have published it.
    again: bool
    published: asyncio.Future[None]


class WorkflowPublisher:
    """Publishes requests, messages and events of workflows. Use it on one event loop.

    A message whose id the ledger knows as published counts as published: its id is computed from its step.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._waiting: deque[_Request] = deque()
        self._executor = ThreadPoolExecutor(2, "waooaw-workflow-publish")
        self._task: asyncio.Task[None] | None = None

    async def request(self, target: HandlerName, message: Message, *, again: bool = False) -> None:
        """Publish a request, whose answer comes as a message.

        Args:
            target: the agent and its method.
            message: the request.
            again: whether an earlier attempt may have published it.

        Raises:
            NeverPublished: an earlier attempt was refused: publish it under another id.
            WaooawError: as ``Publisher.publish``.
        """
        published: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = _Request(target, message, again, published)
        self._waiting.append(request)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            await asyncio.shield(published)
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            elif not published.done():  # a thread publishes it: no other process may do so at the same time
                await asyncio.wait([published], timeout=PUBLISH_SECONDS)
                if published.done():
                    published.exception()  # the step does not go on here
            raise

    @property
    def is_publishing(self) -> bool:
        """Whether requests are being published."""
        return self._task is not None

    async def start(self, target: HandlerName, row: Mapping[str, Any], from_agent: str) -> None:
        """Publish the message that starts a workflow."""
        await self.call(self._start, target, row, from_agent)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that publishes, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *args))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # so that the requests of this round come together
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
                errors = await loop.run_in_executor(self._executor, self._publish, batch)
                for request, error in zip(batch, errors, strict=True):
                    if request.published.done():
                        continue
                    if error is None:
                        request.published.set_result(None)
                    else:
                        request.published.set_exception(error)
        finally:
            self._task = None

    def _publish(self, batch: Sequence[_Request]) -> list[Exception | None]:
        """Publish requests, each sender's together; return the error of each, or None."""
        errors: dict[str, Exception | None] = {}
        senders: dict[str, list[_Request]] = {}
        for request in batch:
            if request.again:  # alone: one that is known would have the others refused
                errors[request.message.message_id] = self._publish_again(request)
            else:
                senders.setdefault(request.message.from_agent, []).append(request)
        for sender, requests in senders.items():
            if len(requests) == 1:
                found = self._publish_alone(requests[0])
            else:
                found = self._publish_together(sender, requests)
            if found is not None and len(requests) > 1:  # to find the one that is refused
                errors |= {each.message.message_id: self._publish_again(each) for each in requests}
            else:
                errors |= {each.message.message_id: found for each in requests}
        return [errors[request.message.message_id] for request in batch]

    def _publish_again(self, request: _Request) -> Exception | None:
        """Publish a request unless it was published before."""
        try:
            if self._is_published(request):
                return None
        except WaooawError as error:
            return error
        return self._publish_alone(request)

    def _publish_alone(self, request: _Request) -> Exception | None:
        """Publish a request. It also counts as published when another process has just published it."""
        error = self._publish_together(request.message.from_agent, [request])
        if isinstance(error, InvalidMessage):
            try:
                return None if self._is_published(request) else error
            except NeverPublished as refused:  # by itself, or because another process withdrew it just now
                return refused if request.again else error
            except WaooawError as unavailable:
                return unavailable
        return error

    def _is_published(self, request: _Request) -> bool:
        """Return whether the broker has had a request.

        Raises:
            NeverPublished: it was refused for certain.
        """
        message_id = request.message.message_id
        try:
            receipt = self._app.receipts.get(message_id)
        except UnknownMessage:
            return False
        if receipt.status is MessageStatus.FAILED and not receipt.attempts:
            raise NeverPublished(f"request {message_id} was refused")
        return receipt.status is not MessageStatus.PENDING

    def _publish_together(self, sender: str, requests: Sequence[_Request]) -> Exception | None:
        app = self._app
        try:
            for target in dict.fromkeys(request.target for request in requests):
                app.registry.check_handler(target)
            if app.settings.check_arguments is ArgumentChecks.BOTH:
                for request in requests:
                    app.contracts.check(request.target, request.message.payload)
            batch = [
                (request.target, app.message_factory.complete(request.target, request.message))
                for request in requests
            ]
            app.publisher.publish(batch, ReplyTo(on_reply=f"{sender}.{ANSWER_HANDLER}", keep=True))
        except Exception as error:  # noqa: BLE001 - it is the outcome of the step
            return error
        return None

    def _start(self, target: HandlerName, row: Mapping[str, Any], from_agent: str) -> None:
        message = start_message(self._app, target, row, from_agent)
        try:
            self._app.publisher.publish([(target, message)])
        except InvalidMessage:
            if not is_sent(self._app.receipts, message.message_id):
                raise

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=False)
