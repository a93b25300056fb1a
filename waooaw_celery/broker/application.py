"""What was given as an application: one of this package, or a plain Celery application, which has no agents."""

from __future__ import annotations

from typing import Any, TypeVar

from celery import Celery

from waooaw_celery.errors import ConfigurationError

T = TypeVar("T")


def require_agent_app(app: T, what: str) -> T:
    """Return an application if it is one of this package.

    Args:
        app: what was given as the application.
        what: to what it was given, such as ``MessageBus``.

    Raises:
        ConfigurationError: it is a plain Celery application, or none at all.
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
        value: what was given.
        what: to what it was given, such as ``RateLimiter``.
        instead: what of an application is to be given, such as ``limiter``.

    Raises:
        ConfigurationError: it is an application.
    """
    found: Any = value
    if isinstance(found, Celery):
        require_agent_app(found, what)
        raise ConfigurationError(f"{what} takes no application: use app.{instead}")
    return value
