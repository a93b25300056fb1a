"""The pytest plugin: the fixture ``agents_app``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from waooaw_celery.testing.agents_app import Harness


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting that names the applications under test."""
    parser.addini(
        "waooaw_app",
        "the applications of the fixture agents_app, such as greeter:app; none: a new one",
        type="args",
        default=[],
    )


@pytest.fixture
def agents_app(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """The agents of the setting ``waooaw_app``, in this process and without servers; see docs/testing.md."""
    from waooaw_celery.testing.agents_app import harness

    with harness(*map(_application, request.config.getini("waooaw_app"))) as found:
        yield found


def _application(name: str) -> Any:
    """Return an application that the setting names.

    Raises:
        ConfigurationError: there is no such application.
    """
    from celery.app.utils import find_app

    from waooaw_celery.errors import ConfigurationError

    try:
        return find_app(name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"pytest's setting waooaw_app names {name!r}, which cannot be imported: {error}. Write module:name, "
            "such as greeter:app, and see that the folder of the module is in pytest's setting pythonpath"
        ) from error
