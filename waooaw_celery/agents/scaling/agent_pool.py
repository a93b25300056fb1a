"""The pool of an agent: how many messages its workers handle at once, read and changed by remote control."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from waooaw_celery.agents.scaling.pool_size import PoolSize, worker_pool
from waooaw_celery.agents.scaling.spread import changed, evenly
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.errors import BrokerUnavailable, InvalidMessage, NotScalable, NoWorker
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.messages.wording import counted
from waooaw_celery.store.redis_refusals import explained
from waooaw_celery.worker.health.heartbeat import MAX_MISSED_HEARTBEATS
from waooaw_celery.worker.scaling.pool_scaling import AUTOSCALE, POOL, POOL_FACT

#: The largest pool of one worker, by kind: a typing error must not start a hundred thousand processes.
LARGEST = {"prefork": 1_000}
#: The largest pool of any other kind.
LARGEST_OTHER = 100_000
#: Seconds after which a worker that has not answered is asked again.
ASK_SECONDS = 1.0
#: What to do when a pool cannot change its size.
_INSTEAD = (
    "start it with --pool prefork (or gevent, eventlet), restart it with another -c, or start more workers of "
    "the agent"
)


class AgentPool:
    """How many messages the workers of an agent handle at once, read and changed while they run.

    A size is the sum over all workers that read the agent's queue. It is spread evenly over them, and each keeps
    at least one place. A worker that reads the queues of several agents has one pool for all of them. A worker
    that starts has the size of its option ``-c`` or ``--autoscale``; start it with another one to keep a change.

    Args:
        app: the application whose broker the workers use.
        agent: the agent.
        timeout: seconds to wait for the answers of the workers.

    Raises:
        InvalidMessage: the name or the timeout is invalid.
        ConfigurationError: this is a plain Celery application.

    Example:
        >>> pool = AgentPool(app, "worker-1")
        >>> pool.size().total
        2
        >>> pool.resize(6).total
        6
        >>> pool.autoscale(2, 16).workers["celery@host"].maximum
        16
    """

    def __init__(self, app: AgentApp, agent: str, *, timeout: float = 5.0) -> None:
        self.app = require_agent_app(app, "AgentPool")
        self.agent = check_agent_name(agent)
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 3600:
            raise InvalidMessage(f"timeout must be a positive number of seconds, at most an hour, not {timeout!r}")
        self._timeout = float(timeout)

    def size(self) -> PoolSize:
        """Return how many messages the agent's workers handle at once.

        Raises:
            UnknownAgent: the agent was never declared.
            NoWorker: no worker of the agent runs, or one of them does not answer.
            BrokerUnavailable: the broker does not answer.
            StoreUnavailable: the store, which knows the workers, does not answer.
        """
        return self._size(self.app.registry.get(self.agent).workers)

    def grow(self, n: int = 1) -> PoolSize:
        """Have the agent's workers handle more messages at once, from now on. The smallest workers grow first.

        Args:
            n: how many more.

        Returns:
            The new size.

        Raises:
            InvalidMessage: it is not at least 1, or a worker would become too large.
            NotScalable: the pool of a worker cannot change its size, or is scaled automatically.
            NoWorker, UnknownAgent, BrokerUnavailable, StoreUnavailable: as ``size``; nothing was changed.
        """
        _check_places("n", n)
        before = self._changeable()
        return self._change(before, changed(n, _sizes(before)))

    def shrink(self, n: int = 1) -> PoolSize:
        """Have the agent's workers handle fewer messages at once. The largest workers shrink first.

        Nothing is interrupted: a process that handles a message ends after it.

        Args:
            n: how many fewer.

        Returns:
            The new size.

        Raises:
            InvalidMessage: it is not at least 1, or a worker would be left without a place.
            NotScalable, NoWorker, UnknownAgent, BrokerUnavailable, StoreUnavailable: as ``grow``.
        """
        _check_places("n", n)
        before = self._changeable()
        most = before.total - len(before.workers)
        if n > most:
            raise InvalidMessage(
                f"{self.agent!r} has {counted(before.total, 'place')} in "
                f"{counted(len(before.workers), 'worker')}, and each worker keeps one: it can lose at most "
                f"{most}, not {n}. To have fewer, stop a worker"
            )
        return self._change(before, changed(-n, _sizes(before)))

    def resize(self, n: int) -> PoolSize:
        """Have the agent's workers handle this many messages at once, all together.

        Args:
            n: how many; spread evenly over the workers.

        Returns:
            The new size.

        Raises:
            InvalidMessage: it is less than the number of workers, or a worker would become too large.
            NotScalable, NoWorker, UnknownAgent, BrokerUnavailable, StoreUnavailable: as ``grow``.
        """
        _check_places("n", n)
        before = self._changeable()
        self._check_total("n", n, before)
        return self._change(before, evenly(n, _sizes(before)))

    def autoscale(self, minimum: int, maximum: int) -> PoolSize:
        """Have the agent's workers grow and shrink by themselves, by what waits in the agent's queue.

        A worker grows at once when more messages wait than it has places, or when they have waited for
        ``waooaw_autoscale_age`` seconds. It shrinks when it was too large for half a minute (Celery's variable
        ``AUTOSCALE_KEEPALIVE``). To end it, give both the same value.

        Args:
            minimum: the least size, of all workers together; each keeps at least one place.
            maximum: the largest size, of all workers together.

        Returns:
            The size.

        Raises:
            InvalidMessage: one of them is not at least 1, ``maximum`` is less than ``minimum`` or than the number
                of workers, or a worker would become too large.
            NotScalable: the pool of a worker cannot change its size.
            NoWorker, UnknownAgent, BrokerUnavailable, StoreUnavailable: as ``size``.
        """
        _check_places("minimum", minimum)
        _check_places("maximum", maximum)
        if minimum > maximum:
            raise InvalidMessage(f"minimum must be at most maximum ({maximum}), not {minimum}")
        before = self._scalable()
        self._check_total("maximum", maximum, before)
        sizes = dict.fromkeys(before.workers, 0)
        least, most = evenly(max(minimum, len(sizes)), sizes), evenly(maximum, sizes)
        self._check_largest(most, before)
        for worker in sizes:
            arguments = {"minimum": least[worker], "maximum": most[worker]}
            self._check_done(self._ask(AUTOSCALE, [worker], arguments), [worker])
        return self._size(tuple(sizes))

    # --- what the workers are asked

    def _size(self, workers: Sequence[str]) -> PoolSize:
        if not workers:
            raise NoWorker(f"no worker of {self.agent!r} runs: start one, such as `celery -A your_module worker`")
        replies = self._ask_again(workers)
        if missing := sorted(set(workers) - set(replies)):
            raise NoWorker(
                f"{', '.join(missing)} did not answer within {self._timeout:g} s. A solo worker does not answer "
                "while it handles a message; a worker that was killed counts as living for "
                f"{self.app.settings.heartbeat_seconds * MAX_MISSED_HEARTBEATS:g} s more"
            )
        self._check_done(replies, workers)
        pools = {name: worker_pool(replies[name]) for name in sorted(workers)}
        return PoolSize(agent=self.agent, total=sum(pool.size for pool in pools.values()), workers=pools)

    def _ask_again(self, workers: Sequence[str]) -> dict[str, Any]:
        """Ask for the size of pools. A worker that starts is declared shortly before it listens, so ask again."""
        replies: dict[str, Any] = {}
        ends_at = time.monotonic() + self._timeout
        while (missing := [name for name in workers if name not in replies]) and time.monotonic() < ends_at:
            left = ends_at - time.monotonic()
            replies |= self._ask(POOL, missing, timeout=max(min(left, ASK_SECONDS), 0.01))
        return replies

    def _changeable(self) -> PoolSize:
        """Return the size, if it can be changed.

        Raises:
            NotScalable: it cannot.
        """
        size = self._scalable()
        for name, pool in size.workers.items():
            if pool.maximum is not None and pool.minimum != pool.maximum:
                raise NotScalable(
                    f"{name} scales its pool itself, from {pool.minimum} to {pool.maximum}: give other limits, "
                    f"such as `waooaw scale {self.agent} --min N --max N` for a fixed size"
                )
        return size

    def _scalable(self) -> PoolSize:
        """Return the size, if the workers have pools that can change it.

        Raises:
            NotScalable: one of them has not.
        """
        record = self.app.registry.get(self.agent)
        for name in record.workers:  # first, because a solo worker that is busy does not answer
            reported: Any = record.reports.get(name, {}).get(POOL_FACT) or {}
            if reported.get("scalable") is False:
                raise _not_scalable(name, reported.get("kind"))
        size = self._size(record.workers)
        for name, pool in size.workers.items():
            if not pool.scalable:
                raise _not_scalable(name, pool.kind)
        return size

    def _check_total(self, name: str, total: int, size: PoolSize) -> None:
        if total < len(size.workers):
            least = len(size.workers)
            raise InvalidMessage(
                f"{name} is for all workers together, and each of the {least} workers of {self.agent!r} keeps one "
                f"place: it must be at least {least}, not {total}. To have fewer, stop a worker"
            )

    def _check_largest(self, targets: Mapping[str, int], size: PoolSize) -> None:
        for name, target in targets.items():
            largest = LARGEST.get(size.workers[name].kind, LARGEST_OTHER)
            if target > largest:
                raise InvalidMessage(
                    f"{name} would get {target} places, and a {size.workers[name].kind} worker gets at most "
                    f"{largest}: start more workers"
                )

    def _change(self, before: PoolSize, targets: Mapping[str, int]) -> PoolSize:
        """Give each worker its new size, and return the new sizes."""
        self._check_largest(targets, before)
        changes: dict[int, list[str]] = {}
        for name, target in targets.items():
            change = target - before.workers[name].size
            if before.workers[name].maximum is not None and change:  # scaled to a fixed size
                arguments = {"minimum": target, "maximum": target}
                self._check_done(self._ask(AUTOSCALE, [name], arguments), [name])
            elif change:
                changes.setdefault(change, []).append(name)
        for change, workers in changes.items():
            command = "pool_grow" if change > 0 else "pool_shrink"
            self._check_done(self._ask(command, workers, {"n": abs(change)}), workers)
        return self._size(tuple(targets))

    def _ask(
        self,
        command: str,
        workers: Sequence[str],
        arguments: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Send a remote control command to workers, and return their answers by node name.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        try:
            replies: Any = self.app.control.broadcast(
                command,
                arguments=dict(arguments or {}),
                destination=list(workers),
                reply=True,
                timeout=timeout or self._timeout,
                limit=len(workers),
            )
        except BROKER_ERRORS as error:
            raise BrokerUnavailable(f"the workers cannot be asked: {explained(error)}") from error
        return {name: answer for reply in replies or () for name, answer in reply.items()}

    def _check_done(self, replies: Mapping[str, Any], workers: Sequence[str]) -> None:
        """Check that each worker has done what it was asked.

        Raises:
            NoWorker: one did not answer. NotScalable: one refused.
        """
        if missing := sorted(set(workers) - set(replies)):
            raise NoWorker(
                f"{', '.join(missing)} did not confirm within {self._timeout:g} s; `waooaw scale {self.agent}` "
                "shows the present sizes"
            )
        for name, answer in replies.items():
            if not isinstance(answer, Mapping) or "error" in answer:
                reason = answer.get("error") if isinstance(answer, Mapping) else answer
                raise NotScalable(
                    f"{name} refused: {reason!s:.200}. If it runs an older version of this package, restart it"
                )


def _not_scalable(worker: str, kind: object) -> NotScalable:
    return NotScalable(f"{worker} has the pool {kind!r}, which cannot change its size while it runs: {_INSTEAD}")


def _sizes(size: PoolSize) -> dict[str, int]:
    return {name: pool.size for name, pool in size.workers.items()}


def _check_places(name: str, value: object) -> None:
    """Check a number of places; raise InvalidMessage if it is not possible for any agent."""
    if type(value) is not int or not 1 <= value <= LARGEST_OTHER:
        raise InvalidMessage(f"{name} must be a whole number from 1 to {LARGEST_OTHER}, not {value!r:.80}")
