"""Hands messages back to their queue that this worker has no handler for, and another living worker has.

Workers with other handlers consume the same queue while a new version of an agent replaces an old one. A message
is handed back unchanged, and no attempt or redelivery is counted. While it waits here it is unacknowledged, so the
broker redelivers it if this worker dies.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from celery.utils.dispatch import Signal

from waooaw_celery.broker.redis.qos import QoS
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import HandlerName, agent_queue
from waooaw_celery.worker.hand_back.other_workers import OtherWorkers

logger = get_logger(__name__)

#: The first pause before a message is handed back, in seconds; how much longer each further one is; the longest.
#: On Redis, a message that is handed back at once comes back: this worker is the first to ask for one.
FIRST_PAUSE, PAUSE_FACTOR, LONGEST_PAUSE = 0.02, 1.3, 2.0
#: About how many messages a worker hands back each second, at most. The more wait here, the longer each waits.
MAX_PER_SECOND = 100
#: Seconds after which this worker gives up a message that it has handed back all the time.
GIVE_UP_SECONDS = 3600.0
#: Seconds after which a message is handed back although the store has not answered who has its handler.
UNANSWERED_SECONDS = 10.0
#: Seconds after which a message that has not come back counts as a new one.
FORGET_SECONDS = 600.0
#: How many messages are remembered.
MAX_REMEMBERED = 10_000
#: How many messages may wait here beyond the prefetch count, so that they keep no other message from this worker.
MAX_BEYOND_PREFETCH = 200

#: Sent when a worker receives a message that it may hand back. ``sender`` is the consumer.
message_without_handler = Signal(name="message_without_handler")


@dataclass(slots=True)
class Visits:
    """How often, and since when, one message has come to this worker.

    Attributes:
        first_at: when it came first, in seconds of the monotonic clock.
        last_at: when it came last.
        count: how often it came.
    """

    first_at: float
    last_at: float
    count: int = 0


@dataclass(slots=True, eq=False)
class Waiting:
    """A message that waits here.

    Attributes:
        message: what Kombu delivered.
        target: its agent and its handler.
        visits: how often it came.
        give_up: makes a dead letter of it; it takes the reason.
        qos: the prefetch count of its connection.
        since: when it came this time, in seconds of the monotonic clock.
        due_at: when it may be handed back.
        questions: how often it was asked for its other workers.
        is_beyond_prefetch: whether the prefetch count was raised for it.
    """

    message: Any
    target: HandlerName
    visits: Visits
    give_up: Callable[[str], object]
    qos: Any
    since: float
    due_at: float
    questions: int = field(default=0)
    is_beyond_prefetch: bool = field(default=False)


class HandBack:
    """Decides what happens to each message that a worker has no handler for.

    It is handed back while another living worker declares its handler, for at most ``GIVE_UP_SECONDS``. Otherwise
    it is given up. Call everything in the thread that consumes.

    Args:
        consumer: the worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._others = OtherWorkers(consumer.app, consumer.hostname)
        #: By message id and number of the retry: each retry of a message is a message of its own here.
        self._visits: OrderedDict[tuple[str, Any], Visits] = OrderedDict()
        self._logged: set[HandlerName] = set()
        #: The messages that wait here, and the prefetch count of the connection that delivered them.
        self._waiting: set[Waiting] = set()
        self._qos: Any = None

    def take(self, message: Any, name: str, queue: str, give_up: Callable[[str], object]) -> None:
        """Take a message that has no handler here: hand it back, or give it up, now or soon.

        Args:
            message: what Kombu delivered.
            name: name of its task.
            queue: name of the queue that it came from.
            give_up: makes a dead letter of it; it takes the reason.
        """
        headers = message.headers if isinstance(message.headers, dict) else {}
        id_, target = headers.get("id"), HandlerName.parse(name)
        if target is None or not isinstance(id_, str) or agent_queue(target.agent).name != queue:
            give_up(_reason(name))  # no worker of an agent declares it, or none of them consumes this queue
            return
        message_without_handler.send(sender=self._consumer)
        now, visits = time.monotonic(), self._visit((id_, headers.get("retries")))
        pause = max(_pause(visits.count - 1), len(self._waiting) / MAX_PER_SECOND)
        self._decide(Waiting(message, target, visits, give_up, self._consumer.qos, now, now + pause))

    def _visit(self, key: tuple[str, Any]) -> Visits:
        now = time.monotonic()
        visits = self._visits.pop(key, None)
        if visits is None or now - visits.last_at > FORGET_SECONDS:
            visits = Visits(first_at=now, last_at=now)
        visits.last_at, visits.count = now, visits.count + 1
        self._visits[key] = visits
        if len(self._visits) > MAX_REMEMBERED:
            self._visits.popitem(last=False)
        return visits

    def _decide(self, waiting: Waiting) -> None:
        now, reason = time.monotonic(), _reason(str(waiting.target))
        declared = self._others.have(waiting.target, waiting.since)
        if declared is False:
            waiting.give_up(reason)
        elif now - waiting.visits.first_at > GIVE_UP_SECONDS:
            waiting.give_up(f"{reason}, and no other worker has taken it for {GIVE_UP_SECONDS:.0f} s")
        elif (declared or now - waiting.since > UNANSWERED_SECONDS) and now >= waiting.due_at:
            self._return(waiting)
        else:
            self._wait(waiting, now)

    def _wait(self, waiting: Waiting, now: float) -> None:
        pause = max(_pause(waiting.questions), waiting.due_at - now)
        waiting.questions += 1
        self._hold(waiting)
        go_on: Callable[[], Any] = partial(self._go_on, waiting)
        if self._consumer.hub is None and not self._consumer.pool.is_green:  # the timer has a thread of its own
            go_on = partial(self._consumer.call_soon, go_on)
        self._consumer.timer.call_after(pause, go_on)

    def _go_on(self, waiting: Waiting) -> None:
        if self._consumer.qos is not waiting.qos:
            return  # the connection was lost, and with it the message: the broker redelivers it
        self._release(waiting)
        self._decide(waiting)

    def _return(self, waiting: Waiting) -> None:
        target, message = waiting.target, waiting.message
        if target not in self._logged:
            self._logged.add(target)
            logger.warning(
                "this worker has no handler %s; it hands its messages back for other workers of %s, which have it",
                target,
                target.agent,
                extra={"action": "handed_back"},
            )
        errors = (*self._consumer.connection_errors, *self._consumer.channel_errors)
        try:
            _requeue(message)
        except errors as error:
            logger.warning(
                "a message could not be handed back, and the broker redelivers it: %s",
                error,
                extra={"action": "hand_back_failed"},
            )

    def _hold(self, waiting: Waiting) -> None:
        """Let this worker receive another message in place of one that waits."""
        qos = waiting.qos
        if self._qos is not qos:
            self._qos, self._waiting = qos, set()
        if qos.value and len(self._waiting) < MAX_BEYOND_PREFETCH:
            before = qos.value
            waiting.is_beyond_prefetch = qos.increment_eventually() > before
        self._waiting.add(waiting)

    def _release(self, waiting: Waiting) -> None:
        self._waiting.discard(waiting)
        if waiting.is_beyond_prefetch:
            waiting.is_beyond_prefetch = False
            waiting.qos.decrement_eventually()


def _pause(number: int) -> float:
    """Return a pause, the first of which has the number 0: a random part of it, between a half and the whole."""
    longest = min(FIRST_PAUSE * PAUSE_FACTOR ** min(number, 100), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing here is secret


def _reason(name: str) -> str:
    return f"the worker has no handler {name!r:.300}"


def _requeue(message: Any) -> None:
    qos = getattr(message.channel, "qos", None)
    if isinstance(qos, QoS):
        qos.hand_back(message.delivery_tag)
    else:
        message.requeue()
