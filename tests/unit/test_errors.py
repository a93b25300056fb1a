"""The errors: one root, a drawn tree, and a sentence each."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from kombu.exceptions import OperationalError

from waooaw_celery import errors

classes = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.WaooawError)
]
#: Their sentences are made from their parts.
_BUILT = (errors.RemoteError, errors.RateLimitExceeded, errors.SchemaViolation)


def test_the_drawn_tree_is_the_real_one() -> None:
    """The module's docstring names every error, each below its own base."""
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^( *)\* (\w+)", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4
        path[depth:] = [name]
        drawn[name] = path[depth - 1] if depth else None
    assert drawn == {cls.__name__: _parent(cls) for cls in classes}


def _parent(cls: type) -> str | None:
    base = cls.__bases__[0]
    return base.__name__ if base in classes else None


@pytest.mark.parametrize("cls", [cls for cls in classes if cls not in _BUILT])
def test_an_error_without_words_says_its_docstring(cls: type[errors.WaooawError]) -> None:
    """Raising a bare class still gives a sentence."""
    assert str(cls()) == (cls.__doc__ or "").splitlines()[0]


def test_celery_code_catches_a_dead_broker_as_it_always_did() -> None:
    """BrokerUnavailable is Kombu's OperationalError too."""
    assert issubclass(errors.BrokerUnavailable, OperationalError)


def test_a_remote_error_survives_pickling() -> None:
    """RemoteError keeps its parts through a process pool."""
    error = pickle.loads(pickle.dumps(errors.RemoteError("b", "ValueError", "no", "tb")))  # noqa: S301
    assert (error.agent, error.type, error.message, error.traceback) == ("b", "ValueError", "no", "tb")
