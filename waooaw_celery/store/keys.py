"""The names of all keys in Redis that are not the broker's own, and the prefix before them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from waooaw_celery.errors import ConfigurationError

#: The option that names the prefix. Kombu and Celery read it too.
PREFIX_OPTION = "global_keyprefix"
#: The settings that may have it: the first one that does gives the prefix.
PREFIX_SETTINGS = ("broker_transport_options", "result_backend_transport_options")


def key_prefix(conf: Mapping[str, Any]) -> str:
    """Return what is put before every key and channel: ``global_keyprefix`` of the broker's transport options.

    The broker's transport puts it before its own keys. Agents, receipts and limits use it too, and so do results,
    unless ``result_backend_transport_options`` has another one for them.

    Args:
        conf: Celery's configuration.

    Returns:
        The prefix; an empty text if none is set.

    Raises:
        ConfigurationError: it is no text.

    Example:
        >>> key_prefix({"broker_transport_options": {"global_keyprefix": "lab:"}})
        'lab:'
    """
    for setting in PREFIX_SETTINGS:
        prefix = (conf.get(setting) or {}).get(PREFIX_OPTION)
        if prefix is not None and not isinstance(prefix, str):
            raise ConfigurationError(f"{setting}[{PREFIX_OPTION!r}] must be a text, such as 'lab:'")
        if prefix:
            return prefix
    return ""


class StoreKeys:
    """The keys of agents, subscriptions, schemas, receipts, cancellations, limits and circuit breakers.

    Those of one agent's limits have its name as their hash tag, so that Redis Cluster keeps them on one node.

    Args:
        prefix: what stands before every key.

    Attributes:
        agents: a set: the names of all agents.
        changes: a channel: the names of agents about which something has changed.
        messages: a sorted set: the ids of messages by the time at which they were sent.
        expiring: a sorted set: the ids of messages that no worker has begun, by the time at which they expire.
        subscriptions: a hash: subscriptions by the names of their subscribers.
        since: a hash: when each subscription was first declared.
        caught_up: a hash: when each subscription had received the earlier events.
        removed: a hash: when each removed subscription was removed.
        schemas: a hash: the schemas by topic and version.
        versions: a hash: when each schema was first declared.
        breakers: a hash: the circuit breakers of agents that are open or count failures, by agent.
        housekeeping: a hash: when each periodic task ended last, by its name.
    """

    def __init__(self, prefix: str = "") -> None:
        self._root = root = f"{prefix}waooaw:"
        self.agents = f"{root}agents"
        self.changes = f"{root}agents:changes"
        self.messages = f"{root}messages"
        self.expiring = f"{root}expiring"
        self.subscriptions = f"{root}subscriptions"
        self.since = f"{root}subscriptions:since"
        self.caught_up = f"{root}subscriptions:caught_up"
        self.removed = f"{root}subscriptions:removed"
        self.schemas = f"{root}schemas"
        self.versions = f"{root}schemas:since"
        self.breakers = f"{root}breakers"
        self.housekeeping = f"{root}housekeeping"

    def agent(self, name: str) -> str:
        """Return the key of what is known about an agent (a hash)."""
        return f"{self._root}agent:{name}"

    def workers(self, agent: str) -> str:
        """Return the key of an agent's living workers (a sorted set)."""
        return f"{self.agent(agent)}:workers"

    def report(self, agent: str, worker: str) -> str:
        """Return the key of a worker's newest report (a text)."""
        return f"{self.agent(agent)}:report:{worker}"

    def profile(self, agent: str, digest: str) -> str:
        """Return the key of what workers declare about an agent (a text)."""
        return f"{self.agent(agent)}:profile:{digest}"

    def message(self, message_id: str) -> str:
        """Return the key of a receipt (a hash)."""
        return f"{self._root}message:{message_id}"

    def cancels(self, agent: str) -> str:
        """Return the key of the cancellations of an agent's messages (a sorted set)."""
        return f"{self._root}cancels:{agent}"

    def quota(self, agent: str) -> str:
        """Return the key of an agent's quota (a hash)."""
        return f"{self._root}quota:{{{agent}}}"

    def counter(self, agent: str, scope: str) -> str:
        """Return the key of the messages that an agent has sent within a scope (a text)."""
        return f"{self._root}limit:{{{agent}}}:{scope}"

    def in_flight(self, caller: str, target: str) -> str:
        """Return the key of the open requests of one agent to another (a sorted set)."""
        return f"{self._root}in_flight:{caller}:{target}"

    def every_in_flight(self) -> str:
        """Return a pattern that matches the keys of all open requests."""
        return f"{_literally(self._root)}in_flight:*"

    def caller_and_target(self, key: str) -> tuple[str, str]:
        """Return the two agents whose open requests have this key."""
        caller, _, target = key.removeprefix(f"{self._root}in_flight:").partition(":")
        return caller, target

    def every_quota(self) -> str:
        """Return a pattern that matches the keys of all quotas."""
        return f"{_literally(self._root)}quota:{{*"

    def every_counter(self, agent: str | None = None) -> str:
        """Return a pattern that matches the keys of an agent's counters; None: those of all agents."""
        return f"{_literally(self._root)}limit:{{" + ("*" if agent is None else f"{agent}}}:*")

    def agent_of_quota(self, key: str) -> str:
        """Return the agent whose quota has this key."""
        return key.removeprefix(f"{self._root}quota:{{").removesuffix("}")

    def agent_and_scope(self, key: str) -> tuple[str, str]:
        """Return the agent and the scope whose counter has this key."""
        agent, _, scope = key.removeprefix(f"{self._root}limit:{{").partition("}:")
        return agent, scope


def _literally(text: str) -> str:
    """Return a pattern of Redis that matches only this text."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)
