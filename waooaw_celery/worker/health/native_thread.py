"""Threads of the operating system, also where gevent or eventlet make greenlets of Python's threads."""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Callable
from typing import Any


def start_thread(function: Callable[[], None]) -> None:
    """Run a function in a thread of the operating system, which does not keep the process from ending.

    Args:
        function: must not raise.
    """
    _original("_thread", "start_new_thread", _thread.start_new_thread)(function, ())


def sleep(seconds: float) -> None:
    """Let the calling thread sleep."""
    _original("time", "sleep", time.sleep)(seconds)


def thread_id() -> int:
    """Return the identifier of the calling thread, by which ``sys._current_frames()`` knows it."""
    identifier: int = _original("_thread", "get_ident", _thread.get_ident)()
    return identifier


def _original(module: str, name: str, default: Any) -> Any:
    """Return a function as it was before gevent or eventlet replaced it."""
    if (monkey := sys.modules.get("gevent.monkey")) is not None:
        return monkey.get_original(module, name)
    if (patcher := sys.modules.get("eventlet.patcher")) is not None:
        return getattr(patcher.original(module), name)
    return default
