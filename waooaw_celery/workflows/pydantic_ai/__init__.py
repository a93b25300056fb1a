"""Agents of pydantic-ai in workflows: their model requests and tool calls are steps."""

from __future__ import annotations

try:
    import pydantic_ai  # noqa: F401 - only to see whether it is there
except ImportError as error:
    raise ImportError("pydantic-ai is not installed: run `pip install 'waooaw-celery[pydantic-ai]'`") from error
