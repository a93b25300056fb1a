"""The error classes: their tree, their default messages, and pickling."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from kombu.exceptions import OperationalError

from waooaw_celery import errors

classes = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.WaooawError)
]
#: Their sentences are made from their parts.
_BUILT = (
    errors.CircuitOpen,
    errors.NoAgentAvailable,
    errors.QueueFull,
    errors.RemoteError,
    errors.RateLimitExceeded,
    errors.SchemaViolation,
    errors.SenderPaused,
    errors.StepFailed,
    errors.StepTimeout,
    errors.TooManyInFlight,
    errors.WorkflowFailed,
)


def test_the_tree_in_the_docstring_is_complete() -> None:
    """The module's docstring lists each error below its base class."""
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^( *)\* (\w+)", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4
        path[depth:] = [name]
        drawn[name] = path[depth - 1] if depth else None
    assert drawn == {cls.__name__: _parent(cls) for cls in classes}


def _parent(cls: type) -> str | None:
    base = cls.__bases__[0]
    return base.__name__ if base in classes else None


@pytest.mark.parametrize("cls", [cls for cls in classes if cls not in _BUILT])
def test_the_default_message_is_the_docstring(cls: type[errors.WaooawError]) -> None:
    """An error that is raised without a message has one."""
    assert str(cls()) == (cls.__doc__ or "").splitlines()[0]


def test_broker_unavailable_is_kombus_operational_error() -> None:
    """Code that was written for Celery catches it."""
    assert issubclass(errors.BrokerUnavailable, OperationalError)


def test_a_remote_error_survives_pickling() -> None:
    """A RemoteError that passes through a process pool keeps its attributes."""
    error = pickle.loads(pickle.dumps(errors.RemoteError("b", "ValueError", "no", "tb")))  # noqa: S301
    assert (error.agent, error.type, error.message, error.traceback) == ("b", "ValueError", "no", "tb")


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (errors.CircuitOpen("writer", 2.5, "ada", "down"), ("agent", "retry_after", "by", "reason")),
        (errors.TooManyInFlight("writer", "boss", 3, 0.25), ("agent", "caller", "limit", "retry_after")),
    ],
)
def test_refused_requests_survive_pickling(error: errors.WaooawError, attributes: tuple[str, ...]) -> None:
    """They pass through a process pool with their attributes and their text."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - it was made here
    assert [getattr(copy, name) for name in attributes] == [getattr(error, name) for name in attributes]
    assert str(copy) == str(error)
