"""The registry of agents: which exist, what they handle, and when their workers sent their last heartbeat."""

from __future__ import annotations

import difflib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from waooaw_celery.errors import LedgerMismatch, NoHandler, UnknownAgent, UnknownMethod
from waooaw_celery.messages.enums import TYPE_NAMES
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.store.agents.ledger_mismatch import mismatch
from waooaw_celery.store.agents.record import AgentRecord

logger = get_logger(__name__)

#: Seconds for which it is cached that an agent that a setting names has not started yet.
UNSTARTED_SECONDS = 5.0
#: Names for which one process warns that they look like a known agent's.
MAX_WARNINGS = 1000


class AgentRegistry(ABC):
    """The known agents, shared by all processes.

    Every method raises StoreUnavailable if the store does not answer.

    Args:
        configured: names of agents that are known before a worker of theirs has started (setting
            ``waooaw_agents``).
    """

    def __init__(self, configured: Iterable[str] = ()) -> None:
        self._configured = frozenset(configured)
        self._handlers: dict[str, tuple[str, ...]] = {}
        self._unstarted: dict[str, float] = {}
        self._warned: set[str] = set()
        self._compared: set[str] = set()

    @abstractmethod
    def declare(
        self,
        name: str,
        handlers: Iterable[str],
        worker: str,
        lifetime: float,
        capabilities: Iterable[str] = (),
        started_at: datetime | None = None,
        report: Mapping[str, Any] | None = None,
        profile: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Record that an agent exists and one of its workers lives: at the worker's start and at each heartbeat.

        Args:
            name: name of the agent.
            handlers: names of all handlers that this worker has for it.
            worker: node name of the worker, such as ``analyst@host``.
            lifetime: seconds without another heartbeat after which the worker no longer counts as living.
            capabilities: capability tags of the agent.
            started_at: when the worker started; only a ledger stores it.
            report: what the worker reports about itself, a JSON object.
            profile: the digest of what the worker's code declares about the agent, and the JSON object itself.
        """

    @abstractmethod
    def retire(self, name: str, worker: str) -> None:
        """Record that a worker of an agent has stopped. The agent stays known."""

    @abstractmethod
    def profiles(self, workers: Iterable[tuple[str, str, str]]) -> dict[str, Mapping[str, Any]]:
        """Return what workers declare about agents, by digest. One whose worker is gone is left out.

        Args:
            workers: an agent, the node name of a worker, and the digest that the worker's report names, each.
        """

    @abstractmethod
    def set_order(self, name: str, order: Mapping[str, Any] | None) -> bool:
        """Store what an operator orders about an agent, and return whether the agent is known.

        Args:
            name: name of the agent.
            order: a JSON object; None: nothing any more.
        """

    @abstractmethod
    def forget(self, name: str) -> bool:
        """Forget an agent that has no living worker, and return whether it was known."""

    @abstractmethod
    def announce(self, name: str) -> None:
        """Tell all processes that something about an agent has changed, where the store can."""

    def await_change(self, seconds: float) -> bool:
        """Wait until another process announces a change, and return whether one did.

        Args:
            seconds: longest time to wait.
        """
        time.sleep(seconds)
        return False

    @abstractmethod
    def _names(self) -> set[str]:
        """Return the names of all agents that have been declared."""

    @abstractmethod
    def _read(self, names: list[str]) -> list[AgentRecord]:
        """Return a record for each name; it is empty for an agent that has never been declared."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""

    def all(self) -> list[AgentRecord]:
        """Return all known agents, sorted by name."""
        return self._read(sorted(self._configured | self._names()))

    def read(self, names: list[str]) -> list[AgentRecord]:
        """Return a record for each name; it is empty for an agent that is not known."""
        return self._read(names)

    def everywhere(self) -> list[AgentRecord]:
        """Return all known agents, and those that live on another ledger or on none, sorted by name."""
        return self.all()

    def ledger_id(self) -> str | None:
        """Return the id of the ledger that this process writes to, or None."""
        return None

    def _ledgers_of(self, record: AgentRecord) -> dict[str, str | None]:
        """Return the ledgers of an agent's living workers, also of those that another registry knows."""
        return record.ledgers

    def get(self, name: str) -> AgentRecord:
        """Return the record of an agent.

        Raises:
            LedgerMismatch: the agent is not known, but workers of it live that write to another ledger or to none.
            UnknownAgent: the agent is not known; the error lists the known ones.
        """
        [record] = self._read([name])
        if record.declared_at is None and name not in self._configured:
            ledgers = self._ledgers_of(record)
            if set(ledgers.values()) - {self.ledger_id()}:
                raise LedgerMismatch(mismatch(name, ledgers, self.ledger_id()))
            known = ", ".join(agent.name for agent in self.all()) or "none yet"
            raise UnknownAgent(
                f"agent {name!r} is not known (known: {known}): start its worker once and wait until it is ready, "
                f"or add {name!r} to the setting waooaw_agents"
            )
        return record

    def has(self, name: str) -> bool:
        """Return whether an agent is known. A name that is not known is looked up each time."""
        if name in self._configured or name in self._handlers:
            return True
        [record] = self._read([name])
        if record.handlers is not None:
            self._compare_ledgers(record)
            self._handlers[name] = record.handlers
            return True
        self._warn_of_similar(name)
        return False

    def may_have(self, target: HandlerName) -> bool:
        """Return whether an agent has a handler, or has not started yet, so that its handlers are not known."""
        with suppress(NoHandler, UnknownMethod):
            self.check_handler(target)
            return True
        return False

    def _warn_of_similar(self, name: str) -> None:
        """Log, once for each name, that a task's name looks like that of an agent which is not known."""
        if name in self._warned or len(self._warned) >= MAX_WARNINGS:
            return
        self._warned.add(name)
        similar = difflib.get_close_matches(name, self._configured | self._names(), n=1, cutoff=0.8)
        if similar:
            logger.warning(
                "tasks named %s.* are published as ordinary Celery tasks: no agent %r is known. Did you mean %r?",
                name,
                name,
                similar[0],
                extra={"action": "agent_not_known"},
            )

    def _compare_ledgers(self, record: AgentRecord) -> None:
        """Warn, once for each agent, of workers of it that write to another ledger than this process.

        Raises:
            LedgerMismatch: all of its living workers write to other ledgers.
        """
        if record.name in self._compared:
            return
        ledgers, own = self._ledgers_of(record), self.ledger_id()
        if set(ledgers.values()) - {own}:
            sentence = mismatch(record.name, ledgers, own)
            if own is not None and not {own, None} & set(ledgers.values()):
                raise LedgerMismatch(sentence)
            # Not refused: a ledger is switched on in one process after the other.
            logger.warning("%s", sentence, extra={"action": "ledger_mismatch", "agent": record.name})
        if record.handlers is not None or ledgers:
            self._compared.add(record.name)

    def check_handler(self, target: HandlerName) -> None:
        """Check that an agent is known and has a handler.

        Known handlers are cached, so that a send needs no round trip. A handler that is not in the cache is looked
        up each time.

        Raises:
            UnknownAgent: the agent is not known.
            LedgerMismatch: its workers write to another ledger.
            NoHandler: the agent has no handler for this type of message.
            UnknownMethod: the agent has no such method.
        """
        if target.handler in self._handlers.get(target.agent, ()):
            return
        if time.monotonic() < self._unstarted.get(target.agent, 0.0):
            return
        record = self.get(target.agent)
        self._compare_ledgers(record)
        handlers = record.handlers
        if handlers is None:  # it has not started, so its handlers are not known yet
            self._unstarted[target.agent] = time.monotonic() + UNSTARTED_SECONDS
            return
        self._handlers[target.agent] = handlers
        if target.handler in handlers:
            return
        if target.handler in TYPE_NAMES:
            types = ", ".join(name.upper() for name in handlers if name in TYPE_NAMES) or "none"
            raise NoHandler(
                f"agent {target.agent!r} has no handler for {target.message_type.name} (it handles: {types}): "
                f"add @agent.on(MessageType.{target.message_type.name}) there and restart its worker"
            )
        methods = ", ".join(name for name in handlers if not takes_message(name)) or "none"
        raise UnknownMethod(f"agent {target.agent!r} has no method {target.handler!r} (it has: {methods})")
