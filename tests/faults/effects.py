"""What handlers do, and what they note of it: in a file of their own, which survives any kill."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Effect(NamedTuple):
    """A line of a handler.

    Attributes:
        what: ``begun`` or ``done``.
        id: of the message.
        attempt: of Celery's own retries, from 1 on.
        pid: of the process.
        at: by the monotonic clock, which all processes of the computer have in common.
    """

    what: str
    id: str
    attempt: int
    pid: int
    at: float


def act(said: Any, request: Any) -> None:
    """Do what a message says, and note its beginning and its end.

    Args:
        said: the payload: ``{"do": …, "seconds": …}``; anything else is just noted.
        request: Celery's facts about the task.
    """
    note("begun", request)
    said = said if isinstance(said, dict) else {}
    do = said.get("do", "work")
    if do == "fail at first":
        do = "work" if Path(f"{_file()}.mended").exists() else "fail"
    if do == "kill once" and Path(f"{_file()}.{request.id}").exists():
        do = "work"
    time.sleep(said.get("seconds", 0.0))
    if do == "kill once":
        Path(f"{_file()}.{request.id}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "kill the worker":
        os.kill(int(os.environ["FAULTS_WORKER"]), signal.SIGKILL)
        time.sleep(60)
    elif do == "crash":
        ctypes.string_at(0)
    elif do == "run out of memory":
        raise MemoryError("as the message says")
    elif do == "exit":
        sys.exit(3)
    elif do == "fail":
        raise ValueError("as the message says")
    note("done", request)


def note(what: str, request: Any) -> None:
    """Append a line to the file of effects, in one piece whatever happens to the process."""
    line = f"{what} {request.id} {request.retries + 1} {os.getpid()} {time.monotonic():.6f}\n"
    file = os.open(_file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(path: Path) -> list[Effect]:
    """Return what the handlers noted."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        what, id_, attempt, pid, at = line.split()
        found.append(Effect(what, id_, int(attempt), int(pid), float(at)))
    return found


def _file() -> str:
    return os.environ["FAULTS_EFFECTS"]
