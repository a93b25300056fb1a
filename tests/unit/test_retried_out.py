"""An error says whether it, or a request behind it, was tried often enough."""

from __future__ import annotations

import copy
import traceback

import pytest

from waooaw_celery.errors import RETRIED_OUT, RemoteError
from waooaw_celery.worker.retries.retried_out import is_retried_out


def remote(note: str | None, type_: str = "ConnectionError") -> RemoteError:
    """Return the RemoteError of a handler whose error had this note."""
    error = ConnectionError("lost")
    if note is not None:
        error.add_note(note)
    return RemoteError("worker-1", type_, "lost", "".join(traceback.format_exception(error)))


OUT = remote(f"{RETRIED_OUT}it was tried 3 times")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OUT, True),
        (copy.copy(OUT), True),
        (remote(None), False),
        (remote("another note"), False),
        (RemoteError("worker-1", "ValueError", "no"), False),
        (RemoteError("worker-1", "WorkerLostError", "exited"), True),
        (RemoteError("worker-1", "DeliveryLimitExceeded", "6 workers"), True),
    ],
)
def test_a_remote_error_reads_the_note_in_its_traceback(error: RemoteError, expected: bool) -> None:
    """The deaths of workers, which have no traceback, count too."""
    assert error.retried_out is expected


def test_the_note_of_a_group_is_found() -> None:
    """Python indents the lines of an ExceptionGroup."""
    group = ExceptionGroup("several", [ValueError("no")])
    group.add_note(f"{RETRIED_OUT}it was tried 3 times")
    assert RemoteError("a", "ExceptionGroup", "several", "".join(traceback.format_exception(group))).retried_out


def raised(how: str) -> Exception:
    """Return an error that was raised because of, or while handling, a RemoteError that was retried out."""
    try:
        try:
            raise OUT
        except RemoteError as error:
            if how == "from error":
                raise ValueError("own") from error
            if how == "from none":
                raise ValueError("own") from None
            if how == "from another":
                raise ValueError("own") from KeyError("another")
            raise ValueError("own")  # noqa: B904 - its context is what this tests
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("how", "expected"),
    [("from error", True), ("in except", True), ("from none", False), ("from another", False)],
)
def test_what_the_traceback_of_an_error_shows_counts(how: str, expected: bool) -> None:
    """Causes and contexts count, unless ``from`` hides them."""
    assert is_retried_out(raised(how)) is expected


def test_groups_and_loops_of_errors_are_followed() -> None:
    """A member of a nested group counts; errors that cause each other end the search."""
    assert is_retried_out(ExceptionGroup("outer", [KeyError(), ExceptionGroup("inner", [raised("from error")])]))
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_retried_out(first)
