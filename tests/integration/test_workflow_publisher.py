"""Two processes that publish the requests of one workflow at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
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


@pytest.fixture
def target() -> HandlerName:
    """The method that is asked."""
    return HandlerName(f"asked-{uuid4().hex[:8]}", "query")


@pytest.fixture
def app(broker: Broker, target: HandlerName) -> Iterator[AgentApp]:
    """An application that knows the agent that is asked."""
    broker.names.add(target.agent)
    with closing(broker.app(waooaw_agents=[target.agent])) as app:
        yield app


@pytest.fixture
def message(app: AgentApp, target: HandlerName) -> Message:
    """A request that is recorded, and not published yet."""
    plain = Message(from_agent=target.agent, to_agent=target.agent, message_type=MessageType.QUERY, payload={})
    complete = app.message_factory.complete(target, plain)
    app.receipts.begin_recording([(complete, target.handler)], None, {})()
    return complete


def publish_again(app: AgentApp, target: HandlerName, message: Message, meanwhile: Callable[[], object]) -> None:
    """Publish a request that an earlier process may have published, while another process does something."""
    names = ("registry", "message_factory", "publisher", "settings", "contracts")
    parts = {name: getattr(app, name) for name in names}
    publisher_parts = SimpleNamespace(receipts=LateReceipts(app, meanwhile), **parts)

    async def request() -> None:
        publisher = WorkflowPublisher(publisher_parts)
        try:
            await publisher.request(target, message, again=True)
        finally:
            publisher.close()

    asyncio.run(request())


def test_a_request_that_another_process_publishes_meanwhile_counts_as_published(
    app: AgentApp, target: HandlerName, message: Message
) -> None:
    """The workflow goes on and waits for its answer, and the request is published once."""
    publish_again(app, target, message, lambda: app.publisher.publish_recorded([(target, message)]))
    assert app.receipts.get(message.message_id).status is MessageStatus.SENT
    assert queue_length(app, target.agent) == 1


def test_a_request_that_another_process_withdraws_meanwhile_is_never_published(
    app: AgentApp, target: HandlerName, message: Message
) -> None:
    """Its step does not fail: it publishes the request under another id."""
    with pytest.raises(NeverPublished):
        publish_again(
            app, target, message, lambda: withdraw(app.receipts, [message], InvalidMessage("another was sent"))
        )
    assert queue_length(app, target.agent) == 0
