"""The same operations as coroutines, for programs that run on asyncio and for ``async def`` handlers.

A thread of a small pool sends. One thread of the process collects all answers, so that waiting for one holds no
thread. A coroutine that is cancelled drops its requests. Each class has the operations of the class of the
same name in ``waooaw_celery``, which documents them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from waooaw_celery.agents.agent_operations import AgentOperations
from waooaw_celery.agents.bus import MessageBus as Bus
from waooaw_celery.agents.events.bus import EventBus as Events
from waooaw_celery.agents.requests.operations import RequestOperations
from waooaw_celery.agents.requests.stream import AsyncStream
from waooaw_celery.agents.scaling.agent_pool import AgentPool as Pool
from waooaw_celery.agents.waiting import awaited, direct, in_thread
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import refuse_app
from waooaw_celery.discovery.registry import Registry as Agents
from waooaw_celery.limits.limiter import RateLimiter as Limiter
from waooaw_celery.limits.waiting import AsyncLimitWait, RetryAfter
from waooaw_celery.worker.execution.threads import run_in_thread

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


def _limited(operation: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return a coroutine that runs an operation in a thread, and holds no thread while the rate limit refuses."""

    @wraps(operation)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        wait: Any = kwargs.get("wait")
        if wait is not None:
            kwargs["wait"] = AsyncLimitWait(wait)
        while True:
            try:
                return await asyncio.wrap_future(run_in_thread(operation, self.operations, *args, **kwargs))
            except RetryAfter as later:
                await asyncio.sleep(later.seconds)

    return call


class MessageBus:
    """Sends messages, and returns their receipts: ``waooaw_celery.MessageBus``, awaited.

    Args:
        app: the application whose broker carries the messages.
    """

    def __init__(self, app: AgentApp) -> None:
        self.operations = Bus(app)

    send = _limited(Bus.send)
    send_message = send
    send_to = _limited(Bus.send_to)
    send_many = _limited(Bus.send_many)
    broadcast = _limited(Bus.broadcast)
    receipt = in_thread(Bus.receipt)
    waiting = in_thread(Bus.waiting)
    cancel = in_thread(Bus.cancel)


class EventBus:
    """Publishes events, and manages subscriptions: ``waooaw_celery.EventBus``, awaited.

    Args:
        app: the application whose broker carries the events.
    """

    def __init__(self, app: AgentApp) -> None:
        self.operations = Events(app)

    publish = _limited(Events.publish)
    replay = in_thread(Events.replay)
    replays = in_thread(Events.replays)
    replay_progress = in_thread(Events.replay_progress)
    cancel_replay = in_thread(Events.cancel_replay)
    subscriptions = in_thread(Events.subscriptions)
    unsubscribe = in_thread(Events.unsubscribe)
    resubscribe = in_thread(Events.resubscribe)


class RequestResponseHandler:
    """Requests methods of agents: ``waooaw_celery.RequestResponseHandler``, awaited.

    A thousand requests may be awaited at once; none of them holds a thread.

    Args:
        app: the application whose broker and result backend carry the requests.
    """

    def __init__(self, app: AgentApp) -> None:
        self.operations = RequestOperations(app, AsyncStream)

    request = awaited(RequestOperations.request)
    send_request = awaited(RequestOperations.send_request)
    broadcast_request = awaited(RequestOperations.broadcast_request)
    request_later = in_thread(RequestOperations.request_later)
    stream = direct(RequestOperations[AsyncStream].stream)


class Agent:
    """What an agent sends, awaited: ``agent.aio``.

    Args:
        name: the agent.
        app: its application.
    """

    def __init__(self, name: str, app: AgentApp) -> None:
        self.operations = AgentOperations(name, app, AsyncStream)

    send = _limited(AgentOperations.send)
    publish = _limited(AgentOperations.publish)
    request = awaited(AgentOperations.request)
    request_later = in_thread(AgentOperations.request_later)
    stream = direct(AgentOperations[AsyncStream].stream)


class Registry:
    """The known agents: ``waooaw_celery.agents.Registry``, awaited.

    Args:
        app: the application.
    """

    def __init__(self, app: AgentApp) -> None:
        self.operations = Agents(app)

    list = in_thread(Agents.list)
    get = in_thread(Agents.get)
    find = in_thread(Agents.find)
    counts = in_thread(Agents.counts)
    register = in_thread(Agents.register)
    deregister = in_thread(Agents.deregister)
    set_status = in_thread(Agents.set_status)
    set_weights = in_thread(Agents.set_weights)

    watch = direct(Agents.watch)


class RateLimiter:
    """Counts what agents send: ``waooaw_celery.RateLimiter``, awaited.

    Args:
        limiter: the limiter, such as ``app.limiter``.
    """

    def __init__(self, limiter: Limiter) -> None:
        self.operations = refuse_app(limiter, "RateLimiter", "limiter")

    acquire = _limited(Limiter.acquire)
    check_limit = in_thread(Limiter.check_limit)
    status = in_thread(Limiter.status)
    near = in_thread(Limiter.near)
    reset = in_thread(Limiter.reset)
    quota = in_thread(Limiter.quota)
    set_quota = in_thread(Limiter.set_quota)
    quotas = in_thread(Limiter.quotas)


class AgentPool:
    """How many messages the workers of an agent handle at once: ``waooaw_celery.agents.AgentPool``, awaited.

    Args:
        app: the application whose broker the workers use.
        agent: the agent.
        timeout: seconds to wait for the answers of the workers.
    """

    def __init__(self, app: AgentApp, agent: str, *, timeout: float = 5.0) -> None:
        self.operations = Pool(app, agent, timeout=timeout)

    size = in_thread(Pool.size)
    grow = in_thread(Pool.grow)
    shrink = in_thread(Pool.shrink)
    resize = in_thread(Pool.resize)
    autoscale = in_thread(Pool.autoscale)
