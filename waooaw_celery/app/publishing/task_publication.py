"""A Celery task that is an agent's handler: a `.delay`, a step of a canvas, a retry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from celery.result import AsyncResult
from kombu import Queue

from waooaw_celery.app.publishing.large_payloads import REFERENCE_ENCODING, LargePayloads
from waooaw_celery.app.publishing.publication import Batch, envelope_headers, routing_options, shown_arguments
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions, options_of_task
from waooaw_celery.messages.queues import AMQP_MAX_PRIORITY, HandlerName, agent_queue, takes_message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER
from waooaw_celery.monitoring.tracing.processing import previous_attempt
from waooaw_celery.monitoring.tracing.sending import is_traced
from waooaw_celery.wire.packer import EncodedBody
from waooaw_celery.worker.current_task import current_task
from waooaw_celery.worker.task import AgentTask

#: Options of ``send_task`` that say where a task goes.
_DESTINATION = ("queue", "routing_key", "exchange")


def handler_of(app: Any, task_name: str, options: Mapping[str, Any]) -> HandlerName | None:
    """Return whose handler a task is, or None for an ordinary Celery task.

    A task of this application is what it was registered as. The name of another one, such as ``shop.mul``, is an
    agent's handler if ``shop`` is a known agent. A destination that the caller gives decides without asking: the
    agent's own queue, or any other one. A task that a known agent does not have, and that ``task_routes`` routes,
    is an ordinary one.

    Args:
        app: the application, an AgentApp.
        task_name: name of the task.
        options: the options of ``send_task``.

    Raises:
        StoreUnavailable: the store, which knows the agents, does not answer.
    """
    name = HandlerName.parse(task_name)
    if name is None:
        return None
    task = app.tasks.get(task_name)
    if task is not None:
        return name if isinstance(task, AgentTask) else None
    destination = [_name_of(options[each]) for each in _DESTINATION if options.get(each)]
    if destination:
        return name if destination[0] == agent_queue(name.agent).name else None
    if name.agent in app.agents:
        return name
    if not app.components.has_store or not app.registry.has(name.agent):
        return None
    is_ordinary = _is_routed(app, task_name) and not app.registry.may_have(name)
    return None if is_ordinary else name


def _name_of(destination: Any) -> str:
    return str(destination.name if isinstance(destination, Queue) else destination)


def _is_routed(app: Any, task_name: str) -> bool:
    router = app.amqp.router
    return bool(router.routes) and bool(router.lookup_route(task_name, (), {}, {}, None))


class TaskPublication:
    """A task whose message is complete, published by Celery's own ``send_task``.

    Args:
        app: the application, an AgentApp.
        target: the handler that the task is.
        message: its message.
        args: its positional arguments.
        kwargs: its keyword arguments.
        options: the options of ``send_task``.
        send_task: Celery's ``send_task``.
    """

    def __init__(
        self,
        app: Any,
        target: HandlerName,
        message: Message,
        args: Any,
        kwargs: Any,
        options: dict[str, Any],
        send_task: Callable[..., AsyncResult[Any]],
    ) -> None:
        self.batch: Batch = [(target, message)]
        self._result: AsyncResult[Any] | None = None
        self._app, self._args, self._kwargs, self._options = app, args, kwargs, options
        self._send_task = send_task
        #: The encoded arguments, where they may be large.
        self._body: EncodedBody | None = None
        #: The serializer that Celery names for every task that does not choose one.
        self._default_serializer = str(app.conf.task_serializer)

    def check_bodies(self) -> None:
        """Check that the body can be encoded. See `Publication.check_bodies`."""
        [(target, message)] = self.batch
        body, wire_format = (self._args or (), self._kwargs or {}), self._wire_format(target, message)
        if message.reference is not None:
            return
        if not self._app.components.large_payloads.is_on:
            self._app.packer.check(body, *wire_format)
            return
        # As it would be stored: what Celery calls afterwards travels with the message.
        self._body = self._app.packer.encode((*body, {}), *wire_format, of_message=True, may_be_stored=True)

    def is_large(self, large: LargePayloads) -> bool:
        """Return whether the task travels by reference. See `Publication.is_large`."""
        [(_, message)] = self.batch
        return message.reference is not None or (self._body is not None and large.is_above(self._body))

    def store_large_payloads(self, large: LargePayloads, session: Any, event: Message | None) -> Message | None:
        """Store the arguments if they are large. See `Publication.store_large_payloads`."""
        [(target, message)] = self.batch
        if message.reference is not None:
            large.share([message], session)
        elif self._body is not None and large.is_above(self._body):
            [reference] = large.put([(self._body, [message])], session)
            self.batch = [(target, message.filled_in(reference=reference))]
            self._args, self._kwargs = (reference,), {}
        return event

    def payload_texts(self) -> Mapping[str, str]:
        """Return nothing: Celery's own ``send_task`` encodes the task."""
        return {}

    def options(self) -> Mapping[str, PublishOptions]:
        """Return the publish options of the task: callbacks, the rest of a chain, an ETA."""
        [(target, message)] = self.batch
        app, arguments = self._app, (self._args, self._options)
        options = options_of_task(target.handler, message, *arguments, app.timezone, self._default_serializer)
        return {} if options is None else {message.message_id: options}

    def parts(self, size: int) -> Iterator[TaskPublication]:
        """Return the publication itself: it has one message."""
        yield self

    def producer(self) -> AbstractContextManager[Any]:
        """Return no producer: ``send_task`` takes its own."""
        return nullcontext()

    def publish_together(self, producer: Any, when_ready: Callable[[], object]) -> bool:
        """Publish nothing: ``send_task`` publishes one task."""
        return False

    def publish_one(self, producer: Any, target: HandlerName, message: Message) -> None:
        """Publish the task."""
        options = self._options
        is_retry = bool(options.get("retries"))
        # A retry expires when its first attempt would have.
        expires_at = parse_datetime(options.get("expires"), self._app.timezone) if is_retry else message.expires_at
        serializer, compression = self._wire_format(target, message)
        options |= {
            "serializer": serializer,
            "compression": compression,
            "task_id": message.message_id,
            "root_id": message.conversation_id,
            "parent_id": message.causation_id,
            **routing_options(target, message, self._app.driver),
            **(self._first_in_queue(target) if is_retry else {}),
            # As a header only: Celery's option would also become RabbitMQ's per-message TTL, and RabbitMQ drops an
            # expired message without telling anyone.
            "expires": None,
            "headers": {**self._headers(message, is_retry), **envelope_headers(message, expires_at)},
            "argsrepr": shown_arguments(self._app),
            "kwargsrepr": shown_arguments(self._app),
            "ignore_result": True if takes_message(target.handler) else options.get("ignore_result"),
        }
        options.pop("exchange_type", None)
        self._result = self._send_task(str(target), self._args, self._kwargs, **options)

    def sent(self) -> AsyncResult[Any]:
        """Return what ``send_task`` returned when the task was published."""
        if self._result is None:
            raise RuntimeError("the task is not published yet")
        return self._result

    def _wire_format(self, target: HandlerName, message: Message) -> tuple[str, str | None]:
        """Return the serializer and the compression of the task."""
        if message.reference is not None:
            return REFERENCE_ENCODING
        chosen = self._options.get("serializer")
        if chosen == self._default_serializer:
            chosen = None
        compression = message.compression or self._options.get("compression")
        wire_format: tuple[str, str | None] = self._app.wire_format(
            target.agent, message.serializer or chosen, compression
        )
        return wire_format

    def _first_in_queue(self, target: HandlerName) -> dict[str, Any]:
        """Return what has RabbitMQ deliver the next attempt at a message with a key before all others.

        Its key waits for it. On Redis, it finds its place when it is sorted.
        """
        has_key = getattr(self._app.tasks.get(str(target)), "key_policy", None) is not None
        return {"priority": AMQP_MAX_PRIORITY} if has_key and self._app.driver == "amqp" else {}

    def _headers(self, message: Message, is_retry: bool) -> dict[str, Any]:
        """Return the caller's headers; only the same request keeps the header that names who waits."""
        headers = dict(self._options.get("headers") or {})
        if is_retry:
            return {**headers, **previous_attempt()} if is_traced() else headers
        headers.pop(REPLY_TO_HEADER, None)
        task = current_task()
        if task is not None and task.request.id == message.message_id and task.call is not None:
            # The task replaced itself, and its caller waits for the replacement.
            headers[REPLY_TO_HEADER] = task.call.to_header()
        return headers
