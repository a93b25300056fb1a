"""Calls an outside agent for a request of ours: within its deadline, and cancelled with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    GetTaskRequest,
    Message,
    Part,
    Role,
    SendMessageRequest,
)
from a2a.utils.errors import A2AError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.edges.a2a.remote.answer import RemoteAnswer
from waooaw_celery.edges.a2a.remote.card import BINDINGS, CardSource, RemoteCard
from waooaw_celery.edges.a2a.remote.transport import outgoing_client
from waooaw_celery.edges.a2a.values import part_of
from waooaw_celery.errors import RemoteError, RequestTimeout
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.current_task import current_task

logger = get_logger(__name__)

#: Largest answer of an outside agent, in bytes; of a stream, all of it.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
#: Seconds that the outside agent gets to cancel its task.
_CANCEL_SECONDS = 2.0
#: Seconds between two looks at a task whose agent does not stream, at first and at most.
_FIRST_LOOK, _LAST_LOOK = 0.1, 2.0


class RemoteCalls:
    """Calls an outside agent.

    Args:
        agent: our name of it.
        app: the application.
        source: where its card comes from.
        timeout: seconds that a call may take, unless the caller waits less.
    """

    def __init__(self, agent: str, app: AgentApp, source: CardSource, timeout: float) -> None:
        self._agent, self._app, self._source, self._timeout = agent, app, source, timeout
        self._card = RemoteCard(source)

    async def call(self, skill: str | None, arguments: Mapping[str, JSON] | None, text: str | None) -> JSON:
        """Call a skill, and return the result.

        Args:
            skill: the skill; None: the outside agent decides.
            arguments: sent as a data part; None: none.
            text: sent as a text part; None: none.

        Raises:
            RemoteError: the agent or the way to it failed; with its words.
            RequestTimeout: it did not answer in time.
            Cancelled: the outside agent has cancelled the task.
            InvalidMessage, NotPermitted: the card or the answer cannot be used.
        """
        answer = RemoteAnswer(self._agent)
        async for _ in self._events(answer, skill, arguments, text):
            pass
        return answer.result()

    async def stream(
        self, skill: str | None, arguments: Mapping[str, JSON] | None, text: str | None
    ) -> AsyncIterator[JSON]:
        """Call a skill, and yield each part of its artifacts as it arrives; without streams, at its end.

        Raises:
            As ``call``.
        """
        answer = RemoteAnswer(self._agent)
        nothing = True
        async for values in self._events(answer, skill, arguments, text):
            for value in values:
                nothing = False
                yield value
        result = answer.result()
        if nothing and result is not None:
            yield result

    async def _events(
        self, answer: RemoteAnswer, skill: str | None, arguments: Mapping[str, JSON] | None, text: str | None
    ) -> AsyncIterator[list[JSON]]:
        """Send a message and yield what is new, until the task has ended; cancel it if that is not awaited."""
        seconds = self._seconds()
        try:
            async with asyncio.timeout(seconds), self._client() as client:
                try:
                    sending: Any = client.send_message(self._request(skill, arguments, text))
                    async with aclosing(sending):
                        async for event in sending:
                            yield answer.add(event)
                    pause = _FIRST_LOOK
                    while not answer.is_ended:
                        await asyncio.sleep(pause)
                        yield answer.add_task(await client.get_task(GetTaskRequest(id=answer.task_id)))
                        pause = min(pause * 2, _LAST_LOOK)
                finally:
                    if answer.task_id and not answer.is_ended:
                        await self._cancel(client, answer.task_id)
        except TimeoutError as error:
            raise RequestTimeout(f"{self._agent} did not answer within {seconds:.1f} s") from error
        except (A2AError, httpx.HTTPError, httpx.InvalidURL) as error:
            kind = type(error).__name__
            raise RemoteError(self._agent, kind, str(error) or kind) from error

    async def _cancel(self, client: Client, task_id: str) -> None:
        """Ask the outside agent to cancel a task, also when this coroutine is being cancelled."""
        cancelling = asyncio.ensure_future(
            asyncio.wait_for(client.cancel_task(CancelTaskRequest(id=task_id)), _CANCEL_SECONDS)
        )
        await asyncio.wait([cancelling])
        if (error := cancelling.exception()) is not None:
            logger.warning(
                "%s did not cancel the task %s: %s",
                self._agent,
                task_id,
                str(error) or type(error).__name__,
                extra={"action": "remote_task_not_cancelled"},
            )

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        card = await self._card.get()
        source = self._source
        async with outgoing_client(source.allowed, MAX_ANSWER_BYTES, self._timeout, source.headers) as http:
            config = ClientConfig(httpx_client=http, supported_protocol_bindings=list(BINDINGS))
            yield ClientFactory(config).create(_without_other_bindings(card))

    def _request(
        self, skill: str | None, arguments: Mapping[str, JSON] | None, text: str | None
    ) -> SendMessageRequest:
        """Return the message. Its id is that of ours: an agent that knows it already does nothing twice."""
        parts: list[Part] = [] if text is None else [part_of(text)]
        if arguments or text is None:
            parts.append(part_of(dict(arguments or {})))
        message = Message(message_id=str(uuid4()), role=Role.ROLE_USER, parts=parts)
        task = current_task()
        if task is not None:
            ours = task.message
            message.message_id = ours.message_id
            message.context_id = ours.conversation_id or ours.message_id
        if skill is not None:
            message.metadata["skill_id"] = skill
        return SendMessageRequest(message=message)

    def _seconds(self) -> float:
        """Return how long a call may take: what its caller still waits, or the timeout."""
        task = current_task()
        until = task.caller_deadline() if task is not None else None
        if until is None:
            return self._timeout
        return max(min((until - self._app.reference_clock.now()).total_seconds(), self._timeout), 0.0)


def _without_other_bindings(card: AgentCard) -> AgentCard:
    """Return a card with the interfaces that are spoken here, in its order."""
    found = AgentCard()
    found.CopyFrom(card)
    del found.supported_interfaces[:]
    found.supported_interfaces.extend(
        each for each in card.supported_interfaces if each.protocol_binding in BINDINGS
    )
    return found
