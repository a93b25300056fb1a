"""The size of a worker's pool: reported with its heartbeats and on request, and scaled by what waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.worker import state as worker_state
from celery.worker.control import control_command, inspect_command
from kombu.asynchronous.semaphore import DummyLock

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.scaling.autoscaler import BacklogAutoscaler

logger = get_logger(__name__)

#: The names of the remote control commands, and of the fact that a worker's heartbeats report.
POOL, AUTOSCALE, POOL_FACT = "waooaw_pool", "waooaw_autoscale", "pool"


class PoolScaling(bootsteps.StartStopStep):
    """Bootstep of the worker that reports the size of its pool, and runs its autoscaler."""

    requires = (
        "celery.worker.components:Pool",
        "celery.worker.autoscale:WorkerComponent",
        "waooaw_celery.worker.health.heartbeat:Heartbeat",
    )

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        if parent.autoscale:  # with no process at all, the worker would fetch messages without limit
            parent.min_concurrency = max(parent.min_concurrency, 1)

    def create(self, parent: Any) -> None:
        """Add the size of the pool to the heartbeats.

        Raises:
            SystemExit: the worker was started with ``--autoscale``, and its pool cannot change its size.
        """
        parent.heartbeat_report.add(POOL_FACT, lambda: pool_report(parent))
        if parent.autoscaler is not None and not can_scale(parent.pool_cls):
            raise SystemExit(
                f"Error: --autoscale needs a pool that can grow and shrink, and {pool_kind(parent.pool_cls)} "
                "cannot: use --pool prefork, gevent or eventlet, or leave out --autoscale"
            )

    def start(self, parent: Any) -> None:
        """Start the autoscaler, if the worker was started with one."""
        scaler = parent.autoscaler
        if isinstance(scaler, BacklogAutoscaler):
            consumer = parent.consumer
            consumer.initial_prefetch_count = parent.pool.num_processes * consumer.prefetch_multiplier
            start_autoscaler(scaler)

    def stop(self, parent: Any) -> None:
        """End the autoscaler."""
        if isinstance(parent.autoscaler, BacklogAutoscaler):
            parent.autoscaler.stop()

    def terminate(self, parent: Any) -> None:
        """End it in a cold shutdown too."""
        self.stop(parent)


@inspect_command(name=POOL, visible=False)
def pool(state: Any, **_: Any) -> dict[str, Any]:
    """Return the kind and the size of the worker's pool, and how many messages it handles."""
    worker = state.consumer.controller
    return pool_report(worker) | {
        "busy": len(worker_state.active_requests),
        "leaving": getattr(getattr(worker.pool, "_pool", None), "leaving", 0),
    }


@control_command(name=AUTOSCALE, visible=False)
def autoscale(state: Any, minimum: int, maximum: int, **_: Any) -> dict[str, Any]:
    """Scale the pool between two sizes from now on, also in a worker that was started without an autoscaler."""
    worker = state.consumer.controller
    if not can_scale(type(worker.pool)):
        raise ValueError(f"the pool {pool_kind(type(worker.pool))} cannot grow and shrink")
    if worker.autoscaler is None:
        options = {} if not worker.use_eventloop else {"mutex": DummyLock()}
        scaler = BacklogAutoscaler(worker.pool, maximum, minimum, worker=worker, **options)
        worker.consumer.on_task_message.add(scaler.maybe_scale)
        worker.autoscaler = scaler
        start_autoscaler(scaler)
    worker.autoscaler.update(maximum, minimum)
    logger.info(
        "the pool is scaled between %d and %d from now on",
        minimum,
        maximum,
        extra={"action": "autoscale", "minimum": minimum, "maximum": maximum},
    )
    return pool_report(worker)


def start_autoscaler(scaler: BacklogAutoscaler) -> None:
    """Start the thread of an autoscaler, unless it runs."""
    if not scaler.is_alive():
        scaler.start()


def pool_report(worker: Any) -> dict[str, Any]:
    """Return the kind of a worker's pool, its size, and between which sizes it is scaled, if it is.

    Args:
        worker: Celery's worker.
    """
    scaler = worker.autoscaler
    limits = None if scaler is None else [scaler.min_concurrency, scaler.max_concurrency]
    return {
        "kind": pool_kind(worker.pool_cls),
        "size": worker.pool.num_processes,
        "scalable": can_scale(worker.pool_cls),
        "autoscale": limits,
    }


def pool_size(report: Mapping[str, Any]) -> int | None:
    """Return the size of the pool that a worker's heartbeat reports; None: it reports none.

    Args:
        report: the newest report of the worker.
    """
    reported = report.get(POOL_FACT)
    size = reported.get("size") if isinstance(reported, Mapping) else None
    return size if isinstance(size, int) else None


def can_scale(pool_cls: type) -> bool:
    """Return whether the pools of a class can change their size while they run."""
    return issubclass(pool_cls, ProcessPool) or (hasattr(pool_cls, "grow") and hasattr(pool_cls, "shrink"))


def pool_kind(pool_cls: type) -> str:
    """Return the name of a class of pools for ``celery worker --pool``."""
    name = pool_cls.__module__.rpartition(".")[2]
    return "threads" if name == "thread" else name
