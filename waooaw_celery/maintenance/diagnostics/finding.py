"""What a check of `waooaw doctor` finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from waooaw_celery.app.app import AgentApp


class State(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARN = "warn"  #: it works, and needs attention
    FAIL = "fail"  #: something does not work


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding of a check.

    Attributes:
        name: what was checked, such as ``clock of this computer``.
        state: whether it is right.
        sentence: what was found, and what to do about it.
    """

    name: str
    state: State
    sentence: str


#: A check: a function from an application to its findings. Its name, with spaces, names what it checks.
Check: TypeAlias = Callable[[AgentApp], Iterable[Finding]]


def ok(name: str, sentence: str) -> Finding:
    """Return the finding that something is right."""
    return Finding(name=name, state=State.OK, sentence=sentence)


def warn(name: str, sentence: str) -> Finding:
    """Return the finding that something works and needs attention."""
    return Finding(name=name, state=State.WARN, sentence=sentence)


def fail(name: str, sentence: str) -> Finding:
    """Return the finding that something does not work."""
    return Finding(name=name, state=State.FAIL, sentence=sentence)
