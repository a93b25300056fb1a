"""The blocking and the awaited classes have the same operations."""

from __future__ import annotations

import inspect

import pytest

import waooaw_celery
from waooaw_celery import aio
from waooaw_celery.agents.aio import Agent as AsyncAgent
from waooaw_celery.agents.client import AgentClient


def operations(cls: type) -> set[str]:
    """Return the names of the public methods of a class."""
    return {name for name, value in vars(cls).items() if not name.startswith("_") and callable(value)}


@pytest.mark.parametrize(
    ("blocking", "awaited", "blocking_only"),
    [
        (waooaw_celery.MessageBus, aio.MessageBus, set()),
        (waooaw_celery.EventBus, aio.EventBus, set()),
        (waooaw_celery.RequestResponseHandler, aio.RequestResponseHandler, set()),
        (waooaw_celery.MessageAuditTrail, aio.MessageAuditTrail, set()),
        # What the publisher calls, and what closes the storage.
        (waooaw_celery.RateLimiter, aio.RateLimiter, {"acquire_demands", "check_demands", "close"}),
        (AgentClient, AsyncAgent, set()),
    ],
)
def test_every_operation_can_be_awaited(blocking: type, awaited: type, blocking_only: set[str]) -> None:
    """A new operation needs one line in aio."""
    assert operations(blocking) - blocking_only == operations(awaited) - {"send_message"}


def test_an_awaited_operation_has_the_signature_and_docstring_of_the_blocking_one() -> None:
    """help() shows the same for both."""
    for name in operations(AgentClient):
        blocking, awaited = getattr(AgentClient, name), getattr(AsyncAgent, name)
        assert inspect.signature(blocking) == inspect.signature(awaited)
        assert blocking.__doc__ == awaited.__doc__
