"""The kit for your tests: agents in one process without servers, and embedded servers for tests with real ones.

``harness`` runs the agents of an application in the test's own process. The pytest plugin of this package has
the fixture ``agents_app``. ``waooaw_celery.testing.embedded`` starts a Valkey and a PostgreSQL from wheels.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waooaw_celery.errors import NotSettled
    from waooaw_celery.testing.agents_app import Harness, harness
    from waooaw_celery.testing.clock import Clock
    from waooaw_celery.testing.failures import Killed

__all__ = ["Clock", "Harness", "Killed", "NotSettled", "harness"]

#: The names, each with its module: they are imported when they are first used.
_MODULES = {
    "Clock": "waooaw_celery.testing.clock",
    "Harness": "waooaw_celery.testing.agents_app",
    "Killed": "waooaw_celery.testing.failures",
    "NotSettled": "waooaw_celery.errors",
    "harness": "waooaw_celery.testing.agents_app",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the embedded servers need none of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
