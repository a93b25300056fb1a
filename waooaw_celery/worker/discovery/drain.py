"""Drains agents: their worker takes no new messages for them, ends what it has, and stops when all are drained."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from celery.worker import state

from waooaw_celery.discovery.agent_info import AgentStatus
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.worker.discovery.agent_health import held_messages
from waooaw_celery.worker.health.periodic_step import PeriodicStep

logger = get_logger(__name__)

#: Seconds between two looks whether the messages of drained agents have ended.
LOOK_SECONDS = 0.25


def read_orders(worker: Any, registry: Any, agents: tuple[str, ...], started_at: datetime) -> None:
    """Read what operators have ordered about a worker's agents, and obey.

    An order to drain holds for the workers that were started before it.

    Args:
        worker: Celery's worker.
        registry: the store of agents.
        agents: the worker's agents.
        started_at: when the worker started.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    health = worker.heartbeat.agent_health
    drained = set()
    for record in registry.read(list(agents)):
        order = (record.order or {}).get("status") or {}
        if order.get("status") == AgentStatus.DRAINING and started_at <= datetime.fromisoformat(order["since"]):
            drained.add(record.name)
    for agent in drained - health.drained:
        logger.warning("%s is drained: this worker takes no new message for it", agent, extra={"action": "drain"})
    for agent in health.drained - drained:
        logger.warning("%s is not drained any more", agent, extra={"action": "drain_ended"})
    health.drained = drained


class DrainAgents(PeriodicStep):
    """Bootstep of the worker: a thread that stops consuming for drained agents, then stops the worker."""

    seconds, thread_name, failure = LOOK_SECONDS, "waooaw-drain", ("cannot drain agents", "drain_failed")

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._cancelled: set[str] = set()

    def look(self, parent: Any) -> None:
        """Stop consuming for drained agents; stop the worker when it has none of their messages any more."""
        drained = set(parent.heartbeat.agent_health.drained)
        consumer = getattr(parent, "consumer", None)
        if consumer is None or consumer.task_consumer is None:
            return
        for agent in drained | self._cancelled:
            consumer.call_soon(_set_consuming, consumer, agent, agent not in drained)
        self._cancelled = drained
        if drained != set(parent.app.consumed_agents()) or not drained:
            return
        if any(consumer.task_consumer.consuming_from(agent_queue(agent).name) for agent in drained):
            return
        if not held_messages(drained):
            logger.warning("all agents of this worker are drained: it stops", extra={"action": "drained"})
            state.should_stop = 0  # type: ignore[assignment]  # its stubs know the first value only
            self.ended.set()


def _set_consuming(consumer: Any, agent: str, consumes: bool) -> None:
    """Begin or stop to consume the queue of an agent; call it in the thread that consumes."""
    tasks, name = consumer.task_consumer, agent_queue(agent).name
    if tasks is None or tasks.consuming_from(name) is consumes:
        return
    try:
        if consumes:
            consumer.add_task_queue(name)
        else:
            # Not Consumer.cancel_task_queue: that would forget the queue for good.
            tasks.cancel_by_queue(name)
    except consumer.connection_errors as error:  # the next look repeats it on the new connection
        logger.warning("cannot begin or stop to consume %s: %s", name, error, extra={"action": "drain_not_told"})
