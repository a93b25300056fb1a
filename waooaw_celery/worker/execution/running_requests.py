"""Tells which requests have a running handler. Celery's own note of a request may outlive its handler."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Collection, Mapping
from concurrent.futures import thread as executor
from dataclasses import dataclass
from threading import get_ident
from types import FrameType
from typing import Any

from celery.app import trace
from celery.concurrency import base
from celery.concurrency.prefork import TaskPool as ProcessPool

#: The source files whose functions call a handler in the process that runs it.
_CALLERS = frozenset({trace.__file__, base.__file__})


@dataclass(frozen=True, slots=True)
class Place:
    """Where the pool accepted a request.

    Attributes:
        thread: identifier of the thread. With prefork it is the parent's; the process is ``Request.worker_pid``.
        greenlet: a weak reference to the greenlet; None where the process uses no greenlets.
        at: when, in seconds of the monotonic clock.
    """

    thread: int
    greenlet: weakref.ref[Any] | None
    at: float

    @classmethod
    def here(cls) -> Place:
        """Return the place of the calling code."""
        greenlets = sys.modules.get("greenlet")
        current = None if greenlets is None else weakref.ref(greenlets.getcurrent())
        return cls(get_ident(), current, time.monotonic())


def requests_with_running_handler(
    accepted: Collection[Any], pool: Any, consumer_thread: int, frames: Mapping[int, FrameType]
) -> set[Any]:
    """Return those requests whose handlers run.

    Args:
        accepted: requests that the pool has accepted, and that Celery has not ended.
        pool: the worker's pool.
        consumer_thread: identifier of the thread that consumes.
        frames: what each thread executes: ``sys._current_frames()``.
    """
    if isinstance(pool, ProcessPool):
        processes = _processes(pool)
        return {request for request in accepted if _process_runs(request, processes)}
    latest: dict[int, float] = {}
    for request in accepted:
        if (place := getattr(request, "place", None)) is not None:
            latest[place.thread] = max(latest.get(place.thread, 0.0), place.at)
    return {
        request
        for request in accepted
        # The request of an ordinary Celery task has no place, and counts as running.
        if (place := getattr(request, "place", None)) is None
        or (_greenlet_runs(place) if pool.is_green else _thread_runs(place, latest, consumer_thread, frames))
    }


def calls_handler(frame: FrameType | None) -> bool:
    """Return whether a thread with this frame is calling a handler."""
    # The thread runs on meanwhile. Python 3.11 was seen to give an object that is no frame as the next one.
    while isinstance(frame, FrameType):
        if frame.f_code.co_filename in _CALLERS:
            return True
        frame = frame.f_back
    return False


def _processes(pool: Any) -> frozenset[int] | None:
    try:
        return frozenset(pool.info["processes"])
    except (RuntimeError, AttributeError):  # it changes just now, or the pool was stopped
        return None


def _process_runs(request: Any, processes: frozenset[int] | None) -> bool:
    # The pool drops a result after it has passed it on. If the receiver raises, that is only logged.
    result = request._apply_result and request._apply_result()
    is_alive = processes is None or request.worker_pid in processes
    return is_alive and result is not None and not result.ready()


def _greenlet_runs(place: Place) -> bool:
    greenlet = None if place.greenlet is None else place.greenlet()
    return greenlet is not None and not greenlet.dead


def _thread_runs(
    place: Place, latest: Mapping[int, float], consumer_thread: int, frames: Mapping[int, FrameType]
) -> bool:
    frame = frames.get(place.thread)
    if frame is None or place.at < latest[place.thread]:  # the thread has ended, or runs another request
        return False
    if place.thread == consumer_thread:  # the solo pool
        return calls_handler(frame)
    is_idle = frame.f_code.co_name == "_worker" and frame.f_code.co_filename == executor.__file__
    return not is_idle
