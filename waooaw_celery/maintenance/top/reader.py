"""Asks the store, the broker and the circuit breakers for `waooaw top`, each in its own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from redis import Redis

from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.broker.redis.scripts import Script
from waooaw_celery.maintenance.top.frame import Frame, SourceState, agent_lines
from waooaw_celery.messages.queues import QueueDepth, agent_queue, queue_depths
from waooaw_celery.store.agents.record import AgentRecord
from waooaw_celery.store.redis_refusals import explained
from waooaw_celery.store.resilience.breaker_store import Breaker

T = TypeVar("T")

#: Returns when the message that each list gives next was sent, or an empty text. The headers of a message are not
#: escaped, so nothing in its body looks like them.
_OLDEST = Script(
    """
    local found = {}
    for number, key in ipairs(KEYS) do
        local item = redis.call('LINDEX', key, -1)
        local sent_at = item and string.match(item, '"sent_at": ?"([%d%-:T.+Z]+)"')
        found[number] = sent_at or ''
    end
    return found
    """
)


class Source(Generic[T]):
    """What one server is asked for, again and again. A question that takes long does not hold up the others.

    Args:
        name: its name in the frame.
        read: asks the server. Only one thread at a time calls it.

    Attributes:
        value: the newest answer, or None.
    """

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self._name, self._read = name, read
        self.value: T | None = None
        self._error: str | None = None
        self._at: float | None = None
        self._asked_at = 0.0
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Ask, unless the last question is still open."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._asked_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"top-{self._name}", daemon=True)
        self._thread.start()

    def wait(self, ends_at: float) -> None:
        """Wait for the answer.

        Args:
            ends_at: until when, in seconds of the monotonic clock.
        """
        if self._thread is not None:
            self._thread.join(max(ends_at - time.monotonic(), 0.0))

    def state(self) -> SourceState:
        """Return how current the newest answer is."""
        now = time.monotonic()
        error = self._error
        if error is None and self._thread is not None and self._thread.is_alive():
            error = f"no answer for {now - self._asked_at:.1f} s"
        return SourceState(name=self._name, error=error, seconds=None if self._at is None else now - self._at)

    def _run(self) -> None:
        try:
            value = self._read()
        except Exception as error:  # noqa: BLE001 - it is shown, and the other sources go on
            self._error = explained(error).rstrip(".") or type(error).__name__
            return
        self.value, self._at, self._error = value, time.monotonic(), None


class TopReader:
    """Reads what `waooaw top` shows.

    One frame of n agents costs the store of agents on Redis 2n + 3 commands in three round trips, or the ledger a
    few queries. It costs a Redis broker 5n commands in one round trip and one script, or RabbitMQ one declaration
    for each agent. The circuit breakers cost two commands, or one query.

    Args:
        app: the application.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app
        self._registry: Any = None
        self._connection: Any = None
        self._names: tuple[str, ...] = tuple(sorted(app.settings.agents))
        self._agents = Source[Mapping[str, AgentRecord]]("agents", self._read_agents)
        self._queues = Source[tuple[Mapping[str, QueueDepth], Mapping[str, datetime]]]("queues", self._read_queues)
        self._breakers = Source[Mapping[str, Breaker]]("breakers", self._read_breakers)

    def frame(self, seconds: float) -> Frame:
        """Ask all sources, and return what is known.

        Args:
            seconds: longest time to wait for them. What has not answered by then keeps its older values.
        """
        ends_at = time.monotonic() + seconds
        self._agents.ask()
        self._breakers.ask()
        if self._agents.value is None:  # the queues of which agents?
            self._agents.wait(ends_at)
        self._note_names()
        self._queues.ask()
        for source in (self._agents, self._queues, self._breakers):
            source.wait(ends_at)
        self._note_names()
        records, queues = self._agents.value, self._queues.value
        depths, sent_at = (None, {}) if queues is None else queues
        now = next((each.read_at for each in (records or {}).values() if each.read_at), datetime.now(UTC))
        oldest = {name: max((now - at).total_seconds(), 0.0) for name, at in sent_at.items()}
        return Frame(
            at=datetime.now(UTC),
            agents=agent_lines(self._names, records, depths, oldest, self._breakers.value),
            sources=tuple(each.state() for each in (self._agents, self._queues, self._breakers)),
        )

    def close(self) -> None:
        """Close the connections. Questions that are still open are left behind."""
        for source in (self._agents, self._queues, self._breakers):
            source.wait(time.monotonic())
        if self._registry is not None:
            self._registry.close()
        if self._connection is not None:
            self._connection.release()

    def _note_names(self) -> None:
        if self._agents.value is not None:
            self._names = tuple(sorted(self._agents.value))

    def _read_agents(self) -> Mapping[str, AgentRecord]:
        if self._registry is None:
            self._registry = self._app.open_registry()
        return {record.name: record for record in self._registry.everywhere()}

    def _read_breakers(self) -> Mapping[str, Breaker]:
        return {each.agent: each for each in self._app.breakers.states()}

    def _read_queues(self) -> tuple[Mapping[str, QueueDepth], Mapping[str, datetime]]:
        names = self._names
        try:
            if self._connection is None:
                self._connection = self._app.connection_for_write()
            found = queue_depths(self._connection, [agent_queue(name) for name in names])
            depths = dict(zip(names, found, strict=True))
            return depths, self._oldest([name for name in names if depths[name].total])
        except Exception:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.collect()  # it may be half open
            raise

    def _oldest(self, names: list[str]) -> dict[str, datetime]:
        """Return when the oldest waiting message of each agent was sent, where the broker is a Redis."""
        if not names or self._app.driver != "redis":
            return {}
        with self._connection.channel() as channel:
            keys = Keys(channel)
            lists = [(name, key) for name in names for key in keys.lists((agent_queue(name).name,))]
            texts = _OLDEST(Redis(connection_pool=channel.pool), [key for _, key in lists], ())
        oldest: dict[str, datetime] = {}
        for (name, _), text in zip(lists, texts, strict=True):
            at = _time(text)
            if at is not None and at < oldest.get(name, at.max.replace(tzinfo=UTC)):
                oldest[name] = at
        return oldest


def _time(text: bytes | str) -> datetime | None:
    """Return the time that a sender has written, which may be anything."""
    try:
        at = datetime.fromisoformat(text.decode() if isinstance(text, bytes) else text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
