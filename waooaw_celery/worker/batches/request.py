"""Celery's request of a message that is handled in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import ref

from waooaw_celery.worker.batches.job import BatchJob
from waooaw_celery.worker.request import AgentRequest


class Packed(NamedTuple):
    """A message of a batch, as it is given to the pool.

    Attributes:
        facts: its headers, with the facts that Celery adds.
        embed: its callbacks and further parts that Celery carries beside the arguments.
    """

    facts: dict[str, Any]
    embed: Mapping[str, Any] | None


class BatchRequest(AgentRequest):
    """A request that the pool runs together with others, as one ``BatchJob``.

    Attributes:
        job: its batch; None: it is not given to the pool yet.
        is_terminated: whether an operator has ended its process.
    """

    ends_alone = False
    job: BatchJob | None = None
    is_terminated = False

    def execute_using_pool(self, pool: Any, **kwargs: Any) -> Any:
        """Run it as a batch of its own: Celery calls this for one that waited for a rate limit.

        Raises:
            TaskRevokedError: it was revoked, or has expired.
        """
        return BatchJob(self.task, [self]).execute_using_pool(pool)

    def packed(self) -> Packed:
        """Return it as it is given to the pool."""
        _, _, embed = self._payload  # type: ignore[attr-defined]  # missing from its stubs
        return Packed(self.request_dict, embed)

    def note_result(self, result: Any) -> None:
        """Note the pool's result of its batch, which tells whether the handler still runs."""
        self._apply_result = None if result is None else ref(result)

    def stop(self, pool: Any) -> bool:
        """Return False: its handler works on the other messages of the batch too."""
        return False

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the process of its batch for an operator. The other messages of the batch are tried again."""
        self.is_terminated = True
        super().terminate(pool, signal)
