"""Tells that a request was tried often enough, so that no handler above it in the chain of requests repeats it."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore, Reject, Retry
from celery.utils.serialization import get_pickleable_exception

from waooaw_celery.errors import RETRIED_OUT, RemoteError, WaooawError
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER
from waooaw_celery.worker.attempt import attempt_of


def is_request(task: Any) -> bool:
    """Return whether the message that a handler handles is a request."""
    return (task.request.headers or {}).get(REPLY_TO_HEADER) is not None


def is_retried_out(error: BaseException | None) -> bool:
    """Return whether an error is, or was raised because of, an error of a request that was retried out.

    That is a RemoteError that says so, or an error of a request that this process has sent again.

    These are the errors that its traceback shows: its causes, what was being handled when it was raised (not after
    ``raise ... from None``), and the members of an ExceptionGroup.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, RemoteError) and error.retried_out:
            return True
        if isinstance(error, WaooawError) and any(map(_is_mark, getattr(error, "__notes__", ()))):
            return True
        if isinstance(error, BaseExceptionGroup) and any(map(is_retried_out, error.exceptions)):
            return True
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def mark_retried_out(task: Any, error: Exception) -> None:
    """Note on the final error of a request that it was tried often enough, if it was; its caller reads that.

    Args:
        task: the handler, an AgentTask.
        error: its final error.

    Raises:
        Exception: in place of an error that Celery cannot pickle, the one that it would send, with the note.
    """
    request = task.request
    if isinstance(error, (Ignore, Reject, Retry)) or request.called_directly or not is_request(task):
        return
    if request.retries:
        note = f"{task.name} was tried {request.retries + 1} times"
    elif attempt_of(request).is_over_budget:
        note = f"the retry budget of {task.name} is spent"
    elif is_retried_out(error):
        note = f"{task.name} failed because of a request that was"
    else:
        return
    carried = get_pickleable_exception(error)
    carried.add_note(f"{RETRIED_OUT}{note}; its caller is not tried again because of it")
    if carried is not error:
        raise carried from error


def _is_mark(note: object) -> bool:
    return isinstance(note, str) and note.startswith(RETRIED_OUT)
