"""Runs processes with a wrong clock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import PROBE_FOLDER, Broker

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


def environment(broker: Broker, folder: Path, ahead: float) -> dict[str, str]:
    """Return the environment of a process with a wrong clock that uses a broker."""
    env = skewed(folder, ahead) | {
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_BACKEND": broker.redis_url,
        "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
        "COLUMNS": "200",
    }
    return env | ({"WAOOAW_DATABASE_URL": broker.database_url} if broker.database_url else {})


def run_python(broker: Broker, folder: Path, ahead: float, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a wrong clock, and return its result."""
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment(broker, folder, ahead),
        cwd=PROBE_FOLDER,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
