"""What follows a handler's end and could not be sent yet: kept in this process, and sent when that is possible."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from amqp.exceptions import AMQPError
from kombu.exceptions import LimitExceeded, OperationalError
from redis.exceptions import RedisError

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.worker.outcomes.follow_up_context import resending_follow_up

logger = logging.getLogger(__name__)

#: What is raised by a send that may succeed later: broker, ledger or store is away, or takes nothing for now.
NOT_NOW = (OperationalError, StoreUnavailable, LimitExceeded, AMQPError, RedisError, OSError)
#: Seconds between two attempts: first, and at most.
FIRST_PAUSE, MAX_PAUSE_SECONDS = 0.5, 5.0
#: Follow-ups that a process keeps at most.
MOST = 10_000
#: Seconds that a process which ends takes for a last attempt.
LAST_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """Something that is to be sent.

    Attributes:
        message_id: of the message, or of the one that it follows.
        what: what it is, for the log, such as ``the message … to …``.
        send: sends it; raises one of ``NOT_NOW`` when it is to be tried again.
        refuse: called with the error when it can never be sent.
        expires_at: after which it is not to be sent any more; None: never.
        recorded: whether the ledger publishes it if this process ends first.
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
        """Send something later, since it cannot be sent now. Never raises.

        Args:
            follow_up: what to send.
            error: why it was not sent.
        """
        if self._pid != os.getpid():  # forked: the parent sends what it keeps
            self._reset()
        with self._changed:
            room = len(self._kept) < MOST
            if room:
                self._kept.append(follow_up)
            if room and self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="waooaw-follow-ups", daemon=True)
                self._thread.start()
        if room:
            logger.warning(
                "%s is kept and sent when that is possible: %s",
                follow_up.what,
                error,
                extra={"action": "follow_up_kept", "message_id": follow_up.message_id},
            )
        else:
            _leave(follow_up, f"{MOST} others wait already")

    def close(self) -> None:
        """Try once more to send what is kept, for a moment, and tell the log of what is left."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(LAST_SECONDS)
        deadline = time.monotonic() + LAST_SECONDS
        while self._kept and time.monotonic() < deadline and self._try_first():
            pass
        while self._kept:
            _leave(self._kept.popleft(), "this process ends")

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait(pause)
                if self._closed:
                    return
                if not self._kept:
                    self._thread = None  # the next one starts another
                    return
            pause = FIRST_PAUSE if self._try_all() else min(2 * pause, MAX_PAUSE_SECONDS)

    def _try_all(self) -> bool:
        """Send all that is kept, up to the first that cannot be sent, and return whether all was sent."""
        return all(not self._closed and self._try_first() for _ in range(len(self._kept)))

    def _try_first(self) -> bool:
        """Send the first, and return whether it is done with; otherwise it is the last then."""
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
                logger.info("%s is sent", follow_up.what, extra={"action": "follow_up_sent"} | extra)
        except NOT_NOW:
            self._kept.rotate(-1)
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and others are still to be sent
            try:
                follow_up.refuse(error)
            except Exception:
                logger.exception("%s is lost", follow_up.what, extra={"action": "follow_up_lost"} | extra)
        self._kept.popleft()
        return True


def _leave(follow_up: FollowUp, why: str) -> None:
    extra: dict[str, Any] = {"action": "follow_up_left", "message_id": follow_up.message_id}
    if follow_up.recorded:
        logger.warning("%s is left to the ledger's recovery: %s", follow_up.what, why, extra=extra)
    else:
        logger.error("%s is lost, since it could not be sent: %s", follow_up.what, why, extra=extra)
