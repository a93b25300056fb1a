"""A coroutine awaits what another thread completes; many completions wake its event loop once."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from waooaw_celery.agents.arrivals import _of_loop, completed

#: Futures that are completed at once.
MANY = 50


def test_a_future_of_another_thread_is_awaited() -> None:
    """The coroutine goes on when the thread has completed it."""

    async def wait() -> bool:
        with ThreadPoolExecutor(1) as pool:
            return await completed(pool.submit(time.sleep, 0.05), 10)

    assert asyncio.run(wait())


def test_the_wait_ends_with_its_time() -> None:
    """The future is not completed then, and nothing is raised."""

    async def wait() -> float:
        began = time.monotonic()
        assert not await completed(Future[None](), 0.2)
        return time.monotonic() - began

    assert 0.2 <= asyncio.run(wait()) < 5


def test_futures_that_are_completed_together_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To wake the loop is a system call."""
    futures = [Future[int]() for _ in range(MANY)]
    calls: list[object] = []

    async def wait_for_all() -> list[bool]:
        loop = asyncio.get_running_loop()
        waits = [asyncio.ensure_future(completed(future, 10)) for future in futures]
        await asyncio.sleep(0)
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (calls.append(args), wake(*args)))
        for future in futures:
            future.set_result(1)
        return await asyncio.gather(*waits)

    assert asyncio.run(wait_for_all()) == [True] * MANY
    assert len(calls) == 1


def test_a_cancelled_wait_leaves_the_future() -> None:
    """Somebody else may wait for it."""
    future = Future[int]()

    async def cancel() -> None:
        wait = asyncio.ensure_future(completed(future))
        await asyncio.sleep(0)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait

    asyncio.run(cancel())
    future.set_result(1)
    assert future.result() == 1


def test_a_future_that_outlives_its_loop_is_completed_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """An answer may come when the program that asked has ended its event loop."""
    future = Future[int]()

    async def give_up() -> None:
        assert not await completed(future, 0.01)

    asyncio.run(give_up())
    future.set_result(1)
    assert not caplog.records


def test_a_loop_that_has_ended_is_forgotten() -> None:
    """A program may run one event loop after the other."""

    async def wait() -> weakref.ref[asyncio.AbstractEventLoop]:
        assert not await completed(Future[int](), 0.01)
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(wait())
    gc.collect()
    assert loop() is None
    assert loop not in list(_of_loop)
