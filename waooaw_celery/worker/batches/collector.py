"""Collects the messages of handlers of batches in the worker's event loop, and gives each batch to the pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

from celery.worker import state, strategy

from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.broker.redis.leases.worker_requests import collecting, is_ending
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.batches.job import BatchJob

logger = get_logger(__name__)


class BatchCollector:
    """The messages of one handler that wait for others. All calls are made in the thread that consumes.

    ::

        empty -- add() --> waiting --> full, or its first message has waited long enough --> a BatchJob
                              |
                              +--> the worker ends, or loses its connection: the broker has the messages again

    Args:
        task: the handler, a BatchTask.
        consumer: the worker's consumer.
    """

    def __init__(self, task: Any, consumer: Any) -> None:
        self.task = task
        self._consumer = consumer
        self._waiting: dict[str, Any] = {}
        self._timer: Any = None
        #: The batches in the pool whose messages this connection delivered.
        self._jobs: WeakSet[BatchJob] = WeakSet()
        #: Those of them that have begun.
        self._running: WeakSet[BatchJob] = WeakSet()
        #: For both: threads of the pool change them, and the thread that consumes counts them.
        self._lock = threading.Lock()

    def add(self, request: Any) -> None:
        """Add a message that Celery would give to the pool.

        Args:
            request: its request, a BatchRequest.
        """
        if request.id in self._waiting:  # it was delivered twice, and the second one is a duplicate
            self.flush()
        self._waiting[request.id] = request
        collecting.add(request)
        if len(self._waiting) >= self.task.batch.size:
            self.flush()
        elif self._timer is None:
            self._timer = self._consumer.timer.call_after(self.task.batch.within, self.flush)

    def flush(self) -> None:
        """Give what waits to the pool as one batch.

        A worker that ends gives its pool no more batches: the broker delivers the messages again.
        """
        self._cancel_timer()
        if is_ending():
            return
        requests = self._take()
        if requests:
            job = BatchJob(self.task, requests, self)
            with self._lock:
                self._jobs.add(job)
            self._consumer.on_task_request(job)

    def drop(self) -> None:
        """Forget what waits: the connection that delivered it is lost, and the broker delivers it again."""
        self._cancel_timer()
        self._take()
        with self._lock:
            self._jobs.clear()
            self._running.clear()

    def has_begun(self, job: BatchJob) -> None:
        """Note that the pool has begun a batch, which then takes the place of one message."""
        with self._lock:
            is_own = job in self._jobs
            if is_own:
                self._running.add(job)
        if is_own:
            self._consumer.batches.add_in_pool(job.size - 1)

    def has_ended(self, job: BatchJob) -> None:
        """Note that all messages of a batch have ended."""
        with self._lock:
            self._jobs.discard(job)
            has_run = job in self._running
            self._running.discard(job)
        if has_run:
            self._consumer.batches.add_in_pool(1 - job.size)

    @property
    def room(self) -> int:
        """How many more messages the batch takes that is being collected."""
        size: int = self.task.batch.size
        return max(size - len(self._waiting), 0)

    def uncounted(self) -> int:
        """Return how many of its messages do not count towards the worker's prefetch count.

        Those that wait do not count. A batch in the pool counts as one message.
        """
        waiting = sum(1 for request in self._waiting.values() if not request.acknowledged)
        with self._lock:
            jobs = tuple(self._jobs)
        return waiting + sum(max(job.unsettled - 1, 0) for job in jobs)

    def _take(self) -> list[Any]:
        waiting, self._waiting = list(self._waiting.values()), {}
        for request in waiting:
            collecting.discard(request)
        # Celery forgets a request that was cancelled, and those of a lost connection. When the batch of the last
        # attempt at a message ends, it also forgets the id of the next attempt, but not that request.
        return [request for request in waiting if request in state.reserved_requests]

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Batches:
    """The collectors of one worker. It tells the broker's channel how many messages they take.

    Args:
        consumer: the worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._collectors: dict[str, BatchCollector] = {}
        #: How many messages the running batches have beyond their first ones, where a prefetch count limits what
        #: the broker delivers; None: this package's transport for Redis counts by itself.
        self._in_pool: int | None = None
        self._lock = threading.Lock()

    def collector(self, task: Any) -> BatchCollector:
        """Return the collector of a handler."""
        collector = self._collectors.get(task.name)
        if collector is None or collector.task is not task:
            collector = self._collectors[task.name] = BatchCollector(task, self._consumer)
            self.add_in_pool(0)  # a handler that is registered while the worker runs
        return collector

    def open(self) -> None:
        """Begin with the channel of a new connection."""
        for collector in self._collectors.values():
            collector.drop()
        channel = self._consumer.task_consumer.channel
        self._in_pool = None
        if isinstance(channel, Channel):
            channel.batches = self
        elif self._collectors:
            self._in_pool = 0
            self._raise_prefetch_count()
            self._consumer.qos.update()  # before the queues are consumed: quorum queues ignore a later change

    def add_in_pool(self, count: int) -> None:
        """Note that a batch has begun or ended; a thread of the pool may call it.

        Args:
            count: how many messages run beyond the first one of the batch; negative when it has ended.
        """
        with self._lock:
            if self._in_pool is None:
                return
            self._in_pool += count
            if count < 0:
                self._consumer.qos.decrement_eventually(-count)
            self._raise_prefetch_count()

    def _raise_prefetch_count(self) -> None:
        """Have the broker deliver a batch for each handler beyond what the pool runs.

        Celery lowers the count when it reconnects, and raises it to its own maximum afterwards.
        """
        consumed = self._consumer.app.consumed_agents()  # the application may have others, with batches of theirs
        sizes = sum(each.task.batch.size for each in self._collectors.values() if each.task.agent in consumed)
        qos, least = self._consumer.qos, self._consumer.initial_prefetch_count + sizes + (self._in_pool or 0)
        if qos.value and qos.value < least:
            qos.increment_eventually(least - qos.value)

    def rooms(self) -> Sequence[tuple[str, int]]:
        """Return the name of each task that collects batches, and how many messages it still takes."""
        return [(name, collector.room) for name, collector in self._collectors.items()]

    def uncounted(self) -> int:
        """Return how many messages that the worker holds do not count towards its prefetch count."""
        return sum(collector.uncounted() for collector in self._collectors.values())


class _CollectingConsumer:
    """The worker's consumer as Celery's strategy of a task sees it, with a collector in place of the pool.

    Args:
        consumer: the worker's consumer.
        collector: takes the requests.
    """

    def __init__(self, consumer: Any, collector: BatchCollector) -> None:
        self._consumer, self._collector = consumer, collector

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def on_task_request(self, request: Any) -> None:
        """Collect a request that Celery would give to the pool."""
        self._collector.add(request)

    def apply_eta_task(self, request: Any) -> None:
        """Collect a request that is due now, as Celery's consumer gives it to the pool."""
        state.task_reserved(request)
        self._collector.add(request)
        self._consumer.qos.decrement_eventually()


def collecting_strategy(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:
    """Return what receives each message of a handler of batches: Celery's own strategy, with a collector.

    Args:
        task: the handler, a BatchTask.
        app: the application.
        consumer: the worker's consumer, an AgentConsumer.
    """
    made: Callable[..., Any] = strategy.default(
        task, app, _CollectingConsumer(consumer, consumer.batches.collector(task))
    )
    return made
