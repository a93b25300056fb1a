"""May this agent send now? The question that the door asks, and what administrators ask and set."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from waooaw_celery.broker.application import refuse_app
from waooaw_celery.errors import InvalidMessage, RateLimitExceeded, StoreUnavailable
from waooaw_celery.limits.grammar import read_quota
from waooaw_celery.limits.rules import EACH, MAX_LIMIT, Demand, Quota, demands, scope_to, seconds_of
from waooaw_celery.limits.storage import LimitStorage, RuleStatus
from waooaw_celery.limits.waiting import Wait, limit_wait
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.validation import check_agent_name

logger = logging.getLogger(__name__)

#: Seconds between two warnings that limits are not checked.
_WARN_SECONDS = 60.0


class RateLimiter:
    """Counts what agents send, and says when it is too much. ``app.limiter`` is the one that the door asks.

    An agent's quota is the one that was set for it at run time, or else its own of ``quotas``, or the default.

    Args:
        storage: keeps the counts and the quotas set at run time: for one process or for all.
        default: the quota of every agent, such as ``10/second; 100/hour burst 20``, or ``unlimited``.
        quotas: the quotas of single agents.
        urgent_reserve: share of each limit that only URGENT messages may use, 0 to 0.9.
        fail_open: let messages pass when the storage does not answer, instead of refusing them.

    Raises:
        ConfigurationError: a quota cannot be read.

    Example:
        >>> limiter = RateLimiter(MemoryStorage(), "2/hour")
        >>> limiter.acquire("worker-1", 2)
        >>> limiter.status("worker-1")[0].remaining
        0
    """

    def __init__(
        self,
        storage: LimitStorage,
        default: Any = "unlimited",
        quotas: Mapping[str, Any] | None = None,
        *,
        urgent_reserve: float = 0.0,
        fail_open: bool = False,
    ) -> None:
        self.storage = refuse_app(storage, "RateLimiter", "limiter")
        self._default = read_quota(default)
        self._quotas = {agent: read_quota(quota) for agent, quota in (quotas or {}).items()}
        self._reserve = round(urgent_reserve * 1000)
        self._fail_open = fail_open
        self._warn_at = 0.0

    def check_limit(
        self,
        agent: str,
        n: int = 1,
        *,
        to: str | None = None,
        message_type: MessageType | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        """Check that an agent may send now. That counts nothing: what is sent is counted when it is sent.

        Args:
            agent: who wants to send.
            n: how many messages, at once.
            to: to whom, for the rules of a recipient.
            message_type: of which type, for the rules of a type.
            priority: an URGENT message may use what is kept for such.

        Raises:
            RateLimitExceeded: not now; its ``retry_after`` says when.
            StoreUnavailable: Redis does not answer, and ``fail_open`` is not set.
            InvalidMessage: this can be no agent, or no number of messages.
        """
        self._decide(agent, _demands(agent, n, to, message_type, priority), charge=False)

    def acquire(
        self,
        agent: str,
        n: int = 1,
        *,
        to: str | None = None,
        message_type: MessageType | None = None,
        priority: Priority = Priority.NORMAL,
        wait: Wait = None,
    ) -> None:
        """Count messages of an agent, all or none. For what does not pass the door: the door does it by itself.

        Args:
            agent, n, to, message_type, priority: as for ``check_limit``.
            wait: seconds for which to wait for its turn instead of raising. When it would not come within them, it
                is raised at once.

        Raises:
            RateLimitExceeded, StoreUnavailable, InvalidMessage: as ``check_limit``; nothing was counted.
        """
        self.charge(agent, _demands(agent, n, to, message_type, priority), wait)

    def charge(self, agent: str, demands: Sequence[Demand], wait: Wait = None) -> None:
        """Count what is demanded in each scope, all or none; see ``acquire``."""
        turn = limit_wait(wait)
        while True:
            try:
                return self._decide(agent, demands, charge=True)
            except RateLimitExceeded as error:
                turn.rest(turn.pause(error))

    def check(self, agent: str, demands: Sequence[Demand]) -> None:
        """Check what is demanded in each scope, and count nothing; see ``check_limit``."""
        self._decide(agent, demands, charge=False)

    def status(self, agent: str, *, to: str | None = None) -> list[RuleStatus]:
        """Return how things stand with each rule of an agent. That counts nothing.

        Args:
            agent: whose.
            to: a recipient, for the rules that count each by itself.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        scopes = [scope for scope in self.quota(agent).scopes if scope != scope_to(EACH)]
        if to is not None and scope_to(to) not in scopes:
            scopes.append(scope_to(to))
        return self._status(agent, scopes)

    def near(self, share: float = 0.8) -> list[RuleStatus]:
        """Return the rules of which agents have used at least this share, the most used first.

        It looks at all keys of the Redis, a thousand at a time.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        scopes: dict[str, set[str]] = {}
        for agent, scope in self.storage.counted():
            scopes.setdefault(agent, set()).add(scope)
        statuses = [one for agent in scopes for one in self._status(agent, sorted(scopes[agent]))]
        found = [one for one in statuses if one.limit - one.remaining >= share * one.limit or one.retry_after]
        return sorted(found, key=lambda one: (one.remaining / one.limit, one.agent, one.rule))

    def reset(self, agent: str) -> None:
        """Forget what was counted of an agent, so that it may send at once. Its quota stays.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self.storage.reset(check_agent_name(agent))

    def quota(self, agent: str) -> Quota:
        """Return what an agent may send.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        return self.storage.quota(check_agent_name(agent)) or self._configured(agent)

    def set_quota(self, agent: str, quota: Any) -> Quota:
        """Set what an agent may send: the next decision of any process goes by it. What it has sent counts on.

        Args:
            agent: whose.
            quota: such as ``10/second; 100/hour burst 20``, or ``unlimited``; None: as it is configured.

        Returns:
            The quota that holds now.

        Raises:
            ConfigurationError: it cannot be read.
            StoreUnavailable: Redis does not answer.
        """
        read = None if quota is None else read_quota(quota)
        self.storage.set_quota(check_agent_name(agent), read)
        return self._configured(agent) if read is None else read

    def quotas(self) -> dict[str, tuple[Quota, str]]:
        """Return all quotas and whence each is: ``set`` at run time, ``configured``, or the ``default`` of ``*``.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        found = {"*": (self._default, "default")}
        found |= {agent: (quota, "configured") for agent, quota in self._quotas.items()}
        found |= {agent: (quota, "set") for agent, quota in self.storage.quotas().items()}
        return dict(sorted(found.items()))

    def close(self) -> None:
        """Close the connections of this process."""
        self.storage.close()

    def _configured(self, agent: str) -> Quota:
        return self._quotas.get(agent, self._default)

    def _status(self, agent: str, scopes: Sequence[str]) -> list[RuleStatus]:
        return self.storage.status(agent, scopes, self._configured(agent), self._reserve)

    def _decide(self, agent: str, demands: Sequence[Demand], *, charge: bool) -> None:
        try:
            refusal = self.storage.decide(agent, demands, self._configured(agent), self._reserve, charge=charge)
        except StoreUnavailable as error:
            if not self._fail_open:
                raise
            if time.monotonic() >= self._warn_at:
                self._warn_at = time.monotonic() + _WARN_SECONDS
                logger.warning("sent without a limit: %s", error, extra={"action": "limit_not_checked"})
            return
        if refusal is not None:
            raise RateLimitExceeded(agent, str(refusal.rule), seconds_of(refusal.wait), demands[0].n)


def _demands(
    agent: str, n: int, to: str | None, message_type: MessageType | None, priority: Priority
) -> list[Demand]:
    check_agent_name(agent)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_LIMIT:
        raise InvalidMessage(f"n must be a whole number from 1 to {MAX_LIMIT}, not {n!r:.40}")
    if to is not None:
        check_agent_name(to, "to")
    return demands([(to, message_type, Priority.of(priority), n)])
