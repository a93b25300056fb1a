"""Registers an agent's handlers as Celery tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from celery import Task
from kombu.utils.imports import symbol_by_name

from waooaw_celery.agents.requests.response import response_of_reply
from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import TYPE_NAMES
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import EVENT_HANDLERS, HandlerName
from waooaw_celery.messages.validation import JSON
from waooaw_celery.messages.wording import with_article
from waooaw_celery.store.resilience.failures import works
from waooaw_celery.worker.batches.batch_policy import take_batch_policy
from waooaw_celery.worker.batches.task import BatchTask
from waooaw_celery.worker.execution.completion import as_plain_function
from waooaw_celery.worker.execution.deadline import IGNORE_DEADLINE
from waooaw_celery.worker.ordering.key_policy import take_key_policy
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.worker.task import AgentTask, HandlerCall

#: Kinds of functions whose return value must be awaited or iterated.
_DEFERRED = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
#: The name of every lambda.
_LAMBDA = "<lambda>"
_INVALID_NAME = "a handler cannot have the name {!r}: use letters, digits and _"
#: Options of a Celery task that the agent sets.
_RESERVED_OPTIONS = {"name", "base", "shared"}


def register_handler(
    app: AgentApp,
    target: HandlerName,
    function: Callable[..., Any],
    run: Callable[..., Any],
    options: dict[str, Any],
    fixed: dict[str, Any],
    base: type[AgentTask] = AgentTask,
) -> Task[Any, Any]:
    """Register a handler as the Celery task ``<agent>.<handler>``.

    Args:
        app: the application, which already has the agent.
        target: the agent, and the name of the handler.
        function: the handler, as it was written.
        run: the function that Celery runs for it.
        options: the options that were given with the decorator.
        fixed: options of the task that the kind of the handler sets.
        base: class of the task.

    Raises:
        ConfigurationError: the name or an option is not allowed, or the agent already has a handler of this name.
    """
    handlers = app.agents[target.agent]
    _check(target, handlers, function, options)
    options = dict(options)
    if options.get("retries") is not None:
        retries = options["retries"] = RetryPolicy.of(options["retries"])
        if retries.attempts > 1:  # Celery applies max_retries if the handler's process is lost
            options.setdefault("max_retries", retries.attempts - 1)
    if options.get("deadline") not in (None, IGNORE_DEADLINE):
        raise ConfigurationError(
            f'{target} cannot have deadline={options["deadline"]!r}: leave it out, or use deadline="ignore" for a '
            "handler that is not stopped when its caller no longer waits"
        )
    options["key_policy"] = take_key_policy(options, target)
    batch = take_batch_policy(options, target)
    if batch is not None:
        _check_takes_batches(target, function)
        options |= {"batch": batch, "handle_batch": staticmethod(function)}
    handlers.append(target.handler)
    base = _with_task_class(app, base)
    register: Any = app.task  # its stubs allow fixed options only; Celery accepts any attribute
    identity = {
        "agent": target.agent,
        "handler": target.handler,
        "stoppable": batch is None and is_deferred(function),
    }
    task: Task[Any, Any] = register(
        run,
        name=str(target),
        base=base,
        shared=False,  # a shared task is registered in every application of the process
        **{**options, **fixed, **identity},
    )
    return task


def _with_task_class(app: AgentApp, base: type[AgentTask]) -> type[AgentTask]:
    """Return the class of a handler's task, with the methods of the application's own task class.

    In a Django project this is Celery's ``DjangoTask``, which has ``delay_on_commit``.
    """
    find: Any = symbol_by_name  # its stubs allow names only; Celery accepts a class too
    own: type[Any] = find(app.task_cls)
    if issubclass(base, own):
        return base
    return type(own.__name__, (base, own), {"abstract": True, "__module__": base.__module__})


def _check(
    target: HandlerName, handlers: list[str], function: Callable[..., Any], options: dict[str, Any]
) -> None:
    if HandlerName.parse(str(target)) != target:
        raise ConfigurationError(_INVALID_NAME.format(target.handler))
    if reserved := _RESERVED_OPTIONS & set(options):
        raise ConfigurationError(
            f"{target} cannot have the options {', '.join(sorted(reserved))}: the agent sets them"
        )
    if target.handler in handlers:
        raise ConfigurationError(f"{target} already has a handler")
    if options.get("once") and is_deferred(function):
        raise ConfigurationError(
            f"{target} cannot have once=True: its session is for one thread, so it must be a plain def"
        )


def _check_takes_batches(target: HandlerName, function: Callable[..., Any]) -> None:
    written = _as_written(function)
    if inspect.isgeneratorfunction(written) or inspect.isasyncgenfunction(written):
        raise ConfigurationError(
            f"{target} cannot have batch=: it is a generator, and the handler of a batch must be a def or an "
            "async def that returns"
        )


def method_name(function: Callable[..., Any], name: str | None = None) -> str:
    """Return the name under which a function is registered as a method, or as a handler of replies.

    Raises:
        ConfigurationError: it is the name of a message type. The rest as ``handler_name``.
    """
    name = handler_name(function, name)
    if name.startswith(EVENT_HANDLERS):  # the name of a subscription's task
        raise ConfigurationError(_INVALID_NAME.format(name))
    if name in TYPE_NAMES:
        raise ConfigurationError(
            f"a method cannot have the name {name!r}, which is a message type: rename it, "
            f"or register it with @agent.on(MessageType.{name.upper()})"
        )
    return name


def handler_name(function: Callable[..., Any], name: str | None = None) -> str:
    """Return the name under which a function is registered.

    Args:
        function: the handler: a function, a method of an object, a ``functools.partial``, or another callable.
        name: the name that was chosen for it; None: its own.

    Raises:
        ConfigurationError: it has no name of its own and none was chosen, or it cannot be called.
    """
    if not callable(function):
        raise ConfigurationError(
            f"a handler must be a function or another callable, not {function!r:.80}. "
            'For a name of its own, write name="get_status"'
        )
    if name is not None:
        if not isinstance(name, str):
            raise ConfigurationError(f"the name of a handler must be a string, not {name!r:.80}")
        return name
    own = getattr(function, "__name__", None)
    if own == _LAMBDA or not isinstance(own, str):
        kind = "a lambda" if own == _LAMBDA else with_article(type(function).__name__)
        raise ConfigurationError(f'{kind} has no name of its own: choose one, such as name="get_status"')
    return own


def check_takes(function: Callable[..., Any], bind: bool, what: str) -> None:
    """Check that a function can be called with a message, or with a response.

    Args:
        function: the handler, as it was written.
        bind: whether it takes its task as first argument.
        what: the class of what it takes, such as ``Message``.

    Raises:
        ConfigurationError: it takes another number of arguments.
    """
    try:
        inspect.signature(function).bind(*((None, None) if bind else (None,)))
    except TypeError as error:
        name = getattr(function, "__name__", f"{function!r:.80}")
        task = ", after its task" if bind else ""
        raise ConfigurationError(f"{name} must take one argument, the {what}{task}: {error}") from None
    except ValueError:  # a callable without a signature
        return


def is_deferred(function: Callable[..., Any]) -> bool:
    """Whether a function returns a coroutine or a generator, which must be awaited or iterated."""
    written = _as_written(function)
    return any(is_kind(written) for is_kind in _DEFERRED)


def method_task(function: Callable[..., Any], bind: bool) -> Callable[..., Any]:
    """Return the function that Celery runs for a method: a function, also for what is another callable."""
    if is_deferred(function):
        return _described(as_plain_function(function, bind), function)
    if inspect.isfunction(function) and function.__name__ != _LAMBDA:
        return function

    def run(*args: Any, **kwargs: Any) -> Any:
        call = HandlerCall(function, args, kwargs)
        del args, kwargs  # a report of an error shows the local variables of each frame
        return call()

    # Celery checks the arguments of a call against this signature. That of a method has no ``self``.
    with suppress(ValueError):  # a callable without a signature
        run.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return _described(run, function)


def message_task(function: Callable[..., Any], bind: bool) -> Callable[..., Any]:
    """Return the function that Celery runs for a handler that takes a Message.

    Raises:
        ConfigurationError: the handler takes another number of arguments.
    """
    check_takes(function, bind, "Message")

    def run(task: AgentTask, payload: JSON) -> Any:
        if isinstance(payload, Message):  # a unit test calls the handler directly
            return task.complete(function(task, payload) if bind else function(payload))
        del payload  # a report of an error shows the local variables of each frame
        return task.complete(function(task, task.message) if bind else function(task.message))

    return _described(run, function)


def batch_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that Celery runs for each message of a handler that takes a MessageBatch.

    Raises:
        ConfigurationError: the handler takes another number of arguments.
    """
    check_takes(function, False, "MessageBatch")

    def run(task: BatchTask, payload: JSON) -> Any:
        return task.conclude(payload)

    return _described(run, function)


def reply_task(function: Callable[..., Any], bind: bool) -> Callable[..., Any]:
    """Return the function that Celery runs for a handler that takes a Response.

    Raises:
        ConfigurationError: the handler takes another number of arguments.
    """
    check_takes(function, bind, "Response")

    def run(task: AgentTask, **reply: Any) -> Any:
        app: Any = task.app
        now = app.reference_clock.now()
        response = response_of_reply(task.message.from_agent, reply, now)
        has_worked = works(response.error, app.components.is_target_failure)
        app.breakers.note_reply(response.agent, response.message_id, has_worked)
        return task.complete(function(task, response) if bind else function(response))

    return _described(run, function)


def _described(run: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a task's function the docstring and the module of the handler, and a name that Celery can use."""
    written = _as_written(function)
    run.__doc__, run.__module__, run.__name__ = written.__doc__, written.__module__, "run"
    return run


def _as_written(function: Callable[..., Any]) -> Any:
    """Return the function that is written for a handler: that of a partial, or the ``__call__`` of an object."""
    while isinstance(function, partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__
