"""The sizes of the pools of an agent's workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    """The pool of one worker.

    Attributes:
        kind: its kind: ``prefork``, ``threads``, ``gevent``, ``eventlet`` or ``solo``.
        size: how many messages it handles at once.
        scalable: whether its size can be changed while it runs.
        busy: how many it handles now.
        leaving: how many processes it has given up that are still there: each ends after its message.
        minimum: the least size to which it is scaled automatically; None: it is not.
        maximum: the largest size; None: it is not scaled automatically.
    """

    kind: str
    size: int
    scalable: bool
    busy: int
    leaving: int
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """How many messages the workers of an agent handle at once.

    Attributes:
        agent: the agent.
        total: the sum over its workers.
        workers: the pool of each living worker, by node name.
    """

    agent: str
    total: int
    workers: Mapping[str, WorkerPool]


def worker_pool(answer: Mapping[str, Any]) -> WorkerPool:
    """Return the pool that a worker describes in its answer."""
    minimum, maximum = answer.get("autoscale") or (None, None)
    fields = {name: answer[name] for name in ("kind", "size", "scalable", "busy", "leaving")}
    return WorkerPool(**fields, minimum=minimum, maximum=maximum)
