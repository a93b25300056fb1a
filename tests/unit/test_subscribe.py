"""How subscriptions are registered, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from waooaw_celery import Agent, AgentApp, Message, MessageType, create_app
from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.agents.events.catch_up import CatchUp
from waooaw_celery.agents.events.delivery import delivery_id
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


def test_a_handler_of_events_is_a_celery_task(agent: Agent) -> None:
    """It is registered as <agent>.event.<name>, takes a Message in a unit test, and options as every task."""

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


def test_a_coroutine_handles_events_too(agent: Agent) -> None:
    """Called directly, it is the test's to await."""

    @agent.subscribe("task.*")
    async def note(message: Message) -> Any:
        return message.topic

    assert asyncio.run(note(event())) == "task.created"


def test_an_agent_may_subscribe_several_times_under_several_names(agent: Agent) -> None:
    """Each has a name of its own; the same name twice is refused."""

    def handle(message: Message) -> None: ...

    agent.subscribe("a.*")(handle)
    agent.subscribe("b.*", name="other")(handle)
    assert [each.subscriber for each in agent.app.subscribed] == ["billing.handle", "billing.other"]
    with pytest.raises(ConfigurationError, match=r"billing\.event\.handle already has a handler"):
        agent.subscribe("c.*")(handle)
    assert len(agent.app.subscribed) == 2


def test_bad_subscriptions_are_refused(agent: Agent) -> None:
    """Without a pattern, with a bad one, a bad filter, a bad name or a moment without a time zone."""

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


def test_a_subscription_that_looks_back_gives_its_worker_a_step(agent: Agent) -> None:
    """Only then; a timedelta counts from now."""

    def handle(message: Message) -> None: ...

    agent.subscribe("a.b")(handle)
    assert CatchUp not in agent.app.steps["worker"]
    agent.subscribe("a.b", name="late", since=timedelta(hours=1))(handle)
    assert CatchUp in agent.app.steps["worker"]
    since = agent.app.subscribed[1].catch_up_from
    assert since is not None
    assert timedelta(minutes=59) < datetime.now(UTC) - since < timedelta(minutes=61)


def test_an_event_cannot_be_sent_to_a_subscription(agent: Agent) -> None:
    """A ``.delay`` would be an event that nobody published; the sentence says what to do."""

    agent.app.conf.waooaw_sender = "boss"

    @agent.subscribe("task.*")
    def invoice(message: Message) -> None: ...

    with pytest.raises(InvalidMessage, match="EventBus"):
        invoice.delay({})


def test_names_of_event_handlers_are_no_methods_names() -> None:
    """They have a dot more, and say that they are for EVENTs."""
    name = HandlerName.parse("billing.event.invoice")
    assert name == ("billing", "event.invoice")
    assert name is not None
    assert name.message_type is MessageType.EVENT
    assert HandlerName.parse("billing.other.invoice") is None
    assert HandlerName.parse("billing.event.in.voice") is None
    assert HandlerName.parse("billing.event.") is None


def test_only_an_event_has_attributes_of_one() -> None:
    """A command with a topic is refused."""
    with pytest.raises(InvalidMessage, match="only an EVENT"):
        event().evolve(message_type=MessageType.COMMAND)
    assert (event().topic, Message(from_agent="a", to_agent="b").topic) == ("task.created", None)


def test_a_message_keeps_its_event_on_its_way() -> None:
    """The envelope of an event carries its attributes; no other envelope has them."""
    message = event({"n": 1})
    headers = {"id": message.message_id, "waooaw": message.to_envelope()}
    assert Message.from_headers(headers, "billing", message.payload).event == message.event
    assert "event" not in Message(from_agent="a", to_agent="b").to_envelope()


def test_publishing_checks_before_it_asks_anyone(app: AgentApp) -> None:
    """A topic with a wildcard is refused although no server answers, and so is a publish by nobody."""
    with pytest.raises(InvalidMessage, match="wildcard"):
        EventBus(app).publish("task.*", {}, from_agent="boss")
    with pytest.raises(UnknownSender, match="waooaw_sender"):
        EventBus(app).publish("task.created", {})


def test_an_event_is_one_message_to_a_subscriber() -> None:
    """Its id follows from both, and several patterns that match are one."""
    both = Subscription(agent="a", name="x", patterns=("task.*", "#"))
    other = Subscription(agent="a", name="y", patterns=("task.*",))
    removed = Subscription(agent="a", name="z", patterns=("#",), removed_at=datetime.now(UTC))
    known = KnownSubscriptions(subscriptions=(both, other, removed), schemas=())
    assert known.subscribers("task.created", None) == [both, other]
    assert known.subscribers("task.created", None) == [both, other]
    assert known.subscribers("job", None) == [both]
    assert delivery_id("e", both) == delivery_id("e", both)
    assert len({delivery_id("e", both), delivery_id("e", other), delivery_id("f", both)}) == 3


@pytest.mark.parametrize("tags", ["ocr", 7, ["OCR"], [""], ["a b"], [None]])
def test_bad_capabilities_are_refused(app: AgentApp, tags: Any) -> None:
    """A tag is a short name in small letters."""
    with pytest.raises(InvalidMessage, match="capabilit"):
        Agent("reader", app, capabilities=tags)


def test_capabilities_are_kept_once_and_sorted(app: AgentApp) -> None:
    """As the registry keeps them."""
    assert Agent("reader", app, capabilities=["ocr", "lang:en", "ocr"]).capabilities == ("lang:en", "ocr")
    assert app.capabilities == {"reader": ("lang:en", "ocr")}
