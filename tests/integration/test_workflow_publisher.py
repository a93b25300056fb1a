"""Two processes that publish the requests of one workflow at the same time."""

from __future__ import annotations

import asyncio
from contextlib import closing
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from support import Broker, queue_length

from waooaw_celery import AgentApp, Message, MessageStatus, MessageType
from waooaw_celery.app.publishing.publish_failures import withdraw
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.workflows.steps.publisher import NeverPublished, WorkflowPublisher


class LateReceipts:
    """Receipts; between the answer to the first question and the next publish, another process publishes."""

    def __init__(self, app: AgentApp, publish: Any) -> None:
        self._app, self._publish = app, publish

    def get(self, message_id: str) -> DeliveryReceipt:
        """Return a receipt as it was before the other process published."""
        found = self._app.receipts.get(message_id)
        if self._publish is not None:
            publish, self._publish = self._publish, None
            publish()
        return found


def test_a_request_that_another_process_publishes_meanwhile_counts_as_published(broker: Broker) -> None:
    """The workflow goes on and waits for its answer, and the request is published once."""
    name = f"late-{uuid4().hex[:8]}"
    broker.names.add(name)
    target = HandlerName(name, "query")
    message = Message(from_agent=name, to_agent=name, message_type=MessageType.QUERY, payload={})
    with closing(broker.app(waooaw_agents=[name])) as app:
        complete = app.message_factory.complete(target, message)
        app.receipts.begin_recording([(complete, target.handler)], None, {})()
        receipts = LateReceipts(app, lambda: app.publisher.publish_recorded([(target, complete)]))
        names = ("registry", "message_factory", "publisher", "settings", "contracts")
        parts = SimpleNamespace(receipts=receipts, **{name: getattr(app, name) for name in names})

        async def request() -> None:
            publisher = WorkflowPublisher(parts)
            await publisher.request(target, message, again=True)
            publisher.close()

        asyncio.run(request())
        assert app.receipts.get(message.message_id).status is MessageStatus.SENT
        assert queue_length(app, name) == 1


def test_a_request_that_another_process_withdraws_meanwhile_is_never_published(broker: Broker) -> None:
    """Its step does not fail: it publishes the request under another id."""
    name = f"late-{uuid4().hex[:8]}"
    broker.names.add(name)
    target = HandlerName(name, "query")
    message = Message(from_agent=name, to_agent=name, message_type=MessageType.QUERY, payload={})
    with closing(broker.app(waooaw_agents=[name])) as app:
        complete = app.message_factory.complete(target, message)
        app.receipts.begin_recording([(complete, target.handler)], None, {})()
        receipts = LateReceipts(
            app, lambda: withdraw(app.receipts, [complete], InvalidMessage("another one was sent"))
        )
        names = ("registry", "message_factory", "publisher", "settings", "contracts")
        parts = SimpleNamespace(receipts=receipts, **{name: getattr(app, name) for name in names})

        async def request() -> None:
            publisher = WorkflowPublisher(parts)
            await publisher.request(target, message, again=True)
            publisher.close()

        with pytest.raises(NeverPublished):
            asyncio.run(request())
        assert queue_length(app, name) == 0
