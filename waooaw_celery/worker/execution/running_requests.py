"""Where the pool runs a request, and whether it still does: what Celery notes of it may outlive its handler."""

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

#: The files whose functions call a handler in the process that runs it.
_CALLERS = frozenset({trace.__file__, base.__file__})


@dataclass(frozen=True, slots=True)
class Place:
    """Where the pool accepted a request.

    Attributes:
        thread: identifier of the thread. With prefork it is the parent's: the process is ``Request.worker_pid``.
        greenlet: the greenlet, weakly, where the process uses greenlets.
        at: when, by the monotonic clock.
    """

    thread: int
    greenlet: weakref.ref[Any] | None
    at: float

    @classmethod
    def here(cls) -> Place:
        """Return where the calling code runs."""
        greenlets = sys.modules.get("greenlet")
        current = None if greenlets is None else weakref.ref(greenlets.getcurrent())
        return cls(get_ident(), current, time.monotonic())


def running(
    accepted: Collection[Any], pool: Any, consumer_thread: int, frames: Mapping[int, FrameType]
) -> set[Any]:
    """Return those requests whose handlers run.

    Args:
        accepted: requests that the pool accepted, and that have not ended for Celery.
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
        # An ordinary Celery task does not say where it runs.
        if (place := getattr(request, "place", None)) is None
        or (_greenlet_runs(place) if pool.is_green else _thread_runs(place, latest, consumer_thread, frames))
    }


def calls_handler(frame: FrameType | None) -> bool:
    """Whether a thread with this frame is calling a handler."""
    while frame is not None:
        if frame.f_code.co_filename in _CALLERS:
            return True
        frame = frame.f_back
    return False


def _processes(pool: Any) -> frozenset[int] | None:
    try:
        return frozenset(pool.info["processes"])
    except (RuntimeError, AttributeError):  # it changes at this moment, or the pool has just been stopped
        return None


def _process_runs(request: Any, processes: frozenset[int] | None) -> bool:
    # The pool drops its result when it has handed it on; what is raised by whoever takes it is only logged.
    result = request._apply_result and request._apply_result()
    known = processes is None or request.worker_pid in processes
    return known and result is not None and not result.ready()


def _greenlet_runs(place: Place) -> bool:
    greenlet = None if place.greenlet is None else place.greenlet()
    return greenlet is not None and not greenlet.dead


def _thread_runs(
    place: Place, latest: Mapping[int, float], consumer_thread: int, frames: Mapping[int, FrameType]
) -> bool:
    frame = frames.get(place.thread)
    if frame is None or place.at < latest[place.thread]:  # the thread has ended, or has begun with another request
        return False
    if place.thread == consumer_thread:  # solo
        return calls_handler(frame)
    idle = frame.f_code.co_name == "_worker" and frame.f_code.co_filename == executor.__file__
    return not idle
