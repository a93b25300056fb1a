"""Processes on a computer whose clock is wrong."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOUR = 3600.0

#: Both clocks of Python, ahead by a while. Classes that others took before stand for the one in their place.
SKEW = """
import datetime as module
import os
import time

ahead = float(os.environ["TESTS_CLOCK_AHEAD"])
right, real = time.time, module.datetime
time.time = lambda: right() + ahead


class Meta(type(real)):
    def __instancecheck__(cls, value):
        return isinstance(value, real) if cls is datetime else type.__instancecheck__(cls, value)

    def __subclasscheck__(cls, other):
        return issubclass(other, real) if cls is datetime else type.__subclasscheck__(cls, other)


class datetime(real, metaclass=Meta):
    __slots__ = ()

    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(time.time(), module.timezone.utc).replace(tzinfo=None)


module.datetime = datetime
"""


def skewed(folder: Path, ahead: float) -> dict[str, str]:
    """Return the environment of a process whose clock is so many seconds ahead, or behind when negative."""
    (folder / "sitecustomize.py").write_text(SKEW)
    paths = (folder, Path(__file__).parent / "integration", ROOT, *filter(None, [os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": os.pathsep.join(map(str, paths)), "TESTS_CLOCK_AHEAD": str(ahead)}
