"""What stands in a log or in Celery's events in place of arguments, results and the texts of errors."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

#: Stands for an argument, a result, or the text of an error.
HIDDEN = "…"


def hidden_error(error: BaseException | None) -> str:
    """Return the class of an error without its text, which may quote a payload.

    Args:
        error: the error; None: it is not known.
    """
    if error is None:
        return HIDDEN
    name = str(getattr(error, "exc_cls_name", type(error).__name__))  # Celery wraps what cannot be pickled
    cause: Any = getattr(error, "exc", None)  # of a Retry
    return f"{name}: {type(cause).__name__}" if isinstance(cause, BaseException) else f"{name}: {HIDDEN}"


def hidden_traceback(error: BaseException) -> str:
    """Return the traceback of an error and of its causes, without their texts."""
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and id(cause) not in seen:
        yield from _lines(cause, seen)
        yield "Then:"
    try:
        frames = "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    except (AttributeError, TypeError):  # billiard sends a copy that may lack what the traceback module reads
        frames = ""
    yield "Traceback (most recent call last):"
    if frames:
        yield frames
    yield hidden_error(error)
