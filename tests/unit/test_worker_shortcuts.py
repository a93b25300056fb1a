"""What a worker does in place of slower functions of Python and Celery gives the same answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery.utils.time import maybe_iso8601

from waooaw_celery.errors import InvalidArguments
from waooaw_celery.worker.execution.arguments import check_arguments
from waooaw_celery.worker.timed_request import as_datetime

FUNCTIONS: list[Callable[..., Any]] = [
    lambda: None,
    lambda a: None,
    lambda a, b=1: None,
    lambda a, /, b: None,
    lambda *a: None,
    lambda a, *b: None,
    lambda a, *, b: None,
    lambda a, *, b=1: None,
    lambda **a: None,
    lambda a=1, **b: None,
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("args", [(), (1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("kwargs", [{}, {"a": 1}, {"b": 1}])
def test_arguments_pass_as_python_would_bind_them(
    function: Callable[..., Any], args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    """A call with arguments by position only is not bound, and is refused in the same cases."""
    app = SimpleNamespace(declarations={})
    task = SimpleNamespace(run=function, name="agent.method", handler="method", agent="agent", app=app)
    fits = False
    with suppress(TypeError):
        inspect.signature(function).bind(*args, **kwargs)
        fits = True
    if fits:
        check_arguments(task, args, kwargs)
    else:
        with pytest.raises(InvalidArguments):
            check_arguments(task, args, kwargs)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-29T20:00:00+00:00",
        "2026-11-29T20:00:00.123456+00:00",
        "2026-11-29T20:00:00.123Z",
        "2026-11-29T20:00:00",
        "20261129T200000+0200",
        "2026-11-29",
        "2026-W48-7",
    ],
)
def test_times_are_read_as_celery_reads_them(text: str) -> None:
    """In each form that Celery reads."""
    assert as_datetime(text) == maybe_iso8601(text)


def test_a_time_is_returned_as_it_is() -> None:
    """A task that is published in this process may have one."""
    time = datetime(2026, 11, 29, tzinfo=timezone(timedelta(hours=2)))
    assert as_datetime(time) is time
    assert as_datetime(time).astimezone(UTC).hour == 22


@pytest.mark.parametrize("text", ["tomorrow", "2026-13-01", "2026-11-29T20:00:00+00:00:00.5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """The consumer makes a dead letter of its message."""
    with pytest.raises(ValueError, match=r".*"):
        as_datetime(text)
