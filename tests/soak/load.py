"""The load of a soak: messages, requests, streams, events and messages to once handlers, at fixed rates."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

from faults.account import Outcome

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, MessageType, RequestResponseHandler
from waooaw_celery.errors import BrokerUnavailable, RequestTimeout, StreamBroken, WaooawError

#: Timeout of requests and streams, in seconds: long enough for a killed worker's messages to be redelivered.
TIMEOUT = 30.0
#: Messages of each kind per second, from all its threads together.
RATES = {"command": 12.0, "once": 5.0, "request": 5.0, "stream": 2.0, "event": 3.0}
#: Threads for each kind; a request blocks its thread until the answer.
THREADS = {"command": 1, "once": 1, "request": 4, "stream": 3, "event": 1}
#: One of so many messages to a once handler is cancelled while it may be running.
CANCELLED = 15


class Load:
    """Sends the load from this process until it is closed.

    Args:
        app: the driver's application.
        agents: names of the recipients.
        seed: seed of the random numbers.

    Attributes:
        outcomes: the outcome of each message that was sent, by id.
        once: ids of the messages to once handlers.
        result_counts: how many requests, streams and events had which result.
        broken: undocumented errors.
        timed_out: requests and streams that were not answered in time.
    """

    def __init__(self, app: AgentApp, agents: list[str], seed: int) -> None:
        self._agents, self._seed = agents, seed
        self._bus, self._requests, self._events = MessageBus(app), RequestResponseHandler(app), EventBus(app)
        self.outcomes: dict[str, Outcome] = {}
        self.once: set[str] = set()
        self.result_counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.timed_out: list[str] = []
        self._over = threading.Event()
        senders: dict[str, Callable[[random.Random], None]] = {
            "command": self._command,
            "once": self._once,
            "request": self._request,
            "stream": self._stream,
            "event": self._event,
        }
        self._threads = [
            threading.Thread(
                target=self._send_repeatedly, args=(kind, number, senders[kind]), name=f"{kind}-{number}"
            )
            for kind, count in THREADS.items()
            for number in range(count)
        ]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> list[str]:
        """Stop all threads, and return the names of those that hang."""
        self._over.set()
        deadline = time.monotonic() + 2 * TIMEOUT
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.1))
        return [thread.name for thread in self._threads if thread.is_alive()]

    def _send_repeatedly(self, kind: str, number: int, send: Callable[[random.Random], None]) -> None:
        rng = random.Random(f"{self._seed} {kind} {number}")  # noqa: S311 - no secret
        pause = THREADS[kind] / RATES[kind]
        while not self._over.wait(rng.uniform(0.5, 1.5) * pause):
            try:
                send(rng)
            except WaooawError as error:  # the driver's own connection is never cut
                self.result_counts[f"{kind}: {type(error).__name__}"] += 1
            except Exception as error:  # noqa: BLE001 - an undocumented error is a violation
                self.broken.append(f"{kind}: {type(error).__name__}: {error}")

    def _command(self, rng: random.Random) -> None:
        self._send(MessageType.COMMAND, rng)

    def _once(self, rng: random.Random) -> None:
        id_ = self._send(MessageType.QUERY, rng)
        if rng.randrange(CANCELLED) == 0:
            self._over.wait(rng.uniform(0, 0.2))
            self._bus.cancel(id_, running=True)
            self.result_counts["once: cancel requested"] += 1

    def _send(self, type_: MessageType, rng: random.Random) -> str:
        message = Message(
            from_agent="driver",
            to_agent=rng.choice(self._agents),
            message_type=type_,
            payload={"seconds": rng.choice((0.0, 0.01, 0.05, 0.2))},
            message_id=str(uuid4()),
            ttl_seconds=None,
        )
        began, what, reason = time.monotonic(), "accepted", ""
        if type_ is MessageType.QUERY:
            self.once.add(message.message_id)
        try:
            self._bus.send(message)
        except WaooawError as error:
            uncertain = isinstance(error, BrokerUnavailable) and error.uncertain
            what, reason = "unknown" if uncertain else "refused", type(error).__name__
        self.outcomes[message.message_id] = Outcome(what, reason, time.monotonic() - began)
        return message.message_id

    def _request(self, rng: random.Random) -> None:
        value = rng.randrange(1000)
        try:
            answer = self._requests.request(rng.choice(self._agents), "echo", {"value": value}, timeout=TIMEOUT)
        except RequestTimeout as error:
            self.timed_out.append(f"request: {error}")
            return
        if answer != value:
            self.broken.append(f"request: {value} was answered with {answer!r}")
        self.result_counts["request: answered"] += 1

    def _stream(self, rng: random.Random) -> None:
        to = rng.randrange(1, 30)
        taken = []
        try:
            with self._requests.stream(rng.choice(self._agents), "count", {"to": to}, timeout=TIMEOUT) as parts:
                taken = list(parts)
        except StreamBroken:  # its worker was killed: this is documented
            self.result_counts["stream: broken"] += 1
            return
        except RequestTimeout as error:
            self.timed_out.append(f"stream: {error}")
            return
        if taken != list(range(to)):
            self.broken.append(f"stream: {taken} in place of {to} numbers")
        self.result_counts["stream: whole"] += 1

    def _event(self, rng: random.Random) -> None:
        self._events.publish("soak.tick", {"number": rng.randrange(1000)})
        self.result_counts["event: published"] += 1
