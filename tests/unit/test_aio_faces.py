"""The blocking and the awaited classes have the same verbs."""

from __future__ import annotations

import inspect

import pytest

import waooaw_celery
from waooaw_celery import aio
from waooaw_celery.agents.aio import Agent as AsyncAgent
from waooaw_celery.agents.client import AgentClient


def verbs(face: type) -> set[str]:
    """Return the names of the public methods of a class."""
    return {name for name, value in vars(face).items() if not name.startswith("_") and callable(value)}


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
def test_every_verb_can_be_awaited(blocking: type, awaited: type, blocking_only: set[str]) -> None:
    """A new verb needs one line in aio."""
    assert verbs(blocking) - blocking_only == verbs(awaited) - {"send_message"}


def test_an_awaited_verb_has_the_signature_and_docstring_of_the_verb() -> None:
    """help() shows the same for both."""
    for name in verbs(AgentClient):
        blocking, awaited = getattr(AgentClient, name), getattr(AsyncAgent, name)
        assert inspect.signature(blocking) == inspect.signature(awaited)
        assert blocking.__doc__ == awaited.__doc__
