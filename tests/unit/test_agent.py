"""The registration of handlers, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from kombu import Queue

from waooaw_celery import Agent, AgentApp, Message, MessageType, create_app
from waooaw_celery.errors import ConfigurationError, InvalidMessage, UnknownSender
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.worker.health.startup_checks import check_time_limits


@pytest.fixture
def app() -> Iterator[AgentApp]:
    app = create_app(broker_url="redis://nowhere.invalid")
    yield app
    app.close()


@pytest.fixture
def agent(app: AgentApp) -> Agent:
    return Agent("greeter", app)


def test_a_method_is_a_celery_task(agent: Agent) -> None:
    """It is registered as <agent>.<method>, and a unit test can call it directly."""

    @agent.method
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    assert agent.app.tasks["greeter.greet"].name == "greeter.greet"
    assert greet(name="Ada") == "Hello, Ada!"
    assert agent.app.agents == {"greeter": ["greet"]}


def test_a_handler_can_be_called_with_a_message(agent: Agent) -> None:
    """A handler of a type is registered under the type's name, and takes a Message in a unit test."""
    got: list[Message] = []

    @agent.on(MessageType.COMMAND)
    def work(message: Message) -> None:
        got.append(message)

    message = Message(from_agent="a", to_agent="greeter")
    work(message)
    assert got == [message]
    assert work.name == "greeter.command"


def test_handlers_stay_in_their_own_application(agent: Agent) -> None:
    """A handler is not registered in another application of the same process."""

    @agent.method
    def greet() -> None: ...

    other = create_app(broker_url="redis://nowhere.invalid")
    assert "greeter.greet" in agent.app.tasks
    assert "greeter.greet" not in other.tasks
    other.close()


def test_options_are_those_of_a_celery_task(agent: Agent) -> None:
    """Options such as time_limit reach the task."""

    @agent.method(time_limit=5, max_retries=1)
    def slow() -> None:
        """Do it."""

    assert (slow.time_limit, slow.max_retries, slow.__doc__) == (5, 1, "Do it.")


def test_the_worker_consumes_its_agents_queues(app: AgentApp) -> None:
    """A worker consumes the queues of its agents, without a -Q option."""
    Agent("one", app)
    Agent("two", app)
    assert set(app.amqp.queues.consume_from) == {"agent.one", "agent.two"}
    assert app.consumed_agents() == ("one", "two")
    app.amqp.queues.select(["agent.two"])  # as the worker's option -Q does
    assert app.consumed_agents() == ("two",)


def test_an_async_handler_can_be_awaited_in_a_unit_test(agent: Agent) -> None:
    """It is called with a Message or with parameters."""

    @agent.method
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    @agent.on(MessageType.COMMAND)
    async def work(message: Message) -> str:
        return message.to_agent

    assert asyncio.run(greet("Ada")) == "Hello, Ada!"
    assert asyncio.run(work(Message(from_agent="a", to_agent="greeter"))) == "greeter"


def test_the_arguments_of_an_async_method_are_checked_before_it_is_sent(agent: Agent) -> None:
    """Celery compares the call with the signature of the method."""

    @agent.method
    async def greet(name: str) -> str:
        return name

    with pytest.raises(TypeError, match="nobody"):
        greet.delay(nobody="x")


def test_a_second_handler_of_a_name_is_refused(agent: Agent) -> None:
    """The second handler of a type raises when it is registered."""

    @agent.on(MessageType.ACK)
    def first(message: Message) -> None: ...

    with pytest.raises(ConfigurationError, match=r"greeter\.ack already has a handler"):

        @agent.on(MessageType.ACK)
        def second(message: Message) -> None: ...


def test_a_method_cannot_be_named_like_a_type(agent: Agent) -> None:
    """A method ``command`` would be confused with the handler of COMMAND."""
    with pytest.raises(ConfigurationError, match=r"register it with @agent\.on\(MessageType\.COMMAND\)"):

        @agent.method
        def command() -> None: ...


@pytest.mark.parametrize("message_type", [MessageType.EVENT, MessageType.RESPONSE, "later"])
def test_on_takes_only_types_that_can_be_sent(agent: Agent, message_type: Any) -> None:
    """The error for EVENT and RESPONSE says how they are handled."""
    with pytest.raises(ConfigurationError, match="an agent handles COMMAND, QUERY, ACK with on"):
        agent.on(message_type)


@pytest.mark.parametrize("name", ["Greeter", "a.b", "celery"])
def test_an_invalid_agent_name_is_refused(app: AgentApp, name: str) -> None:
    """It is refused when the agent is created."""
    with pytest.raises(InvalidMessage, match="agent"):
        Agent(name, app)


def test_a_second_agent_of_a_name_is_refused(app: AgentApp, agent: Agent) -> None:
    """An application has one agent of a name."""
    with pytest.raises(ConfigurationError, match="already has an agent 'greeter'"):
        Agent("greeter", app)


def test_a_missing_sender_is_an_error(agent: Agent) -> None:
    """Outside of handlers, an agent is not the sender of a message to itself."""

    @agent.method
    def greet(name: str) -> str:
        return name

    with pytest.raises(UnknownSender, match=r"who sends to greeter\.greet\?.*waooaw_sender"):
        greet.delay(name="x")


def test_a_bare_number_as_priority_is_refused(app: AgentApp) -> None:
    """``apply_async(priority=0)`` would mean opposite things on Redis and RabbitMQ."""
    app.conf.waooaw_sender = "tests"
    with pytest.raises(InvalidMessage, match="priority must be one of URGENT"):
        app.send_task("other.greet", priority=0)


def test_a_message_handler_takes_one_payload(app: AgentApp) -> None:
    """``.delay`` of a handler of a type takes the payload only."""
    app.conf.waooaw_sender = "tests"
    with pytest.raises(InvalidMessage, match=r"other\.command takes one argument, the payload"):
        app.send_task("other.command", (1, 2))


def test_a_delay_beyond_the_visibility_timeout_is_refused_on_redis(app: AgentApp) -> None:
    """Kombu's transport would redeliver the message until it is due; this package's renews its lease."""
    app.conf.update(waooaw_sender="tests", waooaw_redis_transport="kombu")
    for option in ({"countdown": 3600}, {"eta": datetime.now(UTC) + timedelta(hours=1)}):
        with pytest.raises(InvalidMessage, match=r"due in 3\d\d\d.* s and may run for 300 s would be redelivered"):
            app.send_task("other.greet", **option)


def test_a_plain_task_named_like_a_handler_is_not_a_handler(agent: Agent) -> None:
    """A module greeter.py may have plain tasks greeter.…, which are not handlers of the agent ``greeter``."""

    @agent.app.task(name="greeter.tidy", shared=False)
    def tidy() -> None: ...

    @agent.method
    def greet() -> None: ...

    assert agent.app.target("greeter.tidy") is None
    assert agent.app.target("greeter.greet") == ("greeter", "greet")
    assert agent.app.conf.task_default_queue == "agent.greeter"


def test_a_projects_own_queues_are_consumed_too(app: AgentApp) -> None:
    """task_queues may be set before or after the agents are created."""
    app.conf.task_queues = [Queue("media")]
    Agent("one", app)
    assert set(app.amqp.queues.consume_from) == {"media", "agent.one"}


def test_a_handler_longer_than_the_visibility_timeout_is_refused(agent: Agent) -> None:
    """Kombu's transport would give its message to a second worker; this package's renews its lease."""

    @agent.method(time_limit=5000)
    def slow() -> None: ...

    check_time_limits(agent.app)
    agent.app.conf.waooaw_redis_transport = "kombu"
    del agent.app.components.settings  # they are read once
    with pytest.raises(ConfigurationError, match=r"greeter\.slow may run for 5000 s, and after 960 s Redis"):
        check_time_limits(agent.app)


def test_a_handler_longer_than_lost_seconds_is_refused() -> None:
    """The ledger would mark its message as FAILED while it runs, so the worker does not start."""
    ledger = {"waooaw_database_url": "sqlite:////nowhere/ledger", "waooaw_lost_seconds": 600}
    app = create_app(broker_url="amqp://nowhere.invalid", **ledger)
    agent = Agent("patient", app)

    @agent.method(time_limit=599)
    def quick() -> None: ...

    check_time_limits(app)

    @agent.method(time_limit=600)
    def slow() -> None: ...

    error = r"patient\.slow may run for 600 s, and after 600 s the ledger .* raise waooaw_lost_seconds"
    with pytest.raises(ConfigurationError, match=error):
        check_time_limits(app)
    app.close()


@pytest.mark.parametrize("option", ["name", "base", "shared"])
def test_options_that_the_agent_sets_are_refused(agent: Agent, option: str) -> None:
    """The agent sets the name and the base of the task."""
    with pytest.raises(ConfigurationError, match=f"cannot have the options {option}"):

        @agent.method(**{option: "x"})
        def greet() -> None: ...


def test_a_function_without_a_name_is_refused(agent: Agent) -> None:
    """A lambda has no name to send to."""
    with pytest.raises(ConfigurationError, match="a handler cannot have the name"):
        agent.method(lambda: None)


@pytest.mark.parametrize(
    ("spell", "seconds"),
    [
        (lambda now: 60, 60),
        (lambda now: timedelta(seconds=60), 60),
        (lambda now: now + timedelta(hours=1), 3600),
        (lambda now: (now + timedelta(hours=1)).isoformat(), 3600),
        (lambda now: (now + timedelta(hours=3)).replace(tzinfo=None), 3600),
    ],
)
def test_parse_datetime_reads_celerys_forms(spell: Callable[[datetime], object], seconds: float) -> None:
    """Seconds, timedelta, datetime and text; a datetime without a time zone is in the application's."""
    now = datetime.now(UTC)
    at = parse_datetime(spell(now), timezone(timedelta(hours=2)))
    assert at is not None
    assert abs((at - now).total_seconds() - seconds) < 5


@pytest.mark.parametrize("value", ["tomorrow", object(), True])
def test_an_invalid_time_is_refused(value: object) -> None:
    """A value that is none of Celery's forms of a time raises InvalidMessage."""
    with pytest.raises(InvalidMessage, match=r"not an ISO 8601 datetime|a time must be"):
        parse_datetime(value, UTC)
