"""The order by key in the worker of a test: a retry keeps its place, and later messages of its key wait for it."""

from __future__ import annotations

from collections import deque
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.headers import payload_of
from waooaw_celery.messages.message import Message
from waooaw_celery.worker.cancellation import cancellations_of
from waooaw_celery.worker.ordering.key_policy import OnBusy
from waooaw_celery.worker.ordering.message_groups import key_policies


class KeyOrder:
    """Which keys are busy: those of messages that are tried again later.

    A worker of a test handles one message of an agent at a time, so that nothing else makes a key busy.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._policies = key_policies(app)
        #: The message that each busy key waits for, and the messages that wait.
        self._busy: dict[str, str] = {}
        self._waiting: dict[str, deque[Any]] = {}

    def renew(self) -> None:
        """Take the handlers that were added."""
        self._policies = key_policies(self._app)

    def holds(self, message: Any) -> bool:
        """Return whether a message waits for an earlier one of its key, and keep it then.

        A message that is to be dropped when its key is busy is cancelled, and not held.

        Args:
            message: what Kombu delivered.
        """
        headers = message.headers
        group = self._group_of(headers.get("task"), headers, message)
        if group is None or self._busy.get(group, headers["id"]) == headers["id"]:
            return False
        if self._policies[headers["task"]].on_busy is OnBusy.DROP:
            cancellations_of(self._app).add(headers["id"], running=False)
            return False
        self._waiting.setdefault(group, deque()).append(message)
        return True

    def end(self, message: Any, *, is_retried: bool) -> deque[Any]:
        """Note how an attempt has ended, and return the messages that need not wait any more, in order.

        Args:
            message: what Kombu delivered.
            is_retried: whether it is tried again.
        """
        headers = message.headers
        group = self._group_of(headers.get("task"), headers, message)
        if group is None:
            return deque()
        if is_retried:
            self._busy[group] = headers["id"]
            return deque()
        self._busy.pop(group, None)
        return self._waiting.pop(group, deque())

    def _group_of(self, name: Any, headers: Any, message: Any) -> str | None:
        """Return the group of a message, as ``KeyPolicy`` names it; None: none, or none that can be read."""
        policy = self._policies.get(name)
        if policy is None:
            return None
        task = self._app.tasks[name]
        try:
            args, kwargs, _ = message.decode()
            found = Message.from_headers(headers, task.agent, payload_of(task.handler, args, kwargs))
            return policy.group_of(found)
        except (InvalidMessage, ValueError, TypeError):  # the consumer makes a dead letter of it
            return None
