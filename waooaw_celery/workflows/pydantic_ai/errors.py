"""Errors of pydantic-ai in the journal: they are raised again with their class and their fields.

The journal has the class name, the text and the traceback of an error. Its fields are written as a note (PEP 678),
which is the last line of the traceback.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic_ai import exceptions
from pydantic_core import to_jsonable_python

from waooaw_celery.errors import StepFailed

#: What the note with the fields of an error begins with.
_NOTE = "pydantic-ai error: "
#: The longest note, in characters. A longer one is written without the body of the provider's answer.
_LONGEST = 8_000


def add_fields(error: Exception) -> None:
    """Add the note with the fields of an error; other errors than those of pydantic-ai stay as they are.

    Args:
        error: what a model or a tool raised.
    """
    if not isinstance(error, exceptions.AgentRunError | exceptions.UserError):
        return
    given = inspect.signature(type(error)).parameters
    # The headers of an answer may hold secrets.
    fields = {name: getattr(error, name) for name in given if name != "headers" and hasattr(error, name)}
    note = _note(error, fields)
    if len(note) > _LONGEST:
        note = _note(error, fields | {"body": None})
    if len(note) <= _LONGEST:
        error.add_note(note)


def original(failed: StepFailed) -> Exception:
    """Return the error that a step has raised, as far as it is one of pydantic-ai, or the StepFailed itself."""
    lines = (failed.traceback or "").splitlines()
    note = next((line for line in reversed(lines) if line.startswith(_NOTE)), None)
    if note is None:
        return failed
    found = json.loads(note.removeprefix(_NOTE))
    cls = getattr(exceptions, found["class"], None)
    if not isinstance(cls, type) or not issubclass(cls, exceptions.AgentRunError | exceptions.UserError):
        return failed
    try:
        if found["http"] and not issubclass(cls, exceptions.ModelHTTPError):
            # An HTTP error that is also of a category, such as ModelRateLimitError.
            category: Any = cls
            return exceptions.ModelHTTPError.for_category(category, **found["fields"])
        error: Exception = cls(**found["fields"])
    except TypeError:  # another version of pydantic-ai has written it
        return failed
    return error


def _note(error: Exception, fields: dict[str, Any]) -> str:
    is_http = isinstance(error, exceptions.ModelHTTPError)
    details = {"class": type(error).__name__, "http": is_http, "fields": to_jsonable_python(fields, fallback=str)}
    return _NOTE + json.dumps(details)
