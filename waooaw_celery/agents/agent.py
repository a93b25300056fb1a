"""An agent: the small object in its module that holds its handlers and speaks in its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Task
from sqlalchemy.orm import Session

from waooaw_celery.agents.client import AgentClient
from waooaw_celery.agents.events.catch_up import CatchUp
from waooaw_celery.agents.events.task import EventTask
from waooaw_celery.agents.requests.response import response_of_reply
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.message import SENDABLE, TYPE_NAMES, Message, MessageType
from waooaw_celery.messages.queues import EVENT_HANDLERS, HandlerName
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import check_pattern
from waooaw_celery.messages.validation import JSON, check_agent_name, check_tags
from waooaw_celery.store.subscriptions import Subscription
from waooaw_celery.worker.execution.completion import as_plain_function
from waooaw_celery.worker.execution.exactly_once import current_session
from waooaw_celery.worker.outcomes.retry_policy import Retries
from waooaw_celery.worker.task import AgentTask

#: Functions whose call is only the beginning: what they return is to be awaited or exhausted.
_TO_COMPLETE = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


class Agent(AgentClient):
    """An agent and its handlers.

    The worker of its application consumes its queue, ``agent.<name>``, without any option.

    Args:
        name: its name, ``^[a-z0-9][a-z0-9_-]{0,62}$``.
        app: the application that its handlers are tasks of.
        capabilities: tags of what it can do, such as ``ocr``: ``broadcast`` finds it by them.

    Raises:
        InvalidMessage: the name or a tag breaks the grammar or is reserved.
        ConfigurationError: the application has an agent of this name already, or is a plain Celery application.

    Example:
        >>> agent = Agent("greeter", create_app())
        >>> @agent.method
        ... def greet(name: str) -> str:
        ...     return f"Hello, {name}!"
    """

    def __init__(self, name: str, app: AgentApp, capabilities: Iterable[str] = ()) -> None:
        if check_agent_name(name) in require_agent_app(app, "Agent").agents:
            raise ConfigurationError(f"this application has an agent {name!r} already")
        super().__init__(name, app)
        self.capabilities = check_tags(capabilities)
        app.capabilities[name] = self.capabilities
        self._handlers = app.agents.setdefault(name, [])

    def on(self, message_type: MessageType, **options: Any) -> Callable[[Callable[..., Any]], Task[Any, Any]]:
        """Register the handler, ``def`` or ``async def``, of all messages of this type; it gets the Message.

        Args:
            message_type: COMMAND, QUERY or ACK.
            options: ``retries``, a number or Retries: when it is tried again; ``once=True``: what it does with
                ``session`` happens once, however often the message comes; and those of a Celery task:
                ``time_limit``, ``bind``, …

        Returns:
            A decorator, which returns the Celery task ``<agent>.<type>``.

        Raises:
            ConfigurationError: another type, or a second handler for the type.
        """
        if not isinstance(message_type, MessageType) or message_type not in SENDABLE:
            raise ConfigurationError(
                f"an agent handles {', '.join(type_.name for type_ in SENDABLE)} with on(), not "
                f"{getattr(message_type, 'name', message_type)}: a RESPONSE comes back to whoever requested it, "
                "and an EVENT is published to its subscribers: @agent.subscribe"
            )

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            run = _of_message(function, bool(options.get("bind")))
            return self._register(
                message_type.value, function, run, options, {"bind": True, "ignore_result": True}
            )

        return decorate

    def subscribe(
        self,
        *patterns: str,
        where: Mapping[str, JSON] | Callable[[Message], bool] | None = None,
        name: str | None = None,
        since: datetime | timedelta | None = None,
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Task[Any, Any]]:
        """Register the handler, ``def`` or ``async def``, of events on these topics; it gets the Message.

        The subscription stands from the first start of its worker on, and outlives it: what is published while the
        agent is away waits in its queue. An agent may have several subscriptions; each gets its own message.

        Args:
            patterns: of topics: ``*`` stands for one word, ``#`` for any number of words.
            where: which payloads it wants: a mapping, such as ``{"order.total": {"gte": 100}}``, by which no
                message is sent for others (see ``topics.filters.Filter``); or a function of the Message, which is
                asked in the worker before the handler.
            name: of the subscription; None: the function's.
            since: when it is new, it also gets what was published from this moment on, or for this long before;
                that takes a ledger.
            options: ``retries``, a number or Retries: when it is tried again; and those of a Celery task:
                ``time_limit``, ``bind``, …

        Returns:
            A decorator, which returns the Celery task ``<agent>.event.<name>``.

        Raises:
            InvalidMessage: a pattern or a filter is none.
            ConfigurationError: there is no pattern, or a second subscription of this name.
        """
        if not patterns or callable(patterns[0]):
            raise ConfigurationError('a subscription needs a pattern: @agent.subscribe("task.*")')
        wanted = tuple(check_pattern(pattern) for pattern in dict.fromkeys(patterns))
        conditions = Filter.of(where) if where is not None and not callable(where) else None
        accepts = staticmethod(where) if callable(where) else None
        catch_up_from = _moment(since)

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            own = str(name or getattr(function, "__name__", repr(function)))
            fixed = {"bind": True, "ignore_result": True, "accepts": accepts}
            run = _of_message(function, bool(options.get("bind")))
            task = self._register(f"{EVENT_HANDLERS}{own}", function, run, options, fixed, EventTask)
            self.app.subscribed.append(
                Subscription(
                    agent=self.name,
                    name=own,
                    patterns=wanted,
                    where=conditions,
                    catch_up_from=catch_up_from,
                )
            )
            if catch_up_from is not None:
                self.app.steps["worker"].add(CatchUp)
            return task

        return decorate

    def method(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Register a method, ``def`` or ``async def``, that others request.

        What it returns, any JSON value, is the answer. A generator answers in parts, which ``stream`` takes; what
        it returns, or an async generator's last ``yield streams.Final(result)``, is the final result. Who requests
        it without taking parts gets the final result, or when there is none the parts as a list.
        One that raises Celery's ``Ignore`` gives none, and its caller gets a RemoteError, unless the method stored
        a state of its own with ``update_state`` before.

        Args:
            function: the method, when the decorator is used without options.
            options: ``retries``, a number or Retries: when it is tried again; and those of a Celery task:
                ``time_limit``, ``bind``, …

        Returns:
            The Celery task ``<agent>.<method>``, or a decorator that returns it.

        Raises:
            ConfigurationError: a second method of this name, or a name that is a message type's.
        """

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            name = self._name_of(function)
            if any(is_kind(function) for is_kind in _TO_COMPLETE):
                run = as_plain_function(function, bool(options.get("bind")))
                return self._register(name, function, run, options, {"bind": True})
            return self._register(name, function, function, options, {})

        return decorate if function is None else decorate(function)

    def reply(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Register a handler of answers, ``def`` or ``async def``: ``agent.request_later(..., on_reply=handler)``.

        It is called with the Response to each request that names it.

        Args:
            function: the handler, when the decorator is used without options.
            options: ``retries``, a number or Retries: when it is tried again; and those of a Celery task.

        Returns:
            The Celery task ``<agent>.<name>``, or a decorator that returns it.

        Raises:
            ConfigurationError: a second handler of this name, or a name that is a message type's.
        """

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            def run(task: AgentTask, **said: Any) -> Any:
                response = response_of_reply(task.message.from_agent, said, self.app.reference_clock.now())
                return task.complete(function(task, response) if options.get("bind") else function(response))

            run.__doc__, run.__module__ = function.__doc__, function.__module__
            return self._register(
                self._name_of(function), function, run, options, {"bind": True, "ignore_result": True}
            )

        return decorate if function is None else decorate(function)

    def _name_of(self, function: Callable[..., Any]) -> str:
        name: str = getattr(function, "__name__", repr(function))
        if name in TYPE_NAMES:
            raise ConfigurationError(
                f"a method cannot be named {name!r}, which is a message type: rename it, "
                f"or register it with @agent.on(MessageType.{name.upper()})"
            )
        return name

    def _register(
        self,
        handler: str,
        function: Callable[..., Any],
        run: Callable[..., Any],
        options: dict[str, Any],
        fixed: dict[str, Any],
        base: type[AgentTask] = AgentTask,
    ) -> Task[Any, Any]:
        target = HandlerName(self.name, handler)
        if HandlerName.parse(str(target)) != target:
            raise ConfigurationError(f"{handler!r} cannot be a handler's name: use letters, digits and _")
        if taken := {"name", "base", "shared"} & set(options):
            raise ConfigurationError(
                f"{target} cannot have the options {', '.join(sorted(taken))}: the agent sets them"
            )
        if handler in self._handlers:
            raise ConfigurationError(f"{target} has a handler already")
        stoppable = any(is_kind(function) for is_kind in _TO_COMPLETE)
        if options.get("once") and stoppable:
            raise ConfigurationError(
                f"{target} cannot have once=True: its session is for one thread, so it must be a plain def"
            )
        options = dict(options)
        if options.get("retries") is not None:
            retries = options["retries"] = Retries.of(options["retries"])
            if retries.attempts > 1:  # the same bound for what takes its process with it
                options.setdefault("max_retries", retries.attempts - 1)
        self._handlers.append(handler)
        register: Any = self.app.task  # its stubs know a fixed list of options; Celery takes any attribute
        task: Task[Any, Any] = register(
            run,
            name=str(target),
            base=base,
            shared=False,  # a shared task would be registered in every application of the process
            **{**options, **fixed, "agent": self.name, "handler": handler, "stoppable": stoppable},
        )
        return task

    @property
    def session(self) -> Session:
        """The SQLAlchemy Session of the handler that runs, which was registered with ``once=True``.

        It is on the ledger's database. What is done with it, what is sent with ``session=agent.session``, and the
        note that this message was handled are committed together when the handler returns, and taken back when it
        raises.

        Raises:
            ConfigurationError: no such handler runs here.
        """
        return current_session()


def _of_message(function: Callable[..., Any], bind: bool) -> Callable[..., Any]:
    """Return the function as which Celery runs a handler that takes a Message."""

    def run(task: AgentTask, payload: JSON) -> Any:
        # Called directly, as in a unit test, with the Message itself.
        message = payload if isinstance(payload, Message) else task.message
        return task.complete(function(task, message) if bind else function(message))

    run.__doc__ = function.__doc__
    run.__module__ = function.__module__
    return run


def _moment(since: datetime | timedelta | None) -> datetime | None:
    moment = datetime.now(UTC) - since if isinstance(since, timedelta) else since
    if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
        raise ConfigurationError(f"since must be an aware datetime or a timedelta, not {since!r}")
    return moment
