"""Keeps the follow-ups of handlers that could not be sent, and sends them later from this process."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from amqp.exceptions import AMQPError
from kombu.exceptions import LimitExceeded, OperationalError
from redis.exceptions import RedisError

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.outcomes.follow_up_context import resending_follow_up

logger = get_logger(__name__)

#: Errors after which a send is tried again: broker, ledger or store does not answer, or accepts nothing for now.
TEMPORARY_ERRORS = (OperationalError, StoreUnavailable, LimitExceeded, AMQPError, RedisError, OSError)
#: The first and the longest pause between two attempts, in seconds.
FIRST_PAUSE, MAX_PAUSE_SECONDS = 0.5, 5.0
#: How many follow-ups a process keeps at most.
MAX_FOLLOW_UPS = 10_000
#: Seconds that a process takes for a last attempt when it ends.
LAST_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """Something to send after a handler has ended.

    Attributes:
        message_id: id of the message, or of the message that it follows.
        what: a description for the log, such as ``the message … to …``.
        send: sends it; raises one of ``TEMPORARY_ERRORS`` when it is to be tried again.
        refuse: is called with the error when it can never be sent.
        expires_at: the time after which it is not sent; None: never.
        recorded: whether the ledger's recovery publishes it if this process ends first.
    """

    message_id: str
    what: str
    send: Callable[[], object]
    refuse: Callable[[Exception], object]
    expires_at: datetime | None = None
    recorded: bool = False


class FollowUps:
    """The follow-ups that one process keeps. Safe for several threads.

    Args:
        now: returns the time by which they expire.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._kept: deque[FollowUp] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._kept) if self._pid == os.getpid() else 0

    def keep(self, follow_up: FollowUp, error: BaseException) -> None:
        """Keep a follow-up that could not be sent, and send it later. Never raises.

        It is dropped, with a line in the log, when ``MAX_FOLLOW_UPS`` are kept already or the process ends.

        Args:
            follow_up: what to send.
            error: why it was not sent.
        """
        if self._pid != os.getpid():  # forked: the parent sends what it keeps
            self._reset()
        with self._changed:
            refusal = None
            if self._closed:
                refusal = f"this process ends: {error}"
            elif len(self._kept) >= MAX_FOLLOW_UPS:
                refusal = f"{MAX_FOLLOW_UPS} follow-ups wait already: {error}"
            else:
                self._kept.append(follow_up)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="waooaw-follow-ups", daemon=True)
                    self._thread.start()
        if refusal is not None:
            _drop(follow_up, refusal)
            return
        logger.warning(
            "%s could not be sent; it is kept and retried: %s",
            follow_up.what,
            error,
            extra={"action": "follow_up_kept", "message_id": follow_up.message_id},
        )

    def close(self) -> None:
        """Try for up to ``LAST_SECONDS`` to send all follow-ups, and log those that remain."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        deadline = time.monotonic() + LAST_SECONDS
        if thread is not None and thread is not threading.current_thread():
            thread.join(LAST_SECONDS)
        # A thread that still sends the first one must not see it sent a second time.
        if thread is None or not thread.is_alive():
            while self._kept and time.monotonic() < deadline and self._try_first():
                pass
        while self._kept:
            try:
                follow_up = self._kept.popleft()
            except IndexError:  # the thread has sent the last one
                return
            _drop(follow_up, "this process ends")

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait(pause)
                if self._closed:
                    return
                if not self._kept:
                    self._thread = None  # the next follow-up starts another thread
                    return
            pause = FIRST_PAUSE if self._try_all() else min(2 * pause, MAX_PAUSE_SECONDS)

    def _try_all(self) -> bool:
        """Send follow-ups up to the first that cannot be sent, and return whether all were sent."""
        return all(not self._closed and self._try_first() for _ in range(len(self._kept)))

    def _try_first(self) -> bool:
        """Send the first follow-up and return whether it is settled; if not, it becomes the last."""
        follow_up = self._kept[0]
        extra = {"message_id": follow_up.message_id}
        try:
            if follow_up.expires_at is not None and follow_up.expires_at <= self._now():
                logger.error(
                    "%s expired before it could be sent",
                    follow_up.what,
                    extra={"action": "follow_up_expired"} | extra,
                )
            else:
                with resending_follow_up():
                    follow_up.send()
                logger.info(
                    "%s was sent after an outage", follow_up.what, extra={"action": "follow_up_sent"} | extra
                )
        except TEMPORARY_ERRORS:
            self._kept.rotate(-1)
            return False
        except Exception as error:  # noqa: BLE001 - it is refused with the error, and the others are still sent
            try:
                follow_up.refuse(error)
            except Exception:
                logger.exception("%s is lost", follow_up.what, extra={"action": "follow_up_lost"} | extra)
        with suppress(ValueError):  # `close` did not wait for it any longer, and has dropped it
            self._kept.remove(follow_up)
        return True


def _drop(follow_up: FollowUp, why: str) -> None:
    extra: dict[str, Any] = {"action": "follow_up_left", "message_id": follow_up.message_id}
    if follow_up.recorded:
        logger.warning(
            "%s was not sent; the ledger's recovery will publish it: %s", follow_up.what, why, extra=extra
        )
    else:
        logger.error("%s was not sent and is lost: %s", follow_up.what, why, extra=extra)
