"""Checks what a caller passed as the application: an AgentApp, a plain Celery application, or something else."""

from __future__ import annotations

from typing import Any, TypeVar

from celery import Celery

from waooaw_celery.errors import ConfigurationError

T = TypeVar("T")


def require_agent_app(app: T, what: str) -> T:
    """Return an application if it is an AgentApp.

    Args:
        app: What the caller passed as the application.
        what: What it was passed to, such as ``MessageBus``; used in the error message.

    Raises:
        ConfigurationError: It is a plain Celery application, or no application.
    """
    if isinstance(app, Celery) and hasattr(app, "agents"):
        return app
    given = f"the plain Celery application {app.main!r}" if isinstance(app, Celery) else f"{app!r:.80}"
    raise ConfigurationError(
        f"{what} needs an application of waooaw_celery, not {given}: make it with waooaw_celery.create_app(...), "
        "which takes all settings of a Celery application and runs its tasks too"
    )


def refuse_app(value: T, what: str, instead: str) -> T:
    """Return a value unless it is an application.

    Args:
        value: What the caller passed.
        what: What it was passed to, such as ``RateLimiter``; used in the error message.
        instead: The attribute of an application to pass instead, such as ``limiter``.

    Raises:
        ConfigurationError: It is an application.
    """
    found: Any = value
    if isinstance(found, Celery):
        require_agent_app(found, what)
        raise ConfigurationError(f"{what} takes no application: use app.{instead}")
    return value
