"""How handlers are registered, and what is refused."""

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
    """It is registered as <agent>.<method> and can be called directly, as in a unit test."""

    @agent.method
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    assert agent.app.tasks["greeter.greet"].name == "greeter.greet"
    assert greet(name="Ada") == "Hello, Ada!"
    assert agent.app.agents == {"greeter": ["greet"]}


def test_a_handler_can_be_called_with_a_message(agent: Agent) -> None:
    """A handler of a type is registered under the type's name and takes a Message in a unit test."""
    got: list[Message] = []

    @agent.on(MessageType.COMMAND)
    def work(message: Message) -> None:
        got.append(message)

    message = Message(from_agent="a", to_agent="greeter")
    work(message)
    assert got == [message]
    assert work.name == "greeter.command"


def test_handlers_stay_in_their_own_application(agent: Agent) -> None:
    """A task of an agent is not registered in another application of the same process."""

    @agent.method
    def greet() -> None: ...

    other = create_app(broker_url="redis://nowhere.invalid")
    assert "greeter.greet" in agent.app.tasks
    assert "greeter.greet" not in other.tasks
    other.close()


def test_options_are_those_of_a_celery_task(agent: Agent) -> None:
    """time_limit and the like reach the task."""

    @agent.method(time_limit=5, max_retries=1)
    def slow() -> None:
        """Do it."""

    assert (slow.time_limit, slow.max_retries, slow.__doc__) == (5, 1, "Do it.")


def test_the_worker_consumes_its_agents_queues(app: AgentApp) -> None:
    """The application's queues are those of its agents, without any option."""
    Agent("one", app)
    Agent("two", app)
    assert set(app.amqp.queues.consume_from) == {"agent.one", "agent.two"}
    assert app.consumed_agents() == ("one", "two")
    app.amqp.queues.select(["agent.two"])  # as the worker's option -Q does
    assert app.consumed_agents() == ("two",)


def test_an_async_handler_called_directly_is_awaited_by_its_caller(agent: Agent) -> None:
    """In a unit test an async def handler is what it looks like, with a Message or with parameters."""

    @agent.method
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    @agent.on(MessageType.COMMAND)
    async def work(message: Message) -> str:
        return message.to_agent

    assert asyncio.run(greet("Ada")) == "Hello, Ada!"
    assert asyncio.run(work(Message(from_agent="a", to_agent="greeter"))) == "greeter"


def test_the_arguments_of_an_async_method_are_checked_before_it_is_sent(agent: Agent) -> None:
    """Celery compares a call with the signature as it was written."""

    @agent.method
    async def greet(name: str) -> str:
        return name

    with pytest.raises(TypeError, match="nobody"):
        greet.delay(nobody="x")


def test_a_second_handler_of_a_name_is_refused(agent: Agent) -> None:
    """Two handlers for one type raise when the second is registered."""

    @agent.on(MessageType.ACK)
    def first(message: Message) -> None: ...

    with pytest.raises(ConfigurationError, match=r"greeter\.ack already has a handler"):

        @agent.on(MessageType.ACK)
        def second(message: Message) -> None: ...


def test_a_method_cannot_be_named_like_a_type(agent: Agent) -> None:
    """A method ``command`` would be mistaken for the handler of COMMAND."""
    with pytest.raises(ConfigurationError, match=r"register it with @agent\.on\(MessageType\.COMMAND\)"):

        @agent.method
        def command() -> None: ...


@pytest.mark.parametrize("message_type", [MessageType.EVENT, MessageType.RESPONSE, "later"])
def test_only_what_is_sent_can_be_handled(agent: Agent, message_type: Any) -> None:
    """EVENT and RESPONSE have no handler of their own; the error says where they go."""
    with pytest.raises(ConfigurationError, match="an agent handles COMMAND, QUERY, ACK with on"):
        agent.on(message_type)


@pytest.mark.parametrize("name", ["Greeter", "a.b", "celery"])
def test_an_agents_name_keeps_the_grammar(app: AgentApp, name: str) -> None:
    """A name outside the grammar is refused when the agent is made."""
    with pytest.raises(InvalidMessage, match="agent"):
        Agent(name, app)


def test_an_agent_is_made_once(app: AgentApp, agent: Agent) -> None:
    """A second agent of the same name in an application is refused."""
    with pytest.raises(ConfigurationError, match="'greeter' already"):
        Agent("greeter", app)


def test_nobody_is_not_a_sender(agent: Agent) -> None:
    """Outside of handlers, an agent is not taken for the sender of a message to itself."""

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
    """``.delay`` of a handler of a type takes the payload and nothing else."""
    app.conf.waooaw_sender = "tests"
    with pytest.raises(InvalidMessage, match=r"other\.command takes one argument, the payload"):
        app.send_task("other.command", (1, 2))


def test_a_delay_beyond_the_visibility_timeout_is_refused_on_redis(app: AgentApp) -> None:
    """Kombu's transport would hand such a message out again and again until it is due; ours renews its lease."""
    app.conf.update(waooaw_sender="tests", waooaw_redis_transport="kombu")
    for option in ({"countdown": 3600}, {"eta": datetime.now(UTC) + timedelta(hours=1)}):
        with pytest.raises(InvalidMessage, match=r"due in 3\d\d\d.* s and may run for 300 s would be redelivered"):
            app.send_task("other.greet", **option)


def test_a_plain_task_named_like_a_handler_is_left_alone(agent: Agent) -> None:
    """The module greeter.py makes plain tasks named greeter.…: they are no handlers of the agent ``greeter``."""

    @agent.app.task(name="greeter.tidy", shared=False)
    def tidy() -> None: ...

    @agent.method
    def greet() -> None: ...

    assert agent.app.target("greeter.tidy") is None
    assert agent.app.target("greeter.greet") == ("greeter", "greet")
    assert agent.app.conf.task_default_queue == "agent.greeter"


def test_a_projects_own_queues_stay_beside_the_agents(app: AgentApp) -> None:
    """task_queues that a project sets, before or after its agents, are consumed too."""
    app.conf.task_queues = [Queue("media")]
    Agent("one", app)
    assert set(app.amqp.queues.consume_from) == {"media", "agent.one"}


def test_a_handler_that_outlasts_the_visibility_timeout_is_refused(agent: Agent) -> None:
    """Kombu's transport would hand its message to a second worker, which does not start; ours renews its lease."""

    @agent.method(time_limit=5000)
    def slow() -> None: ...

    check_time_limits(agent.app)
    agent.app.conf.waooaw_redis_transport = "kombu"
    del agent.app.settings  # they are read once
    with pytest.raises(ConfigurationError, match=r"greeter\.slow may run for 5000 s, and after 960 s Redis"):
        check_time_limits(agent.app)


def test_a_handler_that_would_be_taken_for_lost_is_refused() -> None:
    """The ledger would mark its message as FAILED while it still runs: the worker does not start."""
    ledger = {"waooaw_database_url": "sqlite:////nowhere/ledger", "waooaw_lost_seconds": 600}
    app = create_app(broker_url="amqp://nowhere.invalid", **ledger)
    agent = Agent("patient", app)

    @agent.method(time_limit=599)
    def quick() -> None: ...

    check_time_limits(app)

    @agent.method(time_limit=600)
    def slow() -> None: ...

    sentence = r"patient\.slow may run for 600 s, and after 600 s the ledger .* raise waooaw_lost_seconds"
    with pytest.raises(ConfigurationError, match=sentence):
        check_time_limits(app)
    app.close()


@pytest.mark.parametrize("option", ["name", "base", "shared"])
def test_what_the_agent_sets_is_no_option(agent: Agent, option: str) -> None:
    """The name and the base of a handler's task are the agent's."""
    with pytest.raises(ConfigurationError, match=f"cannot have the options {option}"):

        @agent.method(**{option: "x"})
        def greet() -> None: ...


def test_a_function_without_a_name_is_refused(agent: Agent) -> None:
    """A lambda has no name that could be sent to."""
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
def test_moments_are_read_as_celery_writes_them(spell: Callable[[datetime], object], seconds: float) -> None:
    """Seconds, timedelta, datetime and text; what has no time zone is in the application's."""
    now = datetime.now(UTC)
    at = parse_datetime(spell(now), timezone(timedelta(hours=2)))
    assert at is not None
    assert abs((at - now).total_seconds() - seconds) < 5


@pytest.mark.parametrize("value", ["tomorrow", object(), True])
def test_an_invalid_time_is_refused(value: object) -> None:
    """A value that is none of Celery's forms of a time raises InvalidMessage."""
    with pytest.raises(InvalidMessage, match=r"not an ISO 8601 datetime|a time must be"):
        parse_datetime(value, UTC)
