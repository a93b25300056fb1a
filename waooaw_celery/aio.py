"""The same verbs as coroutines, for programs that run on asyncio.

Each call runs in a thread of a pool, so that the event loop goes on meanwhile; a call that is cancelled is no
longer awaited, and ends by its own deadline.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from waooaw_celery.app import AgentApp
from waooaw_celery.audit.ledger import Ledger
from waooaw_celery.audit.trail import MessageAuditTrail as Trail
from waooaw_celery.bus import MessageBus as Bus
from waooaw_celery.errors import RateLimitExceeded
from waooaw_celery.limits.limiter import RateLimiter as Limiter
from waooaw_celery.limits.limiter import Turn
from waooaw_celery.request_response import RequestResponseHandler as Requests

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

#: Calls that go on at once in one process; more wait for their turn.
MAX_CALLS = 64

_pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="waooaw-aio")


def _awaited(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return a method that awaits the one of the object behind it."""

    @wraps(method)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        context = contextvars.copy_context()
        work = partial(context.run, method, self.behind, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(_pool, work)

    return call


class MessageBus:
    """Sends messages and tells what became of them: ``waooaw_celery.MessageBus``, awaited.

    Args:
        app: the application whose broker carries them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.behind = Bus(app)

    send = _awaited(Bus.send)
    send_message = send
    send_many = _awaited(Bus.send_many)
    broadcast = _awaited(Bus.broadcast)
    receipt = _awaited(Bus.receipt)


class RequestResponseHandler:
    """Asks agents and awaits their answers: ``waooaw_celery.RequestResponseHandler``, awaited.

    Args:
        app: the application whose broker and result backend carry them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.behind = Requests(app)

    request = _awaited(Requests.request)
    send_request = _awaited(Requests.send_request)
    broadcast_request = _awaited(Requests.broadcast_request)


class MessageAuditTrail:
    """The ledger and its questions: ``waooaw_celery.MessageAuditTrail``, awaited.

    Args:
        ledger: the ledger, such as ``app.ledger``.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.behind = Trail(ledger)

    query = _awaited(Trail.query)
    conversation = _awaited(Trail.conversation)
    history = _awaited(Trail.history)
    statistics = _awaited(Trail.statistics)
    receipt = _awaited(Trail.receipt)
    log_message = _awaited(Trail.log_message)
    update_status = _awaited(Trail.update_status)


class RateLimiter:
    """Counts what agents send: ``waooaw_celery.RateLimiter``, awaited.

    Args:
        limiter: the one behind it, such as ``app.limiter``.
    """

    def __init__(self, limiter: Limiter) -> None:
        self.behind = limiter

    check_limit = _awaited(Limiter.check_limit)
    status = _awaited(Limiter.status)
    near = _awaited(Limiter.near)
    reset = _awaited(Limiter.reset)
    quota = _awaited(Limiter.quota)
    set_quota = _awaited(Limiter.set_quota)
    _acquire = _awaited(Limiter.acquire)

    async def acquire(self, agent: str, n: int = 1, *, wait: float | None = None, **about: Any) -> None:
        """Count messages as ``waooaw_celery.RateLimiter.acquire`` does; no thread is held while it waits."""
        turn = Turn(wait)
        while True:
            try:
                return await self._acquire(agent, n, **about)
            except RateLimitExceeded as error:
                await asyncio.sleep(turn.pause(error))
