"""The agent: registers its handlers as Celery tasks, and sends in its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery import Task

from waooaw_celery.agents.client import AgentClient
from waooaw_celery.agents.events.catch_up import CatchUp
from waooaw_celery.agents.events.task import EventTask
from waooaw_celery.agents.registration import (
    batch_task,
    handler_name,
    is_deferred,
    message_task,
    method_name,
    method_task,
    register_handler,
    reply_task,
)
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.discovery.declaration import Declaration
from waooaw_celery.discovery.health.checks import FAILURES, PERIOD, TIMEOUT, HealthCheck
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import SENDABLE, MessageType
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import check_pattern
from waooaw_celery.messages.validation import JSON, check_agent_name, check_identity, check_tags
from waooaw_celery.store.subscriptions import Subscription
from waooaw_celery.worker.batches.batch_policy import refuse_batch
from waooaw_celery.worker.batches.task import BatchTask

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: Why only handlers of ``on`` take batches.
_ANSWERS_ONE = "each caller of a method gets its own answer; leave it out, or use @agent.on(MessageType.COMMAND)"
_ONLY_ON = "only handlers of @agent.on(...) take batches; leave it out"


F = TypeVar("F", bound=Callable[..., Any])


class Agent(AgentClient):
    """An agent and its handlers.

    A worker of the application consumes the agent's queue, ``agent.<name>``; it needs no ``-Q`` option.

    Args:
        name: name of the agent, ``^[a-z0-9][a-z0-9_-]{0,62}$``.
        app: the application in which the handlers are registered as tasks.
        capabilities: what the agent can do, such as ``ocr``: ``broadcast`` selects agents by it, and a message to
            ``capability:ocr`` goes to one of them.
        identity: who the agent is elsewhere, such as a DID or an e-mail address. It travels in the envelope of
            each message that the agent sends, and stands in the ledger.
        version: version of the agent's code, such as ``2.1``; it is also that of its capabilities.
        tags: tags by which the agent is found, such as ``eu``.
        metadata: a JSON object of your own, which ``Registry`` shows.
        weight: its share of the messages to a capability, relative to the other agents with it.
        max_in_flight: number of running messages from which others get the messages to a capability.
        slow_seconds: duration of its messages, at the 95th percentile, from which it is DEGRADED; None: none.

    Raises:
        InvalidMessage: the name, a tag, the identity or another argument is invalid, or the name is reserved.
        ConfigurationError: the application already has an agent of this name, or is a plain Celery application.

    Example:
        >>> agent = Agent("greeter", create_app())
        >>> @agent.method
        ... def greet(name: str) -> str:
        ...     return f"Hello, {name}!"
    """

    def __init__(
        self,
        name: str,
        app: AgentApp,
        capabilities: Iterable[str] = (),
        *,
        identity: str | None = None,
        version: str | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, JSON] | None = None,
        weight: float = 1.0,
        max_in_flight: int | None = None,
        slow_seconds: float | None = None,
    ) -> None:
        if check_agent_name(name) in require_agent_app(app, "Agent").agents:
            raise ConfigurationError(
                f"this application already has an agent {name!r}: use that Agent, or choose another name"
            )
        super().__init__(name, app)
        self.capabilities = check_tags(capabilities)
        declaration = Declaration(
            version=version,
            capabilities=self.capabilities,
            tags=tags,
            metadata=metadata,
            weight=weight,
            max_in_flight=max_in_flight,
            slow_seconds=slow_seconds,
        )
        self.identity = None if identity is None else check_identity(identity)
        app.capabilities[name] = self.capabilities
        app.declarations[name] = declaration
        if self.identity is not None:
            app.identities[name] = self.identity
        app.agents.setdefault(name, [])

    def on(self, message_type: MessageType, **options: Any) -> Callable[[Callable[..., Any]], Task[Any, Any]]:
        """Register the handler of all messages of a type: a ``def`` or ``async def`` that takes the Message.

        Args:
            message_type: COMMAND, QUERY or ACK.
            options: ``retries``, a number or RetryPolicy: when the handler is tried again; ``once=True``: the
                database changes that the handler makes with ``session`` are committed once, even if the message is
                redelivered; ``batch=100, within=0.05``: the handler takes a MessageBatch of up to 100 messages,
                which arrived within 0.05 seconds of the first; ``key="conversation_id"``: messages with the same
                key are handled in order, ``max_running=1`` at a time, and ``on_busy="wait"`` says what becomes of
                one whose key is busy (also ``drop`` and ``cancel``); and the options of a Celery task, such as
                ``time_limit`` and ``bind``.

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
                f"on() takes {', '.join(type_.name for type_ in SENDABLE)}, not "
                f"{getattr(message_type, 'name', message_type)}: handle an EVENT with @agent.subscribe, and a "
                "RESPONSE with @agent.reply"
            )

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            fixed = {"bind": True, "ignore_result": True}
            if options.get("batch") is not None:
                run = batch_task(function)
                return self.register(message_type.value, function, run, options, fixed, BatchTask)
            run = message_task(function, bool(options.get("bind")))
            return self.register(message_type.value, function, run, options, fixed)

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

        While a worker runs, ``agent.subscribe("task.*", name="extra")(function)`` subscribes at once, if it is the
        agent's only worker and its pool has threads or greenlets, or is ``solo``.

        Args:
            patterns: patterns of topics: ``*`` matches one word, ``#`` any number of words.
            where: selects events by payload. A mapping, such as ``{"order.total": {"gte": 100}}``, is evaluated by
                the publisher, which sends no message for other events (see ``Filter``). A function of the Message
                is called in the worker before the handler.
            name: name of the subscription; None: the name of the function.
            since: a new subscription also gets the events that were published since this time, or during this
                period before now. This needs a ledger.
            options: ``retries``, a number or RetryPolicy: when the handler is tried again; and the options of a
                Celery task, such as ``time_limit`` and ``bind``.

        Returns:
            A decorator, which returns the Celery task ``<agent>.event.<name>``.

        Raises:
            InvalidMessage: a pattern or the filter is invalid.
            ConfigurationError: there is no pattern, or a subscription of this name exists, or ``since`` is
                invalid; or a worker runs that cannot take another handler.
            StoreUnavailable: a worker runs, and the store does not answer.

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
        refuse_batch(options, f"a subscription of {self.name}", _ONLY_ON)

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            subscription_name = handler_name(function, name)
            fixed = {"bind": True, "ignore_result": True, "accepts": accepts}
            run = message_task(function, bool(options.get("bind")))
            subscription = Subscription(
                agent=self.name,
                name=subscription_name,
                patterns=checked,
                where=conditions,
                catch_up_from=catch_up_from,
            )
            with self.app.components.late_handlers.adding(subscription.target, subscription):
                task = register_handler(self.app, subscription.target, function, run, options, fixed, EventTask)
            self.app.subscribed.append(subscription)
            if catch_up_from is not None:
                self.app.steps["worker"].add(CatchUp)
            return task

        return decorate

    @overload
    def method(
        self, function: Callable[..., Any], *, name: str | None = ..., **options: Any
    ) -> Task[Any, Any]: ...
    @overload
    def method(self, function: None = ..., **options: Any) -> Callable[[Callable[..., Any]], Task[Any, Any]]: ...
    def method(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        capability: str | None = None,
        version: str | None = None,
        **options: Any,
    ) -> Any:
        """Register a method, a ``def`` or ``async def`` that other agents request.

        Its return value, any JSON value, is the answer. A generator sends its answer in parts, which the caller
        reads with ``stream``. The final result is the generator's return value, or the last ``yield
        Final(result)`` of an async generator. A caller that uses ``request`` gets the final result, or a list of
        the parts if there is none.

        If the method raises Celery's ``Ignore``, its caller gets a RemoteError, unless the method stored a state
        with ``update_state`` before.

        Args:
            function: the method, if this is not used as a decorator with options. It may also be a method of an
                object, a ``functools.partial``, a lambda, or an object with ``__call__``.
            name: the name by which others request it; None: the name of the function. A lambda, a partial and an
                object have no name of their own.
            capability: the capability that it is, such as ``summarise``: a request to ``capability:summarise``
                goes to an agent that has it.
            version: version of this capability, such as ``2.1``; None: that of the agent, or else 1.
            options: ``key="conversation_id"``, ``max_running`` and ``on_busy``: as for ``on``;
                ``retries``, a number or RetryPolicy: when the method is tried again; ``deadline="ignore"``:
                it is not stopped when its caller no longer waits; and the options of a Celery task, such as
                ``time_limit`` and ``bind``.

        Returns:
            The Celery task ``<agent>.<method>``, or a decorator that returns it.

        Raises:
            ConfigurationError: a method of this name exists, the name is that of a message type, or there is none.

        Example:
            >>> @agent.method
            ... def get_status(task_id: str) -> dict[str, str]:
            ...     return {"task_id": task_id, "status": "done"}
            >>> agent.method(jobs.count, name="count_jobs")  # a method of an object
        """

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            handler = method_name(function, name)
            refuse_batch(options, f"{self.name}.{handler}", _ANSWERS_ONE)
            if handler not in self.app.agents[self.name]:  # or else registering it fails
                bind = bool(options.get("bind"))
                self.app.declarations[self.name].add_method(handler, function, bind, capability, version)
            run = method_task(function, bool(options.get("bind")))
            return self.register(handler, function, run, options, {"bind": True} if is_deferred(function) else {})

        return decorate if function is None else decorate(function)

    def health_check(
        self,
        function: Callable[[], Any] | None = None,
        *,
        name: str | None = None,
        period: float = PERIOD,
        timeout: float = TIMEOUT,
        failures: int = FAILURES,
    ) -> Any:
        """Register a check of the agent's own: a ``def`` or ``async def`` without parameters.

        The worker's main process runs it. If it returns None or True, the agent is HEALTHY; if it returns a
        text, the agent is DEGRADED, for this reason. If it returns False, raises, or takes too long, it fails.
        Until each check has run once, the agent gets no message by capability.

        Args:
            function: the check, if this is not used as a decorator with options.
            name: its name; None: the name of the function.
            period: seconds between two runs.
            timeout: seconds after which a run has failed.
            failures: failures in a row from which the agent is UNHEALTHY, and gets no message by capability.

        Returns:
            The function, or a decorator that returns it.

        Raises:
            ConfigurationError: the agent has a check of this name, the function takes arguments, or an option is
                invalid.

        Example:
            >>> @agent.health_check(period=5)
            ... async def model_is_loaded() -> bool:
            ...     return model.ready
        """

        def decorate(function: Callable[[], Any]) -> Callable[[], Any]:
            checks = self.app.declarations[self.name].checks
            check = HealthCheck(handler_name(function, name), function, period, timeout, failures)
            if check.name in checks:
                raise ConfigurationError(f"{self.name} already has a health check {check.name!r}")
            checks[check.name] = check
            return function

        return decorate if function is None else decorate(function)

    @overload
    def reply(self, function: Callable[..., Any], *, name: str | None = ..., **options: Any) -> Task[Any, Any]: ...
    @overload
    def reply(self, function: None = ..., **options: Any) -> Callable[[Callable[..., Any]], Task[Any, Any]]: ...
    def reply(self, function: Callable[..., Any] | None = None, *, name: str | None = None, **options: Any) -> Any:
        """Register a handler of replies, a ``def`` or ``async def`` that takes a Response.

        It gets the Response of each request that names it as ``on_reply``.

        Args:
            function: the handler, if this is not used as a decorator with options.
            name: the name of the handler; None: the name of the function.
            options: ``retries``, a number or RetryPolicy: when the handler is tried again; and the options of a
                Celery task.

        Returns:
            The Celery task ``<agent>.<name>``, or a decorator that returns it.

        Raises:
            ConfigurationError: a handler of this name exists, the name is that of a message type, or there is
                none.

        Example:
            >>> @agent.reply
            ... def status_came(response: Response) -> None:
            ...     print(response.result if response.ok else response.error)
            >>> agent.request_later("worker-1", "get_status", {"task_id": "123"}, on_reply=status_came)
        """

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            handler = method_name(function, name)
            refuse_batch(options, f"{self.name}.{handler}", _ONLY_ON)
            run = reply_task(function, bool(options.get("bind")))
            return self.register(handler, function, run, options, {"bind": True, "ignore_result": True})

        return decorate if function is None else decorate(function)

    @overload
    def workflow(self, function: F, *, name: str | None = ..., version: int = ...) -> F: ...
    @overload
    def workflow(
        self, function: None = ..., *, name: str | None = ..., version: int = ...
    ) -> Callable[[F], F]: ...
    def workflow(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        version: int = 1,
    ) -> Any:
        """Register a workflow: a function whose steps are recorded, so that it survives every crash.

        It takes a Flow as its first argument, and its input as the others: JSON values, dataclasses or pydantic
        models. An ``async def`` awaits its steps; a plain ``def`` gets a BlockingFlow. Workflows need a ledger.

        Args:
            function: the function, if this is not used as a decorator with options.
            name: the name by which it is started; None: the name of the function.
            version: its version. Running workflows go on with the version that they began with: keep the old
                function registered, under its old version, as long as there are any.

        Returns:
            The function, or a decorator that returns it.

        Raises:
            ConfigurationError: this version exists, or the function or its name cannot be a workflow.

        Example:
            >>> @agent.workflow
            ... async def onboard(flow: Flow, customer: dict) -> dict:
            ...     return await flow.request("crm", "create", customer)
            >>> Workflows(app).start("sales.onboard", {"customer": {"name": "Ada"}})
        """

        # Imported here: a process without workflows needs no SQLAlchemy for them.
        from waooaw_celery.agents.workflow_registration import register_workflow

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            return register_workflow(self, function, method_name(function, name), version)

        return decorate if function is None else decorate(function)

    def register(self, handler: str, *task: Any) -> Task[Any, Any]:
        """Register a handler of any kind; see ``register_handler``. The decorators call it."""
        target = HandlerName(self.name, handler)
        with self.app.components.late_handlers.adding(target):
            return register_handler(self.app, target, *task)

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
