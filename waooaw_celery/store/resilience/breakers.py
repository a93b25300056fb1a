"""The circuit breakers of agents, shared by all processes: whether requests to an agent are let through.

The pattern is Michael Nygard's (*Release It!*, 2007). A breaker is closed while requests are answered. When too
many fail, it opens, and all processes refuse requests to the agent at once. After a pause, one process may send
one request, the probe, whose outcome closes the breaker or opens it again.
"""

from __future__ import annotations

from collections.abc import Mapping

from waooaw_celery.errors import CircuitOpen, ConfigurationError
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.store.resilience.breaker_exchange import BreakerExchange
from waooaw_celery.store.resilience.breaker_rules import BreakerState
from waooaw_celery.store.resilience.breaker_store import Breaker, BreakerStore, described

#: Seconds that a probe's place is kept after the timeout of its request, and the bounds of the whole.
_GRACE_SECONDS, _LEAST_LEASE, _LONGEST_LEASE = 1.0, 2.0, 60.0
#: Why an agent gets no request to a capability.
_REASON = "its circuit breaker is open"


class Breakers:
    """The circuit breakers of all agents.

    Args:
        store: where they are stored, and their limits. With ``failures`` 0, nothing is counted or refused.

    Example:
        >>> app.breakers.open_by_hand("writer", by="ada", reason="its model is down", seconds=600)
        >>> app.breakers.close_by_hand("writer")
        True
    """

    def __init__(self, store: BreakerStore) -> None:
        self._store, self.limits = store, store.limits
        self._exchange = BreakerExchange(store)

    # --- requests

    def refusing(self) -> Mapping[str, str]:
        """Return the agents whose breakers let no request through now, each with the reason.

        It costs no round trip. An agent whose breaker waits for a probe is not among them.
        """
        if not self.limits.failures or not (known := self._exchange.records()):
            return {}
        now = self._exchange.now()
        return {
            agent: _REASON
            for agent, record in known.items()
            if record.state(now) is BreakerState.OPEN or (record.opened_at is not None and record.has_probe(now))
        }

    def admit(self, agent: str, request: str, timeout: float) -> bool:
        """Let a request through, or refuse it.

        It costs no round trip, except to take the place of the probe.

        Args:
            agent: the requested agent.
            request: id of the request.
            timeout: seconds for which its caller waits. The probe's place is kept a second longer, and for at most
                a minute.

        Returns:
            Whether the request is the probe: then ``end_probe`` must follow.

        Raises:
            CircuitOpen: the breaker is open, or another request is the probe.
        """
        if not self.limits.failures or (record := self._exchange.records().get(agent)) is None:
            return False
        now = self._exchange.now()
        state = record.state(now)
        if state is BreakerState.CLOSED:
            return False
        if state is BreakerState.HALF_OPEN and not record.has_probe(now):
            lease = min(max(timeout + _GRACE_SECONDS, _LEAST_LEASE), _LONGEST_LEASE)
            stored = self._exchange.take_probe(agent, request, lease, record)
            if stored.done:
                return True
            if stored.record is None or stored.record.opened_at is None:  # it was closed meanwhile
                return False
            record, now = stored.record, stored.now
        raise CircuitOpen(agent, record.retry_after(now), record.by, record.reason)

    def succeeded(self, agent: str) -> None:
        """Count an answered request. The store is told with the next failure, or in a second if it knows of one.

        Args:
            agent: the requested agent.
        """
        if self.limits.failures:
            self._exchange.count(agent, failed=False)

    def failed(self, agent: str) -> None:
        """Count a failed request, and tell the store at once. In a coroutine, a thread does it.

        Args:
            agent: the requested agent.
        """
        if self.limits.failures:
            self._exchange.count(agent, failed=True)

    def end_probe(self, agent: str, request: str, works: bool | None) -> None:
        """Close the breaker by the outcome of its probe, or open it again. In a coroutine, a thread does it.

        Args:
            agent: the requested agent.
            request: id of the probe.
            works: whether the agent works; None: it is not known, and the place of the probe is free again.
        """
        self._exchange.end_probe(agent, request, works)

    def note_reply(self, agent: str, request: str, works: bool | None) -> None:
        """Note that a request was answered by a message, which matters if it was the probe.

        Args:
            agent: the agent that replied.
            request: id of the request.
            works: whether the agent works; None: the answer does not show it.
        """
        record = self._exchange.records().get(agent) if self.limits.failures else None
        if record is not None and record.probe == request:
            self.end_probe(agent, request, works)

    # --- operators

    def states(self) -> list[Breaker]:
        """Return the breakers that are open or count failures, by the names of the agents.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        now, records = self._store.read()
        return [described(agent, record, now) for agent, record in sorted(records.items())]

    def open_by_hand(
        self, agent: str, *, by: str, reason: str | None = None, seconds: float | None = None
    ) -> None:
        """Refuse every request to an agent, in all processes within about a second. No probe is sent.

        Args:
            agent: the requested agent.
            by: who opens it, for the error that callers get.
            reason: why, for the same error.
            seconds: after how long it closes by itself; None: only ``close_by_hand`` closes it.

        Raises:
            InvalidMessage: the name is invalid.
            ConfigurationError: the seconds are no positive number, or there are no circuit breakers.
            StoreUnavailable: the store does not answer.
        """
        check_agent_name(agent)
        if not self.limits.failures:
            raise ConfigurationError("there are no circuit breakers: waooaw_breaker_failures is 0")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3.2e9
        ):
            raise ConfigurationError(f"seconds must be a positive number, not {seconds!r:.80}")
        self._exchange.change("open", agent, by=by, reason=reason, seconds=seconds)

    def close_by_hand(self, agent: str) -> bool:
        """Close the breaker of an agent, in all processes within about a second, and forget what it has counted.

        Returns:
            Whether it was open.

        Raises:
            InvalidMessage: the name is invalid.
            StoreUnavailable: the store does not answer.
        """
        return self._exchange.change("close", check_agent_name(agent)).done

    def close(self) -> None:
        """Close the connections of this process."""
        self._store.close()
