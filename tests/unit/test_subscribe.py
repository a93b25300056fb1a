"""The registration of subscriptions and capabilities, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from waooaw_celery import Agent, AgentApp, Message, MessageType, create_app
from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.agents.events.catch_up import CatchUp
from waooaw_celery.app.events.delivery import delivery_id
from waooaw_celery.errors import ConfigurationError, InvalidMessage, UnknownSender
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.store.subscriptions import KnownSubscriptions, Subscription


@pytest.fixture
def app() -> Iterator[AgentApp]:
    app = create_app(broker_url="redis://nowhere.invalid")
    yield app
    app.close()


@pytest.fixture
def agent(app: AgentApp) -> Agent:
    return Agent("billing", app)


def event(payload: Any = None) -> Message:
    attributes = EventAttributes(id="e", topic="task.created", source="boss", time=datetime.now(UTC))
    return Message(
        from_agent="boss", to_agent="billing", message_type=MessageType.EVENT, payload=payload, event=attributes
    )


def test_an_event_handler_is_a_celery_task(agent: Agent) -> None:
    """It is registered as <agent>.event.<name>, has the options of a task, and takes a Message in a unit test."""

    @agent.subscribe("task.*", "job.#", where={"n": 1}, time_limit=7)
    def invoice(message: Message) -> Any:
        """Write it."""
        return message.payload

    assert (invoice.name, invoice.time_limit, invoice.__doc__) == ("billing.event.invoice", 7, "Write it.")
    assert invoice(event({"n": 1})) == {"n": 1}
    assert agent.app.agents == {"billing": ["event.invoice"]}
    assert agent.app.subscribed == [
        Subscription(agent="billing", name="invoice", patterns=("task.*", "job.#"), where=Filter({"n": 1}))
    ]


def test_an_event_handler_may_be_a_coroutine(agent: Agent) -> None:
    """A unit test that calls it directly awaits it."""

    @agent.subscribe("task.*")
    async def note(message: Message) -> Any:
        return message.topic

    assert asyncio.run(note(event())) == "task.created"


def test_an_agent_may_have_several_subscriptions(agent: Agent) -> None:
    """Each needs its own name; a second one of the same name is refused."""

    def handle(message: Message) -> None: ...

    agent.subscribe("a.*")(handle)
    agent.subscribe("b.*", name="other")(handle)
    assert [each.subscriber for each in agent.app.subscribed] == ["billing.handle", "billing.other"]
    with pytest.raises(ConfigurationError, match=r"billing\.event\.handle already has a handler"):
        agent.subscribe("c.*")(handle)
    assert len(agent.app.subscribed) == 2


def test_invalid_subscriptions_are_refused(agent: Agent) -> None:
    """The pattern is missing or invalid, or the filter, the name or the start time is invalid."""

    def handle(message: Message) -> None: ...

    with pytest.raises(ConfigurationError, match="needs a pattern"):
        agent.subscribe()
    with pytest.raises(ConfigurationError, match="needs a pattern"):
        agent.subscribe(handle)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="or are"):
        agent.subscribe("task*")
    with pytest.raises(InvalidMessage, match="condition 'equals'"):
        agent.subscribe("task.*", where={"a": {"equals": 1}})
    with pytest.raises(ConfigurationError, match="a handler cannot have the name"):
        agent.subscribe("task.*", name="one two")(handle)
    with pytest.raises(ConfigurationError, match="aware datetime or a timedelta"):
        agent.subscribe("task.*", since=datetime(2026, 1, 1))


def test_a_subscription_with_since_adds_the_catch_up_step(agent: Agent) -> None:
    """Without ``since`` the worker has no such step; a timedelta counts back from now."""

    def handle(message: Message) -> None: ...

    agent.subscribe("a.b")(handle)
    assert CatchUp not in agent.app.steps["worker"]
    agent.subscribe("a.b", name="late", since=timedelta(hours=1))(handle)
    assert CatchUp in agent.app.steps["worker"]
    since = agent.app.subscribed[1].catch_up_from
    assert since is not None
    assert timedelta(minutes=59) < datetime.now(UTC) - since < timedelta(minutes=61)


def test_delay_of_an_event_handler_is_refused(agent: Agent) -> None:
    """The error says to publish the event."""

    agent.app.conf.waooaw_sender = "boss"

    @agent.subscribe("task.*")
    def invoice(message: Message) -> None: ...

    with pytest.raises(InvalidMessage, match="EventBus"):
        invoice.delay({})


def test_names_of_event_handlers_and_methods_do_not_clash() -> None:
    """The name of an event handler has one more dot, and its message type is EVENT."""
    name = HandlerName.parse("billing.event.invoice")
    assert name == ("billing", "event.invoice")
    assert name is not None
    assert name.message_type is MessageType.EVENT
    assert HandlerName.parse("billing.other.invoice") is None
    assert HandlerName.parse("billing.event.in.voice") is None
    assert HandlerName.parse("billing.event.") is None


def test_only_an_event_has_event_attributes() -> None:
    """A command with event attributes is refused."""
    with pytest.raises(InvalidMessage, match="only an EVENT"):
        event().evolve(message_type=MessageType.COMMAND)
    assert (event().topic, Message(from_agent="a", to_agent="b").topic) == ("task.created", None)


def test_the_envelope_carries_the_event_attributes() -> None:
    """The envelope of any other message has none."""
    message = event({"n": 1})
    headers = {"id": message.message_id, "waooaw": message.to_envelope()}
    assert Message.from_headers(headers, "billing", message.payload).event == message.event
    assert "event" not in Message(from_agent="a", to_agent="b").to_envelope()


def test_publish_checks_its_arguments_first(app: AgentApp) -> None:
    """An invalid topic and a missing sender are refused before any server is used."""
    with pytest.raises(InvalidMessage, match="wildcard"):
        EventBus(app).publish("task.*", {}, from_agent="boss")
    with pytest.raises(UnknownSender, match="waooaw_sender"):
        EventBus(app).publish("task.created", {})


def test_a_subscriber_gets_one_message_for_an_event() -> None:
    """Its id depends on the event and the subscription only; several patterns that match are one delivery."""
    both = Subscription(agent="a", name="x", patterns=("task.*", "#"))
    other = Subscription(agent="a", name="y", patterns=("task.*",))
    removed = Subscription(agent="a", name="z", patterns=("#",), removed_at=datetime.now(UTC))
    known = KnownSubscriptions(subscriptions=(both, other, removed), schemas=())
    assert known.subscribers("task.created", None) == [both, other]
    assert known.subscribers("task.created", None) == [both, other]
    assert known.subscribers("job", None) == [both]
    # Another version of the package must compute the same ids, or a replay would deliver the event again.
    assert delivery_id("e", both) == "1abf895a-56cd-5c50-9dfd-c6ee8234352e"
    assert delivery_id("e", other) == "d4a4c9c7-4a80-539c-bc5d-7bf714f1e9ea"
    assert delivery_id("f", both) not in (delivery_id("e", both), delivery_id("e", other))


@pytest.mark.parametrize("tags", ["ocr", 7, ["OCR"], [""], ["a b"], [None]])
def test_invalid_capabilities_are_refused(app: AgentApp, tags: Any) -> None:
    """A tag is 1 to 63 lower-case letters, digits and a few other characters."""
    with pytest.raises(InvalidMessage, match="capabilit"):
        Agent("reader", app, capabilities=tags)


def test_capabilities_are_sorted_without_duplicates(app: AgentApp) -> None:
    """The registry stores them in the same way."""
    assert Agent("reader", app, capabilities=["ocr", "lang:en", "ocr"]).capabilities == ("lang:en", "ocr")
    assert app.capabilities == {"reader": ("lang:en", "ocr")}
