"""Operating-system threads, also where gevent or eventlet turn Python's threads into greenlets."""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Callable
from typing import Any


def start_thread(function: Callable[[], None]) -> None:
    """Run a function in a daemon thread of the operating system.

    Args:
        function: must not raise.
    """
    _original("_thread", "start_new_thread", _thread.start_new_thread)(function, ())


def sleep(seconds: float) -> None:
    """Let the calling thread sleep."""
    _original("time", "sleep", time.sleep)(seconds)


def thread_id() -> int:
    """Return the identifier of the calling thread, which is its key in ``sys._current_frames()``."""
    identifier: int = _original("_thread", "get_ident", _thread.get_ident)()
    return identifier


def _original(module: str, name: str, default: Any) -> Any:
    """Return a function as it was before gevent or eventlet replaced it."""
    if (monkey := sys.modules.get("gevent.monkey")) is not None:
        return monkey.get_original(module, name)
    if (patcher := sys.modules.get("eventlet.patcher")) is not None:
        return getattr(patcher.original(module), name)
    return default
