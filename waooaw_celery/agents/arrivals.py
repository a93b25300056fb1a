"""Awaiting futures that other threads complete, many of them at once.

asyncio's own ``wrap_future`` wakes the event loop for each future, with a system call. Here the loop is woken once
for all that have been completed since it last looked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref


class Arrivals:
    """What other threads have completed for the coroutines of one event loop.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # the entry of a loop must not keep it alive
        self._arrived: deque[asyncio.Future[None]] = deque()
        self._is_called = False

    def put(self, waiter: asyncio.Future[None], _: Any = None) -> None:
        """Wake a coroutine, from any thread.

        Args:
            waiter: what it awaits.
        """
        self._arrived.append(waiter)
        loop = self._loop()
        if self._is_called or loop is None or loop.is_closed():  # a closed loop has no coroutines
            return
        self._is_called = True
        with suppress(RuntimeError):  # it was closed meanwhile
            loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_called = False  # first: what is put from now on calls again
        while self._arrived:
            waiter = self._arrived.popleft()
            if not waiter.done():
                waiter.set_result(None)


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Arrivals] = WeakKeyDictionary()


async def completed(future: Future[Any], seconds: float | None = None) -> bool:
    """Wait until a future is completed, and return whether it is.

    Args:
        future: a future that another thread completes. It is not cancelled when the coroutine is.
        seconds: how long to wait; None: for ever.
    """
    if future.done():
        return True
    loop = asyncio.get_running_loop()
    arrivals = _of_loop.get(loop)
    if arrivals is None:
        arrivals = _of_loop[loop] = Arrivals(loop)
    waiter = loop.create_future()
    future.add_done_callback(partial(arrivals.put, waiter))
    timer = None if seconds is None else loop.call_later(seconds, arrivals.put, waiter)
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
    return future.done()
