"""The registration of handlers, and what is refused."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from kombu import Queue

from waooaw_celery import Agent, AgentApp, Message, MessageType, create_app
from waooaw_celery.agents.events.task import EventTask
from waooaw_celery.errors import ConfigurationError, InvalidMessage, UnknownSender
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.worker.health.startup_checks import check_time_limits
from waooaw_celery.worker.task import AgentTask


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
    with pytest.raises(ConfigurationError, match=r"on\(\) takes COMMAND, QUERY, ACK, not"):
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

    with pytest.raises(
        UnknownSender, match=r"the sender of the message to greeter\.greet is unknown.*waooaw_sender"
    ):
        greet.delay(name="x")


def test_a_bare_number_as_priority_is_refused(app: AgentApp) -> None:
    """``apply_async(priority=0)`` would mean opposite things on Redis and RabbitMQ."""
    app.conf.update(waooaw_sender="tests", waooaw_agents=["other"])
    with pytest.raises(InvalidMessage, match="priority must be one of URGENT"):
        app.send_task("other.greet", priority=0)


def test_a_message_handler_takes_one_payload(app: AgentApp) -> None:
    """``.delay`` of a handler of a type takes the payload only."""
    app.conf.update(waooaw_sender="tests", waooaw_agents=["other"])
    with pytest.raises(InvalidMessage, match=r"other\.command takes one argument, the payload"):
        app.send_task("other.command", (1, 2))


def test_a_delay_beyond_the_visibility_timeout_is_refused_on_redis(app: AgentApp) -> None:
    """Kombu's transport would redeliver the message until it is due; this package's renews its lease."""
    app.conf.update(waooaw_sender="tests", waooaw_agents=["other"], waooaw_redis_transport="kombu")
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


@pytest.mark.parametrize("option", ["base", "shared"])
def test_options_that_the_agent_sets_are_refused(agent: Agent, option: str) -> None:
    """The agent sets the base of the task; the name of a handler of a type is the type's."""
    options: dict[str, Any] = {option: "x"}
    with pytest.raises(ConfigurationError, match=f"cannot have the options {option}"):

        @agent.method(**options)
        def greet() -> None: ...

    with pytest.raises(ConfigurationError, match="cannot have the options name"):

        @agent.on(MessageType.COMMAND, name="work")
        def work(message: Message) -> None: ...


class Service:
    """An object whose methods are handlers."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting
        self.got: list[Any] = []

    def greet(self, name: str, sign: str = "!") -> str:
        """Greet somebody."""
        return f"{self.greeting}, {name}{sign}"

    async def later(self, name: str) -> str:
        return self.greet(name)

    def parts(self, name: str) -> Iterator[str]:
        yield self.greeting
        yield name

    def take(self, value: Any) -> None:
        self.got.append(value)

    def __call__(self, name: str, sign: str = "!") -> str:
        """Call it."""
        return self.greet(name, sign)


def greet_with(greeting: str, name: str, sign: str = "!") -> str:
    """Greet with a greeting."""
    return f"{greeting}, {name}{sign}"


async def greet_later_with(greeting: str, name: str) -> str:
    return f"{greeting}, {name}!"


def test_a_method_may_have_another_name_than_its_function(agent: Agent) -> None:
    """With a decorator, and without one."""

    @agent.method(name="get_status", time_limit=5)
    def _status(task: str) -> str:
        """Say how it is."""
        return f"{task} is done"

    assert (_status.name, _status.time_limit, _status.__doc__) == ("greeter.get_status", 5, "Say how it is.")
    assert _status(task="it") == "it is done"
    assert agent.method(greet_with, name="greet").name == "greeter.greet"
    assert agent.app.agents["greeter"] == ["get_status", "greet"]


@pytest.mark.parametrize(
    ("function", "name", "doc"),
    [
        (Service("Hello").greet, None, "Greet somebody."),
        (Service("Hello").greet, "hail", "Greet somebody."),
        (Service("Hello"), "greet", "Call it."),
        (partial(greet_with, "Hello"), "greet", "Greet with a greeting."),
        (partial(Service("Hello").greet, sign="!"), "greet", "Greet somebody."),
        (partial(Service("Hello")), "greet", "Call it."),
        (lambda name, sign="!": f"Hello, {name}{sign}", "greet", None),
    ],
    ids=["method", "named", "object", "partial", "partial method", "partial object", "lambda"],
)
@pytest.mark.parametrize("bind", [False, True])
def test_a_method_may_be_any_callable(
    agent: Agent, function: Callable[..., Any], name: str | None, doc: str | None, bind: bool
) -> None:
    """Its arguments are checked before it is sent, as those of a function, and a unit test can call it."""
    if bind:
        given, function = function, lambda task, *args, **kwargs: given(*args, **kwargs)
        name, doc = name or "greet", None
    task = agent.method(function, name=name, bind=bind)
    assert task.name == f"greeter.{name or 'greet'}"
    assert doc in (None, task.__doc__)
    assert task("Ada") == task(name="Ada") == task("Ada", sign="!") == "Hello, Ada!"
    if not bind:
        with pytest.raises(TypeError, match="nobody"):
            task.delay(nobody="x")
        with pytest.raises(TypeError, match="name"):
            task.delay()
    assert not task.stoppable


@pytest.mark.parametrize(
    "function",
    [Service("Hello").later, partial(greet_later_with, "Hello"), partial(Service("Hello").later)],
    ids=["method", "partial", "partial method"],
)
def test_an_async_method_may_be_any_callable(agent: Agent, function: Callable[..., Any]) -> None:
    """It is awaited, and its arguments are checked."""
    task = agent.method(function, name="later")
    assert asyncio.run(task("Ada")) == asyncio.run(task(name="Ada")) == "Hello, Ada!"
    assert task.stoppable
    with pytest.raises(TypeError, match="nobody"):
        task.delay(nobody="x")
    with pytest.raises(ConfigurationError, match="cannot have once=True"):
        agent.method(function, name="once", once=True)


def test_a_generator_may_be_any_callable(agent: Agent) -> None:
    """A method of an object, an object with an asynchronous ``__call__``, and a lambda."""

    class Parts:
        async def __call__(self, name: str) -> AsyncIterator[str]:
            yield name

    for number, function in enumerate((Service("Hello").parts, Parts(), lambda name: (yield name))):
        task = agent.method(function, name=f"parts_{number}")
        assert task.stoppable
        returned = task(name="Ada")
        assert inspect.isgenerator(returned) or inspect.isasyncgen(returned)


def test_a_handler_of_messages_may_be_any_callable(agent: Agent) -> None:
    """The handlers of types, events and replies too; only an event's and a reply's need a name."""
    service, got = Service("Hello"), []
    message = Message(from_agent="a", to_agent="greeter")
    agent.on(MessageType.COMMAND)(service.take)(message)
    agent.on(MessageType.QUERY)(partial(service.take))(message)
    agent.on(MessageType.ACK)(lambda message: got.append(message))(message)
    assert service.got == [message, message]
    assert got == [message]
    assert agent.subscribe("task.*")(service.take).name == "greeter.event.take"
    assert agent.subscribe("task.*", name="other")(partial(service.take)).name == "greeter.event.other"
    assert agent.reply(service.take).name == "greeter.take"
    assert agent.reply(lambda response: None, name="came").name == "greeter.came"


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda name: name, "a lambda"),
        (partial(greet_with, "Hello"), "a partial"),
        (Service("Hello"), "a Service"),
    ],
    ids=["lambda", "partial", "object"],
)
def test_what_has_no_name_of_its_own_needs_one(agent: Agent, function: Callable[..., Any], what: str) -> None:
    """The error says how to give it one."""
    error = rf'{what} has no name of its own: choose one, such as name="get_status"'
    for register in (agent.method, agent.reply, agent.subscribe("a.*")):
        with pytest.raises(ConfigurationError, match=error):
            register(function)
    assert agent.app.agents["greeter"] == []


def test_a_name_that_cannot_be_a_handlers_is_refused(agent: Agent) -> None:
    """It must be an identifier, and not the name of a type; what is no function is refused."""
    for name in ("get status", "get.status", "1", "", "event.x", "größe "):
        with pytest.raises(ConfigurationError, match="a handler cannot have the name"):
            agent.method(greet_with, name=name)
    with pytest.raises(ConfigurationError, match="the name of a handler must be a string, not 7"):
        agent.method(greet_with, name=7)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"register it with @agent\.on\(MessageType\.QUERY\)"):
        agent.method(greet_with, name="query")
    with pytest.raises(ConfigurationError, match=r'must be a function .*write name="get_status"'):
        agent.method("get_status")  # type: ignore[arg-type]


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


@pytest.mark.parametrize("bind", [False, True])
def test_a_handler_of_messages_takes_one_argument(agent: Agent, bind: bool) -> None:
    """A function that cannot be called with a message, or with a response, is refused when it is registered."""

    def none() -> None: ...

    def three(first: Any, second: Any, third: Any) -> None: ...

    for function in (none, three):
        with pytest.raises(ConfigurationError, match=rf"{function.__name__} must take one argument, the Message"):
            agent.on(MessageType.COMMAND, bind=bind)(function)
        with pytest.raises(ConfigurationError, match="must take one argument, the Message"):
            agent.subscribe("a.*", bind=bind)(function)
        with pytest.raises(ConfigurationError, match="must take one argument, the Response"):
            agent.reply(bind=bind)(function)
    assert agent.app.agents["greeter"] == []


def test_a_handler_has_the_methods_of_the_applications_task_class() -> None:
    """In a Django project Celery sets ``DjangoTask``, whose ``delay_on_commit`` every handler has."""
    app = AgentApp("django", broker="redis://", task_cls="celery.contrib.django.task:DjangoTask")
    agent = Agent("worker-1", app)

    def handle(message: Message) -> None:
        """Handle a message."""

    handlers: list[Any] = [agent.method(handle), agent.on(MessageType.COMMAND)(handle)]
    handlers.append(agent.subscribe("a.*")(handle))
    assert all(callable(handler.delay_on_commit) for handler in handlers)
    assert all(isinstance(handler, AgentTask) for handler in handlers)
    assert isinstance(handlers[2], EventTask)


def test_an_identity_is_one_printable_word() -> None:
    """A DID or an e-mail address is taken, and the application knows it."""
    app = create_app("identities", broker_url="redis://")
    assert Agent("crm", app, identity="did:web:example.org:crm").identity == "did:web:example.org:crm"
    assert app.identities == {"crm": "did:web:example.org:crm"}
    for wrong in ("", "two words", "line\nbreak", "x" * 256, 7):
        with pytest.raises(InvalidMessage, match="identity must be 1 to 255 printable characters"):
            Agent("other", app, identity=wrong)  # type: ignore[arg-type]
