"""The blocking and the awaited classes have the same operations."""

from __future__ import annotations

import inspect

import pytest

import waooaw_celery
import waooaw_celery.agents
from waooaw_celery import aio
from waooaw_celery.agents.aio import Agent as AsyncAgent
from waooaw_celery.agents.client import AgentClient


def operations(cls: type) -> set[str]:
    """Return the names of the public methods of a class, inherited ones included."""
    members = {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}
    return {name for name, value in members.items() if callable(value)}


#: Each class, the class with the same operations as coroutines, and what only the first has.
PAIRS: list[tuple[type, type, set[str]]] = [
    (waooaw_celery.MessageBus, aio.MessageBus, set()),
    (waooaw_celery.EventBus, aio.EventBus, set()),
    (waooaw_celery.RequestResponseHandler, aio.RequestResponseHandler, set()),
    (waooaw_celery.MessageAuditTrail, aio.MessageAuditTrail, set()),
    # What the publisher calls, and what closes the storage.
    (
        waooaw_celery.RateLimiter,
        aio.RateLimiter,
        {"acquire_demands", "charge_arguments", "check_demands", "check_reply", "close"},
    ),
    (waooaw_celery.agents.AgentPool, aio.AgentPool, set()),
    (waooaw_celery.agents.Registry, aio.Registry, {"changes"}),
    (waooaw_celery.agents.Workflows, aio.Workflows, set()),
    (AgentClient, AsyncAgent, set()),
]

each_pair = pytest.mark.parametrize(
    ("blocking", "awaited", "blocking_only"), PAIRS, ids=[pair[1].__name__ for pair in PAIRS]
)


def test_every_awaited_class_is_compared() -> None:
    """The list above has each class of ``waooaw_celery.aio``."""
    assert {awaited.__name__ for _, awaited, _ in PAIRS} == {*aio.__all__, "Agent"}


@each_pair
def test_every_operation_can_be_awaited(blocking: type, awaited: type, blocking_only: set[str]) -> None:
    """A new operation needs one line in aio."""
    assert operations(blocking) - blocking_only == operations(awaited) - {"send_message"}


@each_pair
def test_an_awaited_operation_has_the_signature_and_docstring_of_the_blocking_one(
    blocking: type, awaited: type, blocking_only: set[str]
) -> None:
    """help() shows the same for both."""
    for name in operations(blocking) - blocking_only:
        one, other = getattr(blocking, name), getattr(awaited, name)
        assert inspect.signature(one) == inspect.signature(other), name
        assert one.__doc__ == other.__doc__, name
