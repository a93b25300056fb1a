"""Records the outcomes of messages together with their acknowledgements, where receipts and broker share a Redis.

An outcome then costs no round trip of its own. The server records it and removes the message in one step, so a
message whose outcome is recorded is never redelivered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker import state

from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.results.backend import RedisBackend, store_with_acknowledgements
from waooaw_celery.store.connection import is_same_redis
from waooaw_celery.store.deliveries import RecordedDeliveries, withdraw_delivery
from waooaw_celery.store.receipts import RedisReceipts

logger = get_logger(__name__)

#: The keys in the ``delivery_info`` of a request that say whether its claim has recorded its delivery, and whether
#: its acknowledgement records that a process of the pool has handled it.
RECORDED, ENDS_WITH_ACKNOWLEDGEMENT = "waooaw_recorded", "waooaw_ends_with_acknowledgement"


class AcknowledgedOutcomes:
    """Lets one channel of a worker record deliveries with its claims, and outcomes with its acknowledgements.

    Args:
        consumer: the worker's consumer.
        channel: the channel that it consumes with.
        receipts: the receipts.
    """

    def __init__(self, consumer: Any, channel: Channel, receipts: RedisReceipts) -> None:
        self._consumer, self._channel, self._receipts = consumer, channel, receipts
        self._pid = os.getpid()
        self._has_processes = isinstance(consumer.pool, ProcessPool)
        self.deliveries = RecordedDeliveries(receipts, self._free_slots)
        channel.deliveries = self.deliveries

    def carry(self, fact: MessageFact) -> bool:
        """Have the acknowledgement of a message record its outcome, and return whether it will.

        Args:
            fact: what happened to the message.
        """
        if fact.event is not MessageEvent.HANDLED:
            return False
        return self._carry(fact.message_id, self._receipts.outcome_commands, fact)

    def carry_result(self, message_id: str, commands: Sequence[Any]) -> bool:
        """Have the acknowledgement of a message store its result, and return whether it will.

        Args:
            message_id: the message.
            commands: the commands that store the result.
        """
        return self._carry(message_id, lambda commands: commands, commands, only_recorded=True)

    def ends_for_process(self, request: Any) -> bool:
        """Return whether this process records that one of the pool's processes has handled a message.

        Args:
            request: an AgentRequest.
        """
        return (
            self._has_processes
            and request.ends_alone
            and request.task.acks_late
            and request.message.channel is self._channel
        )

    def _carry(
        self, message_id: str, commands: Callable[[Any], Sequence[Any]], what: Any, *, only_recorded: bool = False
    ) -> bool:
        if self._pid != os.getpid():  # a process of the prefork pool
            return False
        request = state.requests.get(message_id)
        if request is None or request.acknowledged or request.message.channel is not self._channel:
            return False
        # Another delivery of the message may have stored a result already, which must stay.
        if only_recorded and not request.delivery_info.get(RECORDED):
            return False
        self._channel.acks.carry(request.message.delivery_tag, *commands(what))
        return True

    def _free_slots(self) -> int:
        """Return how many claimed messages would begin at once. The others may wait for a long time."""
        consumer = self._consumer
        if any(consumer.task_buckets.values()):  # Celery limits the rate of some task
            return 0
        pool = consumer.pool
        slots = 1 if isinstance(pool, SoloPool) else int(pool.num_processes or 1)
        return max(slots - len(self._channel.qos.tags()), 0)


_of_app: WeakKeyDictionary[Any, AcknowledgedOutcomes] = WeakKeyDictionary()


def install(consumer: Any) -> None:
    """Record deliveries and outcomes with claims and acknowledgements, if the consumer's broker can.

    Args:
        consumer: the worker's consumer, which has just connected.
    """
    app, channel = consumer.app, consumer.task_consumer.channel
    _of_app.pop(app, None)
    store_with_acknowledgements(app, None)
    receipts = getattr(app, "receipts", None)  # a plain Celery application may use this consumer
    if not isinstance(channel, Channel) or not isinstance(receipts, RedisReceipts):
        return
    if is_same_redis(channel.scripts_client, receipts.client):
        _of_app[app] = outcomes = AcknowledgedOutcomes(consumer, channel, receipts)
        backend = app.backend
        if type(backend) is RedisBackend and is_same_redis(channel.scripts_client, backend.client):
            store_with_acknowledgements(app, outcomes.carry_result)


def carry(app: Any, fact: MessageFact) -> bool:
    """Have the acknowledgement of a message record its outcome, and return whether it will.

    Args:
        app: the application, an AgentApp.
        fact: what happened to the message.
    """
    outcomes = _of_app.get(app)
    return outcomes is not None and outcomes.carry(fact)


def mark(request: Any) -> None:
    """Note in a Celery request what the claim of its message has recorded, and its acknowledgement will record.

    Args:
        request: an AgentRequest.
    """
    claim, outcomes = getattr(getattr(request.message, "_raw", None), "claim", None), _of_app.get(request.app)
    # Not headers: whoever publishes the message could set them.
    request.delivery_info[RECORDED] = claim is not None and claim.is_recorded
    request.delivery_info[ENDS_WITH_ACKNOWLEDGEMENT] = outcomes is not None and outcomes.ends_for_process(request)


def ends_with_acknowledgement(request: Any) -> bool:
    """Return whether the acknowledgement of a message records that a process of the pool has handled it.

    Args:
        request: Celery's facts about the attempt: a Context, or an AgentRequest.
    """
    return bool((request.delivery_info or {}).get(ENDS_WITH_ACKNOWLEDGEMENT))


def end_with_acknowledgement(request: Any) -> None:
    """Record that a process of the pool has handled a message, before it is acknowledged. An outage is logged.

    Args:
        request: an AgentRequest.
    """
    fact = MessageFact(message_id=request.id, event=MessageEvent.HANDLED)
    try:
        if not carry(request.app, fact):  # the connection was lost meanwhile
            request.app.receipts.note(fact)
    except StoreUnavailable as error:
        logger.error(  # noqa: TRY400 - the error says it all
            "it could not be recorded that %s is handled: %s",
            request.id,
            error,
            extra={"action": "outcome_not_recorded", "message_id": request.id},
        )


def is_recorded(request: Any) -> bool:
    """Return whether the claim of a message has recorded its delivery.

    Args:
        request: Celery's facts about the attempt, a Context.
    """
    return bool((request.delivery_info or {}).get(RECORDED))


def withdraw(app: Any, request: Any) -> None:
    """Take back the delivery that a claim has recorded, because the handler does not begin. An outage is logged.

    Args:
        app: the application, an AgentApp.
        request: Celery's facts about the attempt, a Context.
    """
    if is_recorded(request) and isinstance(app.receipts, RedisReceipts):
        withdraw_delivery(app.receipts, str(request.id))
