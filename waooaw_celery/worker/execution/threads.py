"""A small thread pool for blocking calls, so that they do not block an event loop."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: How many calls run at once in one process; others wait.
MAX_CALLS = 16

_pool: ThreadPoolExecutor


def run_in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Run a blocking function in a thread of the pool, in the context of the caller, and return its future."""
    return _pool.submit(contextvars.copy_context().run, partial(function, *args, **kwargs))


def _make_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="waooaw-threads")


_make_pool()
os.register_at_fork(after_in_child=_make_pool)  # a forked process has none of its parent's threads
