"""The agent: registers its handlers as Celery tasks, and sends in its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery import Task

from waooaw_celery.agents.client import AgentClient
from waooaw_celery.agents.events.catch_up import CatchUp
from waooaw_celery.agents.events.task import EventTask
from waooaw_celery.agents.registration import is_deferred, message_task, method_name, register_handler
from waooaw_celery.agents.requests.response import response_of_reply
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import SENDABLE, MessageType
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import EVENT_HANDLERS, HandlerName
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import check_pattern
from waooaw_celery.messages.validation import JSON, check_agent_name, check_tags
from waooaw_celery.store.subscriptions import Subscription
from waooaw_celery.worker.execution.completion import as_plain_function
from waooaw_celery.worker.task import AgentTask

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class Agent(AgentClient):
    """An agent and its handlers.

    A worker of the application consumes the agent's queue, ``agent.<name>``; it needs no ``-Q`` option.

    Args:
        name: name of the agent, ``^[a-z0-9][a-z0-9_-]{0,62}$``.
        app: the application in which the handlers are registered as tasks.
        capabilities: tags of what the agent can do, such as ``ocr``, by which ``broadcast`` selects agents.

    Raises:
        InvalidMessage: the name or a tag is invalid, or the name is reserved.
        ConfigurationError: the application already has an agent of this name, or is a plain Celery application.

    Example:
        >>> agent = Agent("greeter", create_app())
        >>> @agent.method
        ... def greet(name: str) -> str:
        ...     return f"Hello, {name}!"
    """

    def __init__(self, name: str, app: AgentApp, capabilities: Iterable[str] = ()) -> None:
        if check_agent_name(name) in require_agent_app(app, "Agent").agents:
            raise ConfigurationError(f"this application already has an agent {name!r}")
        super().__init__(name, app)
        self.capabilities = check_tags(capabilities)
        app.capabilities[name] = self.capabilities
        app.agents.setdefault(name, [])

    def on(self, message_type: MessageType, **options: Any) -> Callable[[Callable[..., Any]], Task[Any, Any]]:
        """Register the handler of all messages of a type: a ``def`` or ``async def`` that takes the Message.

        Args:
            message_type: COMMAND, QUERY or ACK.
            options: ``retries``, a number or Retries: when the handler is tried again; ``once=True``: the database
                changes that the handler makes with ``session`` are committed once, even if the message is
                redelivered; and the options of a Celery task, such as ``time_limit`` and ``bind``.

        Returns:
            A decorator, which returns the Celery task ``<agent>.<type>``.

        Raises:
            ConfigurationError: the type is another one, or already has a handler, or an option is not allowed.

        Example:
            >>> @agent.on(MessageType.COMMAND, retries=3)
            ... def handle(message: Message) -> None:
            ...     print(message.payload)
        """
        if not isinstance(message_type, MessageType) or message_type not in SENDABLE:
            raise ConfigurationError(
                f"an agent handles {', '.join(type_.name for type_ in SENDABLE)} with on(), not "
                f"{getattr(message_type, 'name', message_type)}: a RESPONSE is returned to its caller, "
                "and an EVENT is handled with @agent.subscribe"
            )

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            run = message_task(function, bool(options.get("bind")))
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
        """Register the handler of events on matching topics: a ``def`` or ``async def`` that takes the Message.

        The subscription begins when a worker of the agent first starts, and lasts. An event that is published
        while no worker runs waits in the agent's queue. Each of an agent's subscriptions gets its own message.

        Args:
            patterns: patterns of topics: ``*`` matches one word, ``#`` any number of words.
            where: selects events by payload. A mapping, such as ``{"order.total": {"gte": 100}}``, is evaluated by
                the publisher, which sends no message for other events (see ``Filter``). A function of the Message
                is called in the worker before the handler.
            name: name of the subscription; None: the name of the function.
            since: a new subscription also gets the events that were published since this time, or during this
                period before now. This needs a ledger.
            options: ``retries``, a number or Retries: when the handler is tried again; and the options of a Celery
                task, such as ``time_limit`` and ``bind``.

        Returns:
            A decorator, which returns the Celery task ``<agent>.event.<name>``.

        Raises:
            InvalidMessage: a pattern or the filter is invalid.
            ConfigurationError: there is no pattern, or a subscription of this name exists, or ``since`` is
                invalid.

        Example:
            >>> @agent.subscribe("order.*", where={"total": {"gte": 100}})
            ... def on_large_order(message: Message) -> None:
            ...     print(message.topic, message.payload)
        """
        if not patterns or callable(patterns[0]):
            raise ConfigurationError('a subscription needs a pattern: @agent.subscribe("task.*")')
        checked = tuple(check_pattern(pattern) for pattern in dict.fromkeys(patterns))
        conditions = Filter.of(where) if where is not None and not callable(where) else None
        accepts = staticmethod(where) if callable(where) else None
        catch_up_from = _start_time(since)

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            subscription_name = str(name or getattr(function, "__name__", repr(function)))
            fixed = {"bind": True, "ignore_result": True, "accepts": accepts}
            run = message_task(function, bool(options.get("bind")))
            task = self._register(f"{EVENT_HANDLERS}{subscription_name}", function, run, options, fixed, EventTask)
            self.app.subscribed.append(
                Subscription(
                    agent=self.name,
                    name=subscription_name,
                    patterns=checked,
                    where=conditions,
                    catch_up_from=catch_up_from,
                )
            )
            if catch_up_from is not None:
                self.app.steps["worker"].add(CatchUp)
            return task

        return decorate

    def method(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Register a method, a ``def`` or ``async def`` that other agents request.

        Its return value, any JSON value, is the answer. A generator sends its answer in parts, which the caller
        reads with ``stream``. The final result is the generator's return value, or the last ``yield
        Final(result)`` of an async generator. A caller that uses ``request`` gets the final result, or a list of
        the parts if there is none.

        If the method raises Celery's ``Ignore``, its caller gets a RemoteError, unless the method stored a state
        with ``update_state`` before.

        Args:
            function: the method, if the decorator is used without options.
            options: ``retries``, a number or Retries: when the method is tried again; and the options of a Celery
                task, such as ``time_limit`` and ``bind``.

        Returns:
            The Celery task ``<agent>.<method>``, or a decorator that returns it.

        Raises:
            ConfigurationError: a method of this name exists, or the name is that of a message type.

        Example:
            >>> @agent.method
            ... def get_status(task_id: str) -> dict[str, str]:
            ...     return {"task_id": task_id, "status": "done"}
        """

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            name = method_name(function)
            if is_deferred(function):
                run = as_plain_function(function, bool(options.get("bind")))
                return self._register(name, function, run, options, {"bind": True})
            return self._register(name, function, function, options, {})

        return decorate if function is None else decorate(function)

    def reply(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Register a handler of replies, a ``def`` or ``async def`` that takes a Response.

        It gets the Response of each request that names it as ``on_reply``.

        Args:
            function: the handler, if the decorator is used without options.
            options: ``retries``, a number or Retries: when the handler is tried again; and the options of a Celery
                task.

        Returns:
            The Celery task ``<agent>.<name>``, or a decorator that returns it.

        Raises:
            ConfigurationError: a handler of this name exists, or the name is that of a message type.

        Example:
            >>> @agent.reply
            ... def status_came(response: Response) -> None:
            ...     print(response.result if response.ok else response.error)
            >>> agent.request_later("worker-1", "get_status", {"task_id": "123"}, on_reply=status_came)
        """

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            def run(task: AgentTask, **reply: Any) -> Any:
                response = response_of_reply(task.message.from_agent, reply, self.app.reference_clock.now())
                return task.complete(function(task, response) if options.get("bind") else function(response))

            run.__doc__, run.__module__ = function.__doc__, function.__module__
            return self._register(
                method_name(function), function, run, options, {"bind": True, "ignore_result": True}
            )

        return decorate if function is None else decorate(function)

    def _register(self, handler: str, *task: Any) -> Task[Any, Any]:
        return register_handler(self.app, HandlerName(self.name, handler), *task)

    @property
    def session(self) -> Session:
        """The SQLAlchemy Session of the running handler, which must be registered with ``once=True``.

        It is a session on the ledger's database. When the handler returns, one transaction commits the changes
        made with it, the messages sent with ``session=agent.session``, and the note that this message was handled.
        If the handler raises, all of them are rolled back.

        Raises:
            ConfigurationError: no handler with ``once=True`` runs in this thread.
        """
        from waooaw_celery.worker.execution.exactly_once import current_session

        return current_session()


def _start_time(since: datetime | timedelta | None) -> datetime | None:
    start = datetime.now(UTC) - since if isinstance(since, timedelta) else since
    if start is not None and (not isinstance(start, datetime) or start.tzinfo is None):
        raise ConfigurationError(f"since must be an aware datetime or a timedelta, not {since!r}")
    return start
