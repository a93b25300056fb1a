"""Worker processes without the second that each takes to import Celery: forked from one that has, as a pool's are.

Hundreds of tests start workers, and imports were most of what the whole suite computed. A worker from here runs
``python -m celery …`` from its first line on, with an environment, a folder, a process group and a log of its own,
and is a child of the tests' process, which may wait for it, freeze it and kill it. The acceptance tests start
theirs from nothing.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from waooaw_celery import embedded

#: What a worker imports, whatever it is to do.
MODULES = (
    "celery.bin.celery",
    "celery.apps.worker",
    "celery.apps.beat",
    "celery.backends.redis",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.loaders.app",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "kombu.asynchronous",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "psycopg2.extras",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "sqlalchemy.dialects.sqlite",
    "waooaw_celery",
    "waooaw_celery.transport.transport",
)
#: Seconds until the nursery must have answered.
PATIENCE = 60.0

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl(2)


def spawn(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process as ``embedded.spawn`` does; a worker of Celery is forked from one that has imported it.

    Not one that must be the first to import what it patches, and not on systems without prctl(2).
    """
    env = dict(os.environ if env is None else env)
    forked = _forkable(command, env)
    if forked is None:
        return embedded.spawn(command, log=log, env=env, cwd=cwd)
    order = {"argv": forked, "env": env, "cwd": str(cwd or Path.cwd()), "log": str(log)}
    return Forked(_nursery().child(order), command)


def _forkable(command: Sequence[str], env: Mapping[str, str]) -> list[str] | None:
    """Return the arguments behind ``python -m celery`` of a worker that may be forked, or None."""
    words = [word for word in command if word not in ("-W", "ignore")]
    if sys.platform != "linux" or words[:3] != [sys.executable, "-m", "celery"]:
        return None
    folders = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    patched = {"gevent", "eventlet"} & set(words) or any(
        Path(each, "sitecustomize.py").exists() for each in folders
    )
    return None if patched else words[3:]


class Forked(subprocess.Popen[bytes]):
    """A child of this process that was not started by it."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.args, self.pid = list(command), pid
        self.stdin = self.stdout = self.stderr = None
        self.returncode = None
        self._asking = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with self._asking:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return the exit code."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if ends_at is not None and time.monotonic() > ends_at:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)


class Nursery:
    """The process from which workers are forked; it ends with this one."""

    def __init__(self) -> None:
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._lock = threading.Lock()
        command = [sys.executable, "-W", "ignore", __file__]
        # Its own session: a Ctrl-C is for the tests, which end what they started.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        atexit.register(self.close)

    def child(self, order: Mapping[str, Any]) -> int:
        """Have a worker forked, and return its pid: a child of this process, since its own parent ends at once."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
                answer = self._process.stdout.readline()
            finally:
                self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)
        assert answer, f"the nursery has ended: {self._process.wait(PATIENCE)}"
        return int(answer)

    def close(self) -> None:
        """End it."""
        with self._process:
            self._process.kill()


@cache
def _nursery() -> Nursery:
    """Return the nursery of this process."""
    return Nursery()


# --- in the nursery


def serve() -> dict[str, Any] | None:
    """Fork a worker for each order; return the order in the worker, and None at the end."""
    for module in MODULES:
        import_module(module)
    gc.freeze()  # nothing of it will be collected in the workers
    tests = os.getppid()
    for line in sys.stdin:
        middle = os.fork()
        if not middle:
            child = os.fork()
            if child:
                os._exit(0)  # so that the child goes to the process of the tests
            _wait_for_parent(tests)
            os.write(1, f"{os.getpid()}\n".encode())
            order: dict[str, Any] = json.loads(line)
            return order
        os.waitpid(middle, 0)
    return None


def _wait_for_parent(pid: int) -> None:
    ends_at = time.monotonic() + PATIENCE
    while os.getppid() != pid:
        if time.monotonic() > ends_at:
            os._exit(1)
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def become(order: Mapping[str, Any]) -> None:
    """Be the worker of an order."""
    os.setsid()
    with open(os.devnull, "rb") as nothing, open(order["log"], "ab") as log:
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source.fileno(), target)
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    os.chdir(order["cwd"])
    folders = filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [order["cwd"], *folders]
    sys.argv = ["celery", *order["argv"]]
    warnings.simplefilter("ignore")
    runpy.run_module("celery", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _order = serve()
    if _order is not None:
        become(_order)
