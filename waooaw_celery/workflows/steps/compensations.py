"""Compensations: what undoes an earlier step. They are carried out from the journal, without the function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.journal.records import StepRecord
from waooaw_celery.workflows.states import StepStatus
from waooaw_celery.workflows.steps import local, requests
from waooaw_celery.workflows.steps.step import LocalCall, RequestCall

#: How often a compensation is tried, unless it says otherwise.
ATTEMPTS = 5


def request_details(target: HandlerName, params: Mapping[str, JSON], attempts: int, timeout: float | None) -> JSON:
    """Return the details of a compensation that requests a method.

    Raises:
        InvalidMessage: the number of attempts is out of range.
    """
    _check_attempts(attempts)
    return {
        "agent": target.agent,
        "method": target.handler,
        "params": dict(params),
        "attempts": attempts,
        "timeout": timeout,
    }


def function_details(function: Callable[..., Any], args: Any, kwargs: Any, attempts: int) -> JSON:
    """Return the details of a compensation that calls a local function.

    Raises:
        InvalidMessage: the function cannot be found by its name, so that another process could not call it; or the
            number of attempts is out of range.
    """
    _check_attempts(attempts)
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    try:
        is_found = _function(name) is function
    except (ImportError, AttributeError, ValueError):
        is_found = False
    if not is_found:
        raise InvalidMessage(
            f"{function!r:.80} cannot be a compensation: another process must find it by its name. Use a function "
            "of a module, or a method of an agent"
        )
    arguments = {"args": list(args), "kwargs": dict(kwargs)}
    return {"function": name, "attempts": attempts, **json_copy(arguments, "the arguments of a compensation")}


def is_local(record: StepRecord) -> bool:
    """Whether a compensation calls a local function."""
    return isinstance(record.details, dict) and "function" in record.details


def _check_attempts(attempts: int) -> None:
    try:
        RetryPolicy.exponential(attempts)
    except ConfigurationError as error:
        raise InvalidMessage(f"a compensation cannot be tried so often: {error}") from None


def _function(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


async def carry_out(run: Run, record: StepRecord) -> JSON:
    """Carry out a compensation, and return its result.

    Raises:
        WaooawError: it failed.
    """
    call = _call(record.details)
    run.calls[record.path] = call
    waiter = run.waiter(record.path)
    if record.status is StepStatus.REGISTERED:
        record.status = StepStatus.STARTED
        _attempt(run, record, call)
    elif isinstance(call, RequestCall):
        requests.go_on(run, record, call)
    elif record.due_at is None:
        _attempt(run, record, call)
    run.engine.arm(run)
    run.touch()
    try:
        return await asyncio.shield(waiter)
    finally:
        run.calls.pop(record.path, None)


def _attempt(run: Run, record: StepRecord, call: LocalCall | RequestCall) -> None:
    if isinstance(call, RequestCall):
        requests.attempt(run, record, call)
    else:
        local.attempt(run, record, call)


def _call(details: Any) -> LocalCall | RequestCall:
    retry = RetryPolicy.exponential(details.get("attempts", ATTEMPTS), longest_delay=60.0)
    if "function" in details:
        function = partial(_call_by_name, details["function"], details["args"], details["kwargs"])
        return LocalCall(call=function, retry=retry, timeout=None)
    return RequestCall(
        target=HandlerName(details["agent"], details["method"]),
        params=details["params"],
        retry=retry,
        timeout=details.get("timeout"),
        priority=Priority.NORMAL,
    )


def _call_by_name(name: str, args: list[JSON], kwargs: dict[str, JSON]) -> Any:
    return _function(name)(*args, **kwargs)
