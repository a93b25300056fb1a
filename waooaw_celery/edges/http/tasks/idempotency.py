"""The Idempotency-Key: the same request again is answered with the same task, another one is refused.

See the draft "The Idempotency-Key HTTP Header Field" of the IETF.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.edges.gateway.task import Call, TaskInfo
from waooaw_celery.edges.http.problems import Problem
from waooaw_celery.errors import UnknownMessage
from waooaw_celery.messages.topics.plain_json import as_json

#: What a client is told that uses a key twice.
OTHER_REQUEST = "this Idempotency-Key belongs to another request: choose a new key for each"


class Keys:
    """The calls with a key that this process makes now, and those that the ledger knows.

    Args:
        gateway: calls agents.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._calls: dict[str, list[Call]] = {}

    @contextmanager
    def using(self, call: Call) -> Iterator[None]:
        """Note during the block that a call with a key is made.

        Raises:
            Problem: another call with the same key is being made now.
        """
        calls = self._calls.setdefault(call.task_id, [])
        if calls and not _is_same(calls[0], call):
            raise Problem(422, OTHER_REQUEST)
        calls.append(call)
        try:
            yield
        finally:
            calls.remove(call)
            if not calls:
                del self._calls[call.task_id]

    async def is_known(self, call: Call) -> bool:
        """Whether the ledger has the task of a call already.

        Raises:
            Problem: it is the task of another call.
        """
        try:
            task = await self._gateway.task(call.principal, call.task_id)
        except UnknownMessage:
            return False
        self.check_same(call, task)
        return True

    def check_same(self, call: Call, task: TaskInfo) -> None:
        """Check that a task is that of a call.

        Raises:
            Problem: it is the task of another call.
        """
        same_target = (task.agent, task.method) == (call.agent, call.method)
        # The arguments of an erased task are not known.
        if not same_target or (
            task.arguments is not None and as_json(task.arguments, str) != as_json(dict(call.arguments), str)
        ):
            raise Problem(422, OTHER_REQUEST)


def _is_same(one: Call, other: Call) -> bool:
    return (one.agent, one.method, one.arguments) == (other.agent, other.method, other.arguments)
