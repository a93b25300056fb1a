"""Registers an agent's handlers as Celery tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from celery import Task

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import TYPE_NAMES
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.outcomes.retry_policy import Retries
from waooaw_celery.worker.task import AgentTask

#: Kinds of functions whose return value must be awaited or iterated.
_DEFERRED = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
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
        retries = options["retries"] = Retries.of(options["retries"])
        if retries.attempts > 1:  # Celery applies max_retries if the handler's process is lost
            options.setdefault("max_retries", retries.attempts - 1)
    handlers.append(target.handler)
    register: Any = app.task  # its stubs allow fixed options only; Celery accepts any attribute
    identity = {"agent": target.agent, "handler": target.handler, "stoppable": is_deferred(function)}
    task: Task[Any, Any] = register(
        run,
        name=str(target),
        base=base,
        shared=False,  # a shared task is registered in every application of the process
        **{**options, **fixed, **identity},
    )
    return task


def _check(
    target: HandlerName, handlers: list[str], function: Callable[..., Any], options: dict[str, Any]
) -> None:
    if HandlerName.parse(str(target)) != target:
        raise ConfigurationError(f"a handler cannot have the name {target.handler!r}: use letters, digits and _")
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


def method_name(function: Callable[..., Any]) -> str:
    """Return the name under which a function is registered as a method.

    Raises:
        ConfigurationError: it is the name of a message type.
    """
    name: str = getattr(function, "__name__", repr(function))
    if name in TYPE_NAMES:
        raise ConfigurationError(
            f"a method cannot have the name {name!r}, which is a message type: rename it, "
            f"or register it with @agent.on(MessageType.{name.upper()})"
        )
    return name


def is_deferred(function: Callable[..., Any]) -> bool:
    """Whether a function returns a coroutine or a generator, which must be awaited or iterated."""
    return any(is_kind(function) for is_kind in _DEFERRED)


def message_task(function: Callable[..., Any], bind: bool) -> Callable[..., Any]:
    """Return the function that Celery runs for a handler that takes a Message."""

    def run(task: AgentTask, payload: JSON) -> Any:
        # A unit test may call the handler directly, with a Message.
        message = payload if isinstance(payload, Message) else task.message
        return task.complete(function(task, message) if bind else function(message))

    run.__doc__ = function.__doc__
    run.__module__ = function.__module__
    return run
