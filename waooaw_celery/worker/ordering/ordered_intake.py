"""Holds the messages of a worker until it is their turn, on a broker that cannot order messages by key.

RabbitMQ decides which message is next. A message whose key is busy stays unacknowledged in the worker, which
fetches another one for it. A thread asks the ledger whose turn it is: the event loop may not wait for a database.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.worker import state

from waooaw_celery.broker.redis.leases.worker_requests import is_ending
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.resilience.keyed_message import Decision, KeyedMessage, Place, Turn

if TYPE_CHECKING:
    from waooaw_celery.ledger.resilience.key_order import KeyOrder

logger = get_logger(__name__)

#: The most messages that wait in a worker for their turn. Further ones go back to their queue after a while.
MAX_WAITING, GIVE_BACK_SECONDS = 1000, 1.0
#: Seconds after which a message goes back to its queue, and comes again: RabbitMQ closes the channel of a worker
#: that holds one for longer than its ``consumer_timeout``, 30 minutes.
LONGEST_WAIT = 900.0
#: Seconds between two questions whether messages of other workers have ended, at least. A question may take a
#: twentieth of the time at most.
ASK_SECONDS, ASK_SHARE = 0.05, 20.0
#: Seconds between two renewals of the leases of begun messages, and of the notes that others wait here.
RENEW_BEGUN_SECONDS, RENEW_WAITING_SECONDS = 4.0, 60.0
#: Seconds after which a running message is cancelled again for a later one, if it still runs.
CANCEL_SECONDS = 5.0
#: Seconds before the next attempt while the ledger's database does not answer, and for which the end of a
#: connection waits for the thread.
OUTAGE_SECONDS, CLOSE_SECONDS = 1.0, 5.0


@dataclass(slots=True, eq=False)
class Entry:
    """A message that this worker has, and has not given to Celery.

    Attributes:
        keyed: the message and its key.
        agent: its agent.
        go: gives it to Celery; called in the thread of the event loop.
        give_back: puts it back into its queue; the same.
        record: records a message whose sender has not, before it gets a place; None: its sender has.
        is_counted: whether the prefetch count has room for another message while it waits.
        has_room: whether that was made for it here.
        since: when it arrived, by the monotonic clock.
        place: its place in its key; None: it has none yet.
    """

    keyed: KeyedMessage
    agent: str
    go: Callable[[], object]
    give_back: Callable[[], object]
    record: Callable[[], object] | None = None
    is_counted: bool = False
    has_room: bool = False
    since: float = field(default_factory=time.monotonic)
    place: Place | None = None
    is_gone: bool = False

    @property
    def id(self) -> str:
        """The id of the message."""
        return self.keyed.message_id

    @property
    def key(self) -> tuple[str, str]:
        """Its agent and its key."""
        return self.agent, self.keyed.key


class BegunMessages:
    """The messages with keys that a worker has begun. They outlive its connections, as handlers do.

    Attributes:
        by_agent: the messages by agent and id. Only the thread of the intake changes it.
        given: ids of those that Celery has. Only the thread of the event loop adds to it.
    """

    def __init__(self, agents: Iterable[str]) -> None:
        self.by_agent: dict[str, dict[str, KeyedMessage]] = {agent: {} for agent in agents}
        self.given: set[str] = set()

    def take_ended(self, agent: str) -> dict[str, str]:
        """Take out those whose attempts have ended here, and return their keys by id."""
        begun = self.by_agent[agent]
        gone = {id_ for id_ in begun if id_ in self.given and id_ not in state.requests}
        if not gone:
            return {}
        try:  # Celery forgets the requests of a lost connection while their handlers run
            gone -= {request.id for request in state.active_requests}
        except RuntimeError:  # a thread of the pool changed it meanwhile
            return {}
        self.given -= gone
        return {id_: begun.pop(id_).key for id_ in gone}

    @property
    def taken(self) -> int:
        """How many of them the pool has."""
        return sum(each.needs_room for begun in self.by_agent.values() for each in begun.values())

    def count(self, key: tuple[str, str]) -> int:
        """Return how many messages of a key are begun here."""
        return sum(each.key == key[1] for each in self.by_agent[key[0]].values())


class OrderedIntake:
    """The messages of one connection of a worker that have keys.

    ::

        event loop: take() --> thread: register, decide --> event loop: go(), or room for another message

    Args:
        consumer: the worker's consumer, which has just connected.
        orders: the order of keys of each agent.
        begun: the messages that the worker has begun.
        drop: has a message cancelled before it is given to Celery.
        cancel: cancels a running message.
    """

    def __init__(
        self,
        consumer: Any,
        orders: Mapping[str, KeyOrder],
        begun: BegunMessages,
        drop: Callable[[str], object],
        cancel: Callable[[str], object],
    ) -> None:
        self._consumer, self._orders, self._begun = consumer, orders, begun
        self._drop, self._cancel = drop, cancel
        self._condition = threading.Condition()
        self._arrived: deque[Entry] = deque()
        self._is_woken = self._is_closed = False
        #: The messages that wait for their turn, by agent and key. Only the thread changes it.
        self._waiting: dict[tuple[str, str], list[Entry]] = {}
        #: Those of them for which the prefetch count has no room.
        self._crowded: list[Entry] = []
        #: For how many of the others there is.
        self._rooms = 0
        #: By agent and id, the keys of messages whose attempts have ended here, and which are not free yet.
        self._ended: dict[str, dict[str, str]] = {agent: {} for agent in orders}
        self._calls: deque[Callable[[], object]] = deque()
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._writable, False)
        self._hub = consumer.hub
        self._hub.add_reader(self._readable, self._make_calls)
        self._renew_begun_at = time.monotonic() + RENEW_BEGUN_SECONDS
        self._renew_waiting_at = time.monotonic() + RENEW_WAITING_SECONDS
        self._ask_at = 0.0
        #: When running messages were cancelled for later ones.
        self._cancelled_at: dict[str, float] = {}
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name="waooaw-key-order", daemon=True)
        self._thread.start()

    def take(self, entry: Entry) -> None:
        """Take a message, and give it to Celery when it is its turn; call it in the thread of the event loop."""
        with self._condition:
            self._arrived.append(entry)
            self._condition.notify()

    def wake(self) -> None:
        """Look whether messages have ended; call it from any thread."""
        with self._condition:
            self._is_woken = True
            self._condition.notify()

    def close(self) -> None:
        """End, because the connection is lost: the broker delivers what waits again.

        Call it in the thread of the event loop.
        """
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._calls.clear()
        self._thread.join(CLOSE_SECONDS)
        with suppress(KeyError, ValueError, OSError):
            self._hub.remove(self._readable)
        os.close(self._readable)

    @property
    def waiting(self) -> int:
        """How many messages wait for their turn."""
        return sum(len(entries) for entries in tuple(self._waiting.values()))

    def _run(self) -> None:
        while True:
            with self._condition:
                if not (self._arrived or self._is_woken or self._is_closed):
                    self._condition.wait(self._pause())
                if self._is_closed:
                    break
                arrived, self._arrived = list(self._arrived), deque()
                is_woken, self._is_woken = self._is_woken, False
            try:
                self._look(arrived, is_woken=is_woken)
            except AuditUnavailable as error:
                self._note_outage(error)
            except Exception:
                logger.exception("messages with keys wait", extra={"action": "key_order_failed"})
            else:
                continue
            with self._condition:
                left = [each for each in arrived if each.place is None and not each.is_gone]
                self._arrived.extendleft(reversed(left))
                self._condition.wait_for(lambda: self._is_closed, OUTAGE_SECONDS)
        os.close(self._writable)

    def _pause(self) -> float:
        due = self._renew_begun_at
        if self._waiting or any(self._ended.values()):
            due = min(due, self._ask_at)
        return max(due - time.monotonic(), 0.0)

    def _look(self, arrived: list[Entry], *, is_woken: bool) -> None:
        """Make one round: note what has arrived and what has ended, and decide whose turn it is."""
        begun_at = time.monotonic()
        is_due = begun_at >= self._ask_at
        for agent, order in self._orders.items():
            self._ended[agent] |= self._begun.take_ended(agent)
            keys = {key for key in self._waiting if (is_due or is_woken) and key[0] == agent}
            own = [each for each in arrived if each.agent == agent]
            # What has ended travels with the next question, if one follows soon.
            if own or keys or (is_due and self._ended[agent]):
                self._step(order, agent, own, keys)
        now = time.monotonic()
        self._ask_at = now + max(ASK_SECONDS, (now - begun_at) * ASK_SHARE)
        self._make_room(arrived)
        self._renew(now)
        if self._is_away:
            self._is_away = False
            logger.info("messages with keys go on", extra={"action": "key_order_back"})

    def _step(self, order: KeyOrder, agent: str, arrived: list[Entry], keys: set[tuple[str, str]]) -> None:
        for entry in arrived:
            if entry.record is not None:
                entry.record()
                entry.record = None
        chosen: list[Entry] = []

        def choose(places: Mapping[str, Place]) -> list[KeyedMessage]:
            self._add(arrived, places)
            wanted = keys | {each.key for each in arrived if each.place is not None}
            chosen[:] = sorted((each for key in wanted for each in self._candidates(key)), key=_position)
            return [each.keyed for each in chosen]

        again = True
        while again:
            decisions = order.step([each.keyed for each in arrived], self._ended[agent], self._room(), choose)
            self._ended[agent].clear()
            again = False
            for entry in chosen:
                self._carry_out(entry, decisions[entry.id])
                # Of a key whose messages run together, the next one may go on too.
                again |= decisions[entry.id].turn is Turn.BEGIN and entry.keyed.most > 1
            arrived, keys = [], {each.key for each in chosen if each.key in self._waiting}

    def _add(self, arrived: list[Entry], places: Mapping[str, Place]) -> None:
        """Add what has arrived to what waits; what has ended goes to Celery, which does not begin it."""
        for entry in arrived:
            entry.place = places.get(entry.id)
            if entry.place is None:
                self._send(entry, entry.go)
                continue
            entries = self._waiting.setdefault(entry.key, [])
            entries.append(entry)
            entries.sort(key=_position)

    def _carry_out(self, entry: Entry, decision: Decision) -> None:
        self._cancel_all(decision.cancelled)
        match decision.turn:
            case Turn.WAIT:
                return
            case Turn.REGISTER:
                self._leave(entry, keeps_room=True)
                entry.place = None
                with self._condition:
                    self._arrived.append(entry)
                return
            case Turn.DROP:
                extra = {"action": "key_is_busy"}
                logger.info("message %s is not handled: its key is busy", entry.id, extra=extra)
                self._drop(entry.id)
        if decision.turn is not Turn.ENDED:
            self._begun.by_agent[entry.agent][entry.id] = entry.keyed
        self._leave(entry)
        self._send(entry, partial(self._give, entry))

    def _room(self) -> int:
        """Return how many more messages the pool can begin: one that waits in it would hold its key too."""
        slots = self._consumer.initial_prefetch_count or self._consumer.pool.num_processes or 1
        return int(slots) - self._begun.taken

    def _cancel_all(self, running: Iterable[str]) -> None:
        now = time.monotonic()
        for id_ in running:
            if now - self._cancelled_at.get(id_, -CANCEL_SECONDS) >= CANCEL_SECONDS:
                self._cancelled_at[id_] = now
                self._cancel(id_)

    def _candidates(self, key: tuple[str, str]) -> list[Entry]:
        """Return the messages of a key whose turn it may be."""
        # A second delivery of a message that runs here waits for the end of the first one.
        begun = self._begun.by_agent[key[0]]
        entries = [each for each in self._waiting.get(key, ()) if each.id not in begun]
        if not entries or entries[0].keyed.on_busy != "wait":
            return entries
        if self._begun.count(key) >= entries[0].keyed.most:
            return []
        first: dict[int, Entry] = {}
        for entry in entries:
            first.setdefault(entry.keyed.rank, entry)
        # What has begun before goes on first, whatever its rank and its place.
        return [each for each in entries if (each.place and each.place.is_begun) or first[each.keyed.rank] is each]

    def _make_room(self, arrived: list[Entry]) -> None:
        """Have the broker deliver another message for each one that waits, as Celery does for delayed ones."""
        now, crowded = time.monotonic(), []
        for entry in [*self._crowded, *arrived]:
            if entry.is_gone or entry.is_counted or entry.place is None:
                continue
            if self._rooms < MAX_WAITING:
                entry.is_counted = entry.has_room = True
                self._rooms += 1
                self._consumer.qos.increment_eventually()
                self._wake_loop()
            elif now - entry.since < GIVE_BACK_SECONDS:
                crowded.append(entry)
            else:
                self._give_back(entry)
        self._crowded = crowded

    def _renew(self, now: float) -> None:
        if now < self._renew_begun_at:
            return
        is_waiting_due = now >= self._renew_waiting_at
        for agent, order in self._orders.items():
            entries = [each for key, some in self._waiting.items() if key[0] == agent for each in some]
            waiting = [each.id for each in entries] if is_waiting_due else []
            if self._begun.by_agent[agent] or waiting:
                order.renew(self._begun.by_agent[agent], waiting)
            for entry in entries:
                if now - entry.since > LONGEST_WAIT:
                    self._give_back(entry)
        recent = {id_: at for id_, at in self._cancelled_at.items() if now - at < CANCEL_SECONDS}
        self._cancelled_at = recent
        self._renew_begun_at = now + RENEW_BEGUN_SECONDS
        if is_waiting_due:
            self._renew_waiting_at = now + RENEW_WAITING_SECONDS

    def _give_back(self, entry: Entry) -> None:
        self._leave(entry)
        self._send(entry, entry.give_back)

    def _leave(self, entry: Entry, *, keeps_room: bool = False) -> None:
        self._waiting[entry.key].remove(entry)
        if not self._waiting[entry.key]:
            del self._waiting[entry.key]
        if keeps_room:
            return
        self._rooms -= entry.has_room
        if entry.is_counted:
            self._consumer.qos.decrement_eventually()

    def _give(self, entry: Entry) -> None:
        """Give a message to Celery; in the thread of the event loop."""
        try:
            entry.go()
        finally:
            self._begun.given.add(entry.id)

    def _send(self, entry: Entry, call: Callable[[], object]) -> None:
        """Have the event loop do something with a message that is no longer held here."""
        entry.is_gone = True
        self._calls.append(call)
        self._wake_loop()

    def _wake_loop(self) -> None:
        with suppress(OSError):  # it is full, which wakes the loop too; or the connection has ended
            os.write(self._writable, b"\0")

    def _make_calls(self) -> None:
        """Call what the thread wants; in the thread of the event loop."""
        with suppress(BlockingIOError):
            os.read(self._readable, 4096)
        while self._calls and not is_ending():
            call = self._calls.popleft()
            try:
                call()
            except Exception:
                logger.exception("a message with a key could not go on", extra={"action": "key_order_failed"})

    def _note_outage(self, error: AuditUnavailable) -> None:
        if not self._is_away:
            self._is_away = True
            extra = {"action": "key_order_waits"}
            logger.warning("messages with keys wait until the ledger answers: %s", error, extra=extra)


def _position(entry: Entry) -> Any:
    assert entry.place is not None  # noqa: S101 - only those with a place wait
    return entry.keyed.rank, entry.place.at, entry.id
