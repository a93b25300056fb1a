"""What handlers do, and how they record it: in a file, which survives every kill."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Effect(NamedTuple):
    """One line that a handler recorded.

    Attributes:
        what: ``begun`` or ``done``.
        id: the message id.
        attempt: Celery's attempt, from 1.
        pid: id of the process.
        at: time by the monotonic clock, which all processes of the computer share.
    """

    what: str
    id: str
    attempt: int
    pid: int
    at: float


def act(payload: Any, request: Any) -> None:
    """Do what a payload asks for, and record the begin and the end.

    Args:
        payload: ``{"do": …, "seconds": …}``; any other payload is only recorded.
        request: Celery's request of the task.
    """
    note("begun", request)
    payload = payload if isinstance(payload, dict) else {}
    do = payload.get("do", "work")
    if do == "fail at first":
        do = "work" if Path(f"{_file()}.fixed").exists() else "fail"
    if do == "kill once" and Path(f"{_file()}.{request.id}").exists():
        do = "work"
    time.sleep(payload.get("seconds", 0.0))
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
        raise MemoryError("as the payload asks")
    elif do == "exit":
        sys.exit(3)
    elif do == "fail once" and not request.retries:
        raise ValueError("as the payload asks, at first")
    elif do == "fail":
        raise ValueError("as the payload asks")
    note("done", request)


def note(what: str, request: Any) -> None:
    """Append a line to the file of effects in one write, so that a kill cannot split it."""
    line = f"{what} {request.id} {request.retries + 1} {os.getpid()} {time.monotonic():.6f}\n"
    file = os.open(_file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(path: Path) -> list[Effect]:
    """Return what the handlers recorded."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        what, id_, attempt, pid, at = line.split()
        found.append(Effect(what, id_, int(attempt), int(pid), float(at)))
    return found


def _file() -> str:
    return os.environ["FAULTS_EFFECTS"]
