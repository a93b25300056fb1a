"""A small pool of threads for what blocks, so that no event loop has to wait for it."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Calls that go on at once in one process; more wait for their turn.
MAX_CALLS = 16

_pool: ThreadPoolExecutor


def run_in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Run what blocks in a thread of the pool, in the context of the caller."""
    return _pool.submit(contextvars.copy_context().run, partial(work, *args, **kwargs))


def _make_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="waooaw-threads")


_make_pool()
os.register_at_fork(after_in_child=_make_pool)  # the threads of the parent are not in the child
