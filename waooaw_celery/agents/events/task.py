"""The Celery task class of event handlers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import Ignore

from waooaw_celery.messages.message import Message
from waooaw_celery.messages.topics.schemas import SchemaCheck, select_schema
from waooaw_celery.worker.task import AgentTask


class EventTask(AgentTask):
    """An event handler.

    Attributes:
        accepts: the subscription's filter function: whether the handler gets an event; None: it gets all.
    """

    abstract = True
    accepts: Callable[[Message], bool] | None = None

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Drop an event that expired or that the filter function rejects, and fail one that breaks its schema.

        Raises:
            SchemaViolation: the event does not match its schema. It is not retried, because a retry cannot help.
        """
        super().before_start(task_id, args, kwargs)
        message = self.message
        if message.event is None:  # the publisher does not use this package
            return
        if message.event.schema_version is not None:
            self._check(message, message.event.schema_version)
        if self.accepts is not None and not self.accepts(message):
            raise Ignore("the filter function of the subscription rejects it")

    def _check(self, message: Message, version: str) -> None:
        app: Any = self.app  # an AgentApp
        known = [*app.subscriptions.known().schemas, *app.schemas.all()]
        if version not in {schema.version for schema in known if schema.topic == message.topic}:
            return  # the publisher validated it, and its schema is no longer known
        schema = select_schema(known, str(message.topic), version)
        if schema is not None and schema.check is SchemaCheck.RECEIPT:
            schema.validate(message.payload)
