"""Runs processes with a wrong clock."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOUR = 3600.0

#: A ``sitecustomize`` that moves ``time.time`` and ``datetime``. Instances of the original ``datetime`` class
#: count as instances of the moved one.
SITECUSTOMIZE = """
import datetime as module
import os
import time

ahead = float(os.environ["TESTS_CLOCK_AHEAD"])
original_time, real = time.time, module.datetime
time.time = lambda: original_time() + ahead


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
    """Return the environment of a process with a wrong clock.

    Args:
        folder: a folder for the module that changes the clock.
        ahead: seconds that its clock is ahead; negative: behind.
    """
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    paths = (folder, Path(__file__).parent / "integration", ROOT, *filter(None, [os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": os.pathsep.join(map(str, paths)), "TESTS_CLOCK_AHEAD": str(ahead)}
