"""Measures sends: how many messages, how long it took, and which errors there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.monitoring.metrics.definitions import SEND_SECONDS, SENT
from waooaw_celery.monitoring.metrics.process_metrics import ProcessMetrics


class MeasuredSend:
    """A context manager around a send.

    Args:
        metrics: where it is counted.
        batch: the messages, each with its handler.
    """

    __slots__ = ("_batch", "_began", "_metrics")

    def __init__(self, metrics: ProcessMetrics, batch: Sequence[tuple[HandlerName, Message]]) -> None:
        self._metrics, self._batch = metrics, batch

    def __enter__(self) -> Self:
        self._began = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        seconds, error_type = perf_counter() - self._began, "" if kind is None else kind.__qualname__
        agents: dict[Any, int] = Counter(target.agent for target, _ in self._batch)
        operation = operation_of(self._batch)
        for agent, number in agents.items():
            self._metrics.count(SENT, agent, operation, error_type, number=number)
        only = next(iter(agents)) if len(agents) == 1 else ""
        self._metrics.observe(SEND_SECONDS, only, operation, error_type, seconds=seconds)


def operation_of(batch: Sequence[tuple[HandlerName, Message]]) -> str:
    """Return ``send``, ``publish`` for an event, or ``request`` for a call of a method."""
    if not batch or batch[0][1].event is not None:
        return "publish"
    return "send" if takes_message(batch[0][0].handler) else "request"
