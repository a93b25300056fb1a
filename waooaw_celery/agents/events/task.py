"""The Celery task that the handler of a subscription is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import Ignore

from waooaw_celery.messages.message import Message
from waooaw_celery.messages.topics.schemas import SchemaCheck, select_schema
from waooaw_celery.worker.task import AgentTask


class EventTask(AgentTask):
    """A handler of events.

    Attributes:
        accepts: decides of each event, before the handler, whether it is handled; None: all are.
    """

    abstract = True
    accepts: Callable[[Message], bool] | None = None

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Drop what came too late or is not wanted, and refuse what breaks its schema; no retry would mend that.

        Raises:
            SchemaViolation: the event breaks the schema of its topic, which is checked at receipt.
        """
        super().before_start(task_id, args, kwargs)
        message = self.message
        if message.event is None:  # by a publisher that does not use this package
            return
        if message.event.schema_version is not None:
            self._check(message, message.event.schema_version)
        if self.accepts is not None and not self.accepts(message):
            raise Ignore("the subscription's filter does not want it")

    def _check(self, message: Message, version: str) -> None:
        app: Any = self.app  # an AgentApp
        known = [*app.subscriptions.known().schemas, *app.schemas.all()]
        if version not in {schema.version for schema in known if schema.topic == message.topic}:
            return  # its publisher checked it, and its schema is known no more
        schema = select_schema(known, str(message.topic), version)
        if schema is not None and schema.check is SchemaCheck.RECEIPT:
            schema.validate(message.payload)
