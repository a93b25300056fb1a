"""The same verbs as coroutines, for programs that run on asyncio, and for ``async def`` handlers.

A call is sent by a thread of a small pool; its answer, if it has one, is awaited by none: one thread takes the
answers of all. A call that is cancelled is no longer awaited, and the answer of a request is no longer taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from celery import Task

from waooaw_celery.app import AgentApp
from waooaw_celery.asking import Asked, Asker, Params
from waooaw_celery.audit.ledger import Ledger
from waooaw_celery.audit.trail import MessageAuditTrail as Trail
from waooaw_celery.bus import MessageBus as Bus
from waooaw_celery.events.bus import EventBus as Events
from waooaw_celery.events.delivery import Published
from waooaw_celery.given import no_app
from waooaw_celery.limits.limiter import RateLimiter as Limiter
from waooaw_celery.limits.turn import Later, LaterTurn
from waooaw_celery.message import DeliveryReceipt, Message, MessageType, Priority
from waooaw_celery.offload import submit
from waooaw_celery.response import Response, result_of
from waooaw_celery.streams import AwaitedStream
from waooaw_celery.values import JSON

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


def _awaited(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return a method that awaits the one of the object behind it."""

    @wraps(method)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(submit(method, self.behind, *args, **kwargs))

    return call


def _in_turn(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return a method that awaits the one of the object behind it, and holds no thread during its ``wait``."""

    @wraps(method)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        asked: Any = kwargs.get("wait")
        if asked is not None:
            kwargs["wait"] = LaterTurn(asked)
        while True:
            try:
                return await asyncio.wrap_future(submit(method, self.behind, *args, **kwargs))
            except Later as later:
                await asyncio.sleep(later.seconds)

    return call


class MessageBus:
    """Sends messages and tells what became of them: ``waooaw_celery.MessageBus``, awaited.

    Args:
        app: the application whose broker carries them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.behind = Bus(app)

    send = _in_turn(Bus.send)
    send_message = send
    send_many = _in_turn(Bus.send_many)
    broadcast = _in_turn(Bus.broadcast)
    receipt = _awaited(Bus.receipt)
    cancel = _awaited(Bus.cancel)


class EventBus:
    """Publishes events, and tells who subscribed: ``waooaw_celery.EventBus``, awaited.

    Args:
        app: the application whose broker carries them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.behind = Events(app)

    publish = _in_turn(Events.publish)
    replay = _awaited(Events.replay)
    subscriptions = _awaited(Events.subscriptions)
    unsubscribe = _awaited(Events.unsubscribe)
    resubscribe = _awaited(Events.resubscribe)


class RequestResponseHandler:
    """Asks agents and awaits their answers: ``waooaw_celery.RequestResponseHandler``, awaited.

    A thousand requests may be awaited at once; none of them holds a thread.

    Args:
        app: the application whose broker and result backend carry them.
    """

    def __init__(self, app: AgentApp) -> None:
        self._asker = Asker(app)

    async def request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> JSON:
        """Ask and return the answer: as ``waooaw_celery.RequestResponseHandler.request``."""
        return result_of(
            await self.send_request(
                to_agent, method, params, from_agent=from_agent, timeout=timeout, priority=priority
            )
        )

    async def send_request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Response:
        """Ask and return what came of it: as ``waooaw_celery.RequestResponseHandler.send_request``."""
        answers = await self.broadcast_request(
            [to_agent], method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        return answers[to_agent]

    async def broadcast_request(
        self,
        to_agents: Sequence[str],
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> dict[str, Response]:
        """Ask several agents at once: as ``waooaw_celery.RequestResponseHandler.broadcast_request``."""
        sending = submit(
            self._asker.ask, to_agents, method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        try:
            asked = await asyncio.wrap_future(sending)
            await _settled(asked)
        except asyncio.CancelledError:
            sending.add_done_callback(self._drop)
            raise
        return {each.agent: self._asker.response(each) for each in asked}

    async def request_later(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        on_reply: Task[Any, Any] | str,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> DeliveryReceipt:
        """Ask and wait for nothing: as ``waooaw_celery.RequestResponseHandler.request_later``."""
        asking = submit(
            self._asker.ask_for_reply,
            to_agent,
            method,
            params,
            on_reply=on_reply,
            from_agent=from_agent,
            timeout=timeout,
            priority=priority,
        )
        return await asyncio.wrap_future(asking)

    def stream(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> AwaitedStream:
        """Ask, and take the answer in parts: ``async for chunk in requests.stream(...)``.

        The request is sent when the first part is awaited. As ``waooaw_celery.RequestResponseHandler.stream``.
        """
        return AwaitedStream(
            self._asker, [to_agent], method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )

    def _drop(self, sending: Future[list[Asked]]) -> None:
        """No longer wait for the answers of requests, once they were sent, if they were."""
        if not sending.cancelled() and sending.exception() is None:
            for each in sending.result():
                self._asker.app.answers.drop(each.message_id)


async def _settled(asked: Sequence[Asked]) -> None:
    """Wait until the answers are there, or there is no more time."""
    done, _ = await asyncio.wait([asyncio.wrap_future(each.answer) for each in asked], timeout=asked[0].left)
    for each in done:
        each.exception()  # told by the response; asyncio would complain that nobody asked


class Agent:
    """What an agent says, awaited: ``agent.aio``.

    Args:
        name: of the agent, in whose name it is said.
        app: its application.
    """

    def __init__(self, name: str, app: AgentApp) -> None:
        self._name = name
        self._bus = MessageBus(app)
        self._events = EventBus(app)
        self._requests = RequestResponseHandler(app)

    async def send(
        self,
        to_agent: str,
        payload: JSON,
        *,
        message_type: MessageType = MessageType.COMMAND,
        wait: float | None = None,
        **fields: Any,
    ) -> DeliveryReceipt:
        """Send a message: as ``Agent.send``."""
        message = Message(
            from_agent=self._name, to_agent=to_agent, payload=payload, message_type=message_type, **fields
        )
        return await self._bus.send(message, wait=wait)

    async def publish(self, topic: str, event: JSON = None, **fields: Any) -> Published:
        """Publish an event: as ``Agent.publish``."""
        return await self._events.publish(topic, event, **{"from_agent": self._name, **fields})

    async def request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> JSON:
        """Ask another agent and return its answer: as ``Agent.request``."""
        return await self._requests.request(
            to_agent, method, params, from_agent=self._name, timeout=timeout, priority=priority
        )

    async def request_later(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        on_reply: Task[Any, Any] | str,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> DeliveryReceipt:
        """Ask another agent, whose Response comes to a handler: as ``Agent.request_later``."""
        return await self._requests.request_later(
            to_agent,
            method,
            params,
            on_reply=on_reply,
            from_agent=self._name,
            timeout=timeout,
            priority=priority,
        )

    def stream(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> AwaitedStream:
        """Ask another agent, and take its answer in parts: as ``Agent.stream``."""
        return self._requests.stream(
            to_agent, method, params, from_agent=self._name, timeout=timeout, priority=priority
        )


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
        self.behind = no_app(limiter, "RateLimiter", "limiter")

    acquire = _in_turn(Limiter.acquire)
    check_limit = _awaited(Limiter.check_limit)
    status = _awaited(Limiter.status)
    near = _awaited(Limiter.near)
    reset = _awaited(Limiter.reset)
    quota = _awaited(Limiter.quota)
    set_quota = _awaited(Limiter.set_quota)
