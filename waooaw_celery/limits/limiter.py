"""The rate limiter: whether an agent may send now, and what administrators read and set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from waooaw_celery.broker.application import refuse_app
from waooaw_celery.errors import InvalidMessage, RateLimitExceeded, StoreUnavailable
from waooaw_celery.limits.grammar import parse_quota
from waooaw_celery.limits.rules import (
    EACH_RECIPIENT,
    MAX_LIMIT,
    Demand,
    Quota,
    demands_by_scope,
    recipient_scope,
    to_seconds,
)
from waooaw_celery.limits.storage import LimitStorage, Refusal, RuleStatus
from waooaw_celery.limits.waiting import Wait, limit_wait
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.store.restrictions import Restrictions

logger = get_logger(__name__)

#: Seconds between two warnings that limits are not checked.
_WARNING_INTERVAL = 60.0


class RateLimiter:
    """Counts what agents send and refuses what exceeds their quotas.

    The publisher uses the limiter at ``app.limiter``. The quota of an agent is the one set at run time, or else
    its entry in ``quotas``, or else the default.

    Args:
        storage: Stores the counts and the quotas set at run time, for one process or for all.
        default: The quota of every agent, such as ``10/second; 100/hour burst 20``, or ``unlimited``.
        quotas: Quotas by agent.
        urgent_reserve: Share of each limit that only URGENT messages may use, 0 to 0.9.
        fail_open: Let messages pass when the storage does not answer, instead of refusing them.
        restrictions: Where to note which agents have a quota set at run time, for processes without a rate limit.

    Raises:
        ConfigurationError: A quota is invalid.

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
        restrictions: Restrictions | None = None,
    ) -> None:
        self._restrictions = restrictions
        self.storage = refuse_app(storage, "RateLimiter", "limiter")
        self._default = parse_quota(default)
        self._quotas = {agent: parse_quota(quota) for agent, quota in (quotas or {}).items()}
        self._reserve = round(urgent_reserve * 1000)
        self._fail_open = fail_open
        self._next_warning_at = 0.0

    def check_limit(
        self,
        agent: str,
        n: int = 1,
        *,
        to: str | None = None,
        message_type: MessageType | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        """Check that an agent may send now, without counting anything.

        You need not call it before you send: the publisher counts each message that it sends.

        Args:
            agent: The sender.
            n: Number of messages to be sent at once.
            to: The recipient, for rules that count recipients.
            message_type: The message type, for rules that count types.
            priority: URGENT messages may use the reserve.

        Raises:
            RateLimitExceeded: The agent must wait ``retry_after`` seconds.
            StoreUnavailable: Redis does not answer, and ``fail_open`` is not set.
            InvalidMessage: An argument is invalid.
        """
        self._decide(agent, _validated_demands(agent, n, to, message_type, priority), charge=False)

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
        """Count messages of an agent: all of them, or none.

        Call it for work that does not go through the publisher, which counts its messages itself.

        Args:
            agent, n, to, message_type, priority: As in ``check_limit``.
            wait: Seconds to wait for the rate limit. When they would not be enough, the call raises at once.

        Raises:
            RateLimitExceeded, StoreUnavailable, InvalidMessage: As in ``check_limit``. Nothing was counted.
        """
        self.acquire_demands(agent, _validated_demands(agent, n, to, message_type, priority), wait)

    def acquire_demands(self, agent: str, demands: Sequence[Demand], wait: Wait = None) -> None:
        """Count the messages of each scope: all of them, or none. See ``acquire``."""
        waiter = limit_wait(wait)
        while True:
            try:
                return self._decide(agent, demands, charge=True)
            except RateLimitExceeded as error:
                waiter.sleep(waiter.seconds_until_retry(error))

    def check_demands(self, agent: str, demands: Sequence[Demand]) -> None:
        """Check the messages of each scope without counting them. See ``check_limit``."""
        self._decide(agent, demands, charge=False)

    def charge_arguments(self, agent: str, demands: Sequence[Demand]) -> tuple[list[str], list[Any]]:
        """Return the KEYS and ARGV with which ``lua/decide.lua`` counts messages, inside of another script.

        Args:
            agent: The sender.
            demands: Its messages.
        """
        storage: Any = self.storage
        keys, args = storage.script_arguments("charge", agent, demands, self._configured(agent), self._reserve)
        return keys, args

    def check_reply(self, agent: str, demands: Sequence[Demand], reply: Sequence[Any]) -> None:
        """Check the reply of ``lua/decide.lua`` to ``charge_arguments``.

        Raises:
            RateLimitExceeded: The agent must wait ``retry_after`` seconds.
        """
        storage: Any = self.storage
        self._raise(agent, demands, storage.refusal(demands, reply))

    def status(self, agent: str, *, to: str | None = None) -> list[RuleStatus]:
        """Return the status of each rule of an agent, without counting anything.

        Args:
            agent: The agent.
            to: A recipient whose own count is to be included.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        each = recipient_scope(EACH_RECIPIENT)
        scopes = [scope for scope in self.quota(agent).rules_by_scope if scope != each]
        if to is not None and recipient_scope(to) not in scopes:
            scopes.append(recipient_scope(to))
        return self._status(agent, scopes)

    def near(self, share: float = 0.8) -> list[RuleStatus]:
        """Return the rules of which at least this share is used, the most used first.

        On Redis it scans all keys, a thousand at a time.

        Args:
            share: 0 to 1.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        scopes: dict[str, set[str]] = {}
        for agent, scope in self.storage.counted_scopes():
            scopes.setdefault(agent, set()).add(scope)
        statuses = [status for agent in scopes for status in self._status(agent, sorted(scopes[agent]))]
        near = [each for each in statuses if each.limit - each.remaining >= share * each.limit or each.retry_after]
        return sorted(near, key=lambda each: (each.remaining / each.limit, each.agent, each.rule))

    def reset(self, agent: str) -> None:
        """Delete the counts of an agent, so that it may send at once. Its quota stays.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self.storage.reset(check_agent_name(agent))

    def quota(self, agent: str) -> Quota:
        """Return the quota that applies to an agent.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        return self.storage.quota(check_agent_name(agent)) or self._configured(agent)

    def set_quota(self, agent: str, quota: Any) -> Quota:
        """Set the quota of an agent, and keep its counts.

        It applies to the next send of every process that has a rate limit, and within about a second in the
        others.

        Args:
            agent: The agent.
            quota: Such as ``10/second; 100/hour burst 20``, or ``unlimited``; None: return to the configured one.

        Returns:
            The quota that applies now.

        Raises:
            ConfigurationError: The quota is invalid.
            StoreUnavailable: Redis does not answer.
        """
        parsed = None if quota is None else parse_quota(quota)
        check_agent_name(agent)
        # Noted before it is set, and until it is removed: a process without a rate limit counts only noted agents.
        if self._restrictions is not None and parsed is not None:
            self._restrictions.set_limited(agent, True)
        self.storage.set_quota(agent, parsed)
        if self._restrictions is not None and parsed is None:
            self._restrictions.set_limited(agent, False)
        return self._configured(agent) if parsed is None else parsed

    def quotas(self) -> dict[str, tuple[Quota, str]]:
        """Return all quotas by agent, each with its source.

        The source is ``set`` (at run time), ``configured``, or ``default`` for the entry ``*``.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        quotas = {"*": (self._default, "default")}
        quotas |= {agent: (quota, "configured") for agent, quota in self._quotas.items()}
        quotas |= {agent: (quota, "set") for agent, quota in self.storage.quotas().items()}
        return dict(sorted(quotas.items()))

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
            if time.monotonic() >= self._next_warning_at:
                self._next_warning_at = time.monotonic() + _WARNING_INTERVAL
                logger.warning("sent without a limit: %s", error, extra={"action": "limit_not_checked"})
            return
        self._raise(agent, demands, refusal)

    def _raise(self, agent: str, demands: Sequence[Demand], refusal: Refusal | None) -> None:
        if refusal is not None:
            raise RateLimitExceeded(agent, str(refusal.rule), to_seconds(refusal.wait_us), demands[0].n)


def _validated_demands(
    agent: str, n: int, to: str | None, message_type: MessageType | None, priority: Priority
) -> list[Demand]:
    check_agent_name(agent)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_LIMIT:
        raise InvalidMessage(f"n must be a whole number from 1 to {MAX_LIMIT}, not {n!r:.40}")
    if to is not None:
        check_agent_name(to, "to")
    return demands_by_scope([(to, message_type, Priority.of(priority), n)])
