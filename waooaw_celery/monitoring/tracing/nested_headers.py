"""The nested copy of a message's headers, ``headers["headers"]``, in which Sentry and Datadog look for their own.

Celery takes the nested copy for all custom headers of a request (https://github.com/celery/celery/issues/4875). So
it must have all of them: a library that writes only its own there would hide the envelope.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from celery.app.task import Context

#: The name of the nested copy.
NESTED = "headers"


def with_nested_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a worker's request gets beside its headers: the nested copy, where somebody needs it.

    Args:
        headers: the headers of a Celery message.

    Returns:
        A mapping with the nested copy, or an empty one: the process has no Sentry, and the message has no copy.
    """
    nested = headers.get(NESTED)
    if not isinstance(nested, Mapping):
        if "sentry_sdk" not in sys.modules:
            return {}
        nested = {}
    own = {name: value for name, value in headers.items() if name != NESTED}
    return {NESTED: {**nested, **(Context(own).headers or {})}}
