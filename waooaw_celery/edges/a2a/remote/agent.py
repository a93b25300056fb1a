"""Declares an outside agent that speaks A2A as an agent of ours."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from waooaw_celery.agents.agent import Agent
from waooaw_celery.app.app import AgentApp
from waooaw_celery.edges.a2a.remote.calls import RemoteCalls
from waooaw_celery.edges.a2a.remote.card import CardSource
from waooaw_celery.edges.protection.networks import Network, networks
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.validation import JSON


class RemoteAgent(Agent):
    """An outside agent that speaks A2A, as an agent of ours: with queue, limits, retries, deadlines, ledger.

    A worker of the application handles its queue, and calls the outside agent. Its methods are:

    * ``call(skill, arguments=None, text=None)``: call a skill, and return the result;
    * ``send_message(text)``: send a text, and return the result;
    * ``stream_message(text, skill=None, arguments=None)``: the same, in parts;
    * each name in ``skills``: call this skill with the arguments of the request.

    The outside agent gets the id of our message as its ``messageId``, and the id of our conversation as its
    ``contextId``. A request that is cancelled or no longer awaited cancels its task, if it can be cancelled. An
    answer may have 16 MiB, and no redirect is followed.

    The card is fetched when a request needs it, never at import, and is kept for ``max_card_age`` seconds.

    Args:
        name: our name of it.
        card_url: the address of its card, or that below which the card is at the well-known path.
        app: the application.
        skills: skills that are methods: their ids, or a mapping of names of methods to ids.
        headers: headers of each request to it, such as ``{"Authorization": "Bearer …"}``.
        keys: public keys by their ids, as PEM. With keys, its card counts only if one of them has signed it.
        allowed_networks: inner networks in which it may be, such as ``10.0.0.0/8``. Otherwise only
            public addresses are reached.
        timeout: seconds that a call may take, unless the caller waits less.
        max_card_age: seconds for which its card is used without asking again.
        method_options: options of all its methods, such as ``retries``.
        options: those of ``Agent``.

    Raises:
        ConfigurationError: the address is none, or the name of a skill cannot be that of a method.
        InvalidMessage: as ``Agent``.

    Example:
        >>> weather = RemoteAgent("weather", "https://weather.example.com", app, skills=["forecast"])
        >>> app_agent.request("weather", "forecast", {"city": "Turin"})
    """

    def __init__(
        self,
        name: str,
        card_url: str,
        app: AgentApp,
        *,
        skills: Sequence[str] | Mapping[str, str] = (),
        headers: Mapping[str, str] | None = None,
        keys: Mapping[str, str | bytes] | None = None,
        allowed_networks: Sequence[str | Network] = (),
        timeout: float = 300.0,
        max_card_age: float = 300.0,
        method_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        source = CardSource(
            url=card_url,
            headers=headers or {},
            allowed=networks(allowed_networks),
            keys=keys or {},
            max_age=max_card_age,
        )
        named = _named(skills)
        super().__init__(name, app, **options)
        calls = RemoteCalls(name, app, source, timeout)
        given = dict(method_options or {})
        for function in (_call(calls), _send_message(calls), _stream_message(calls)):
            self.method(function, **given)
        for method, skill in named.items():
            self.method(_skill(calls, skill), name=method, **given)


def _named(skills: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    if isinstance(skills, str):
        raise ConfigurationError(f"skills must be a list, such as [{skills!r:.80}], not a text")
    if isinstance(skills, Mapping):
        return dict(skills)
    return {re.sub(r"\W", "_", skill, flags=re.ASCII): skill for skill in skills}


def _call(calls: RemoteCalls) -> Callable[..., Any]:
    async def call(skill: str, arguments: dict[str, Any] | None = None, text: str | None = None) -> Any:
        """Call a skill of the outside agent."""
        return await calls.call(skill, arguments, text)

    return call


def _send_message(calls: RemoteCalls) -> Callable[..., Any]:
    async def send_message(text: str) -> Any:
        """Send a text to the outside agent."""
        return await calls.call(None, None, text)

    return send_message


def _stream_message(calls: RemoteCalls) -> Callable[..., Any]:
    async def stream_message(
        text: str, skill: str | None = None, arguments: dict[str, Any] | None = None
    ) -> AsyncIterator[Any]:
        """Send a text to the outside agent, and return its answer in parts."""
        async for value in calls.stream(skill, arguments, text):
            yield value

    return stream_message


def _skill(calls: RemoteCalls, skill: str) -> Callable[..., Any]:
    async def use(**arguments: JSON) -> Any:
        return await calls.call(skill, arguments, None)

    use.__doc__ = f"Use the skill {skill} of the outside agent."
    return use
