"""Has the channel of a worker group the messages that it claims, and ends those that are not to be handled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError

from waooaw_celery.broker.incoming.delivery import Claim, to_text
from waooaw_celery.broker.incoming.guard import Delivery
from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.broker.redis.groups.groups import Groups
from waooaw_celery.broker.redis.leases.restore import requeue
from waooaw_celery.errors import DecodingFailed, StoreUnavailable, UnknownMessage
from waooaw_celery.messages.headers import parse_datetime, payload_of
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.store.resilience.keyed_message import KeyedMessage
from waooaw_celery.worker.cancellation import cancellations_of
from waooaw_celery.worker.execution.interruptions import ends_worker
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.ordering.key_policy import KeyPolicy
from waooaw_celery.worker.ordering.ordered_intake import BegunMessages, Entry, OrderedIntake
from waooaw_celery.worker.remote_control import broadcast_cancel

logger = get_logger(__name__)

#: Who cancels a message because a later one of its key has arrived.
BY_KEY = "on_busy=cancel"


class MessageGroups:
    """The keys of the messages that one worker consumes.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._policies = key_policies(app)
        #: The messages that threads are cancelling: each later message of a key asks for it again.
        self._cancelling: set[str] = set()
        #: On RabbitMQ: holds messages until it is their turn, and what is begun.
        self._intake: OrderedIntake | None = None
        self._begun: BegunMessages | None = None
        self._holder = ""

    def install(self, consumer: Any) -> None:
        """Have the channel that a worker consumes with group messages, if the application wants it.

        Args:
            consumer: the worker's consumer, which has just connected.
        """
        channel = consumer.task_consumer.channel
        settings = getattr(self._app, "settings", None)  # a plain Celery application may use this consumer
        if settings is not None and consumer.connection.transport.driver_type == "amqp":
            self._open_intake(consumer)
        if not isinstance(channel, Channel) or settings is None:
            return
        channel.least_urgent_share = settings.priority_share
        if settings.fair_queues or self._policies:
            channel.groups = Groups(
                is_fair=settings.fair_queues,
                weights=settings.fair_weights,
                tasks=self._policies,
                key_of=self._group_of,
                cancel=self._cancel,
            )

    def check(self, headers: Any, message: Any) -> None:
        """Check a message that was claimed, and have it cancelled if it is not to be handled.

        Args:
            headers: its headers.
            message: what Kombu delivered.

        Raises:
            DecodingFailed: its key cannot be found.
        """
        policy = self._policies.get(headers.get("task"))
        if policy is None:
            return
        raw = getattr(message, "_raw", None)
        delivery = raw if isinstance(raw, Delivery) else None
        if delivery is None:
            if self._intake is not None:
                self._group_by(policy, headers, message.decode())
            return
        self._key_of(delivery, policy)
        claim: Claim | None = getattr(delivery, "claim", None)
        if claim is not None and claim.is_dropped:
            logger.info(
                "message %s is not handled: its key is busy", headers["id"], extra={"action": "key_is_busy"}
            )
            cancellations_of(self._app).add(headers["id"], running=False)

    def receive(self, message: Any, receive: Callable[[Any], Any], give_back: Callable[[Any], Any]) -> Any:
        """Give a checked message to Celery: at once, or on RabbitMQ when it is the turn of its key.

        Args:
            message: what Kombu delivered.
            receive: gives it to Celery.
            give_back: puts it back into its queue.
        """
        headers = message.headers
        policy = self._policies.get(headers.get("task")) if self._intake is not None else None
        is_delayed = headers.get("eta") and not headers.get("retries")
        if policy is None or is_delayed:  # a delayed message has no place before it is due
            return receive(message)
        return self._take(message, policy, partial(receive, message), partial(give_back, message))

    def waits_when_due(self, request: Any, go: Callable[[], object]) -> bool:
        """Have a delayed message that is due wait for the turn of its key, and return whether it has one.

        Args:
            request: an AgentRequest.
            go: gives it to the pool.
        """
        policy = self._policies.get(request.name) if self._intake is not None else None
        if policy is None or request.request_dict.get("retries"):
            return False
        due = parse_datetime(request.request_dict.get("eta"), UTC)
        give_back = partial(request.reject, requeue=True)
        self._take(request.message, policy, go, give_back, due=due, is_counted=True)
        return True

    def wake(self) -> None:
        """Look whose turn it is, because a message may have ended; call it from any thread."""
        if self._intake is not None:
            self._intake.wake()

    @property
    def waiting(self) -> int:
        """How many messages this worker holds until it is the turn of their keys."""
        return self._intake.waiting if self._intake is not None else 0

    def _open_intake(self, consumer: Any) -> None:
        """Begin to hold the messages of a new connection until it is their turn."""
        if self._intake is not None:
            self._intake.close()
        agents = {self._app.tasks[name].agent for name in self._policies}
        if not agents:
            return
        if self._begun is None:
            self._begun, self._holder = BegunMessages(agents), f"{consumer.hostname} {uuid4().hex[:12]}"
        orders = {agent: self._order_of(agent) for agent in agents}
        drop = partial(cancellations_of(self._app).add, running=False)
        self._intake = OrderedIntake(consumer, orders, self._begun, drop, self._cancel)

    def _order_of(self, agent: str) -> Any:
        from waooaw_celery.ledger.resilience.key_order import KeyOrder

        policies = {
            task.handler: policy
            for name, policy in self._policies.items()
            if (task := self._app.tasks[name]).agent == agent
        }

        def digest_of(handler: str, message: Message) -> str | None:
            return policies[handler].digest_of(message)

        return KeyOrder(self._app.database, agent, self._holder, policies, digest_of)

    def _take(
        self,
        message: Any,
        policy: KeyPolicy,
        go: Callable[[], object],
        give_back: Callable[[], object],
        *,
        due: datetime | None = None,
        is_counted: bool = False,
    ) -> Any:
        headers = message.headers
        task = self._app.tasks[headers["task"]]
        own = self._message_of(headers, message.decode())
        digest = policy.digest_of(own)
        if digest is None or self._intake is None:
            return go()
        keyed = KeyedMessage(
            message_id=headers["id"],
            key=digest,
            rank=own.priority.rank,
            most=policy.max_running,
            on_busy=policy.on_busy.value,
            due=due,
            needs_room=due is not None or not headers.get("eta"),
        )
        record = None
        if ENVELOPE_HEADER not in headers:  # a plain Celery client has sent it
            fact = MessageFact(
                message_id=own.message_id, event=MessageEvent.SENT, message=own, handler=task.handler
            )
            record = partial(self._app.receipts.note, fact)
        entry = Entry(keyed, task.agent, go, give_back, record=record, is_counted=is_counted)
        self._intake.take(entry)
        return None

    def returns_when_due(self, request: Any) -> bool:
        """Put a delayed message with a key back into its queue when it is due, and return whether it was.

        Until then it had no place in its key. Now it waits for its turn.

        Args:
            request: an AgentRequest.
        """
        message = request.message
        policy = self._policies.get(request.name)
        if policy is None or not isinstance(message.channel, Channel) or request.request_dict.get("retries"):
            return False
        delivery = message._raw
        delivery["headers"]["eta"] = None
        claim: Claim = delivery.claim
        try:
            requeue(
                *(message.channel, message.channel.scripts_client, claim.tag, [(claim.queue, claim.list)]),
                to_text(delivery),
                front=False,
            )
        except (RedisError, OSError) as error:
            logger.warning(
                "message %s is due, and goes back to its queue when its lease ends: %s",
                request.id,
                error,
                extra={"action": "due_message_waits", "message_id": request.id},
            )
        finally:  # whoever holds a message renews its lease
            message.channel.qos.pop_held({claim.tag: message})
        return True

    def _group_of(self, delivery: Delivery) -> str | None:
        """Return the group of a checked message; None if it is not due yet, or its key cannot be found."""
        headers = delivery["headers"]
        policy = self._policies.get(headers.get("task"))
        if policy is None or delivery.decoded is None:
            return None
        eta = parse_datetime(headers.get("eta"), UTC)
        if eta is not None and not headers.get("retries") and eta > clock_of(self._app).now():
            return None
        try:
            return self._key_of(delivery, policy)
        except DecodingFailed:  # the worker that claims it says so
            return None

    def _key_of(self, delivery: Delivery, policy: KeyPolicy) -> str | None:
        return self._group_by(policy, delivery["headers"], delivery.decoded)

    def _message_of(self, headers: Any, body: Any) -> Message:
        task = self._app.tasks[headers["task"]]
        return Message.from_headers(headers, task.agent, payload_of(task.handler, body[0], body[1]))

    def _group_by(self, policy: KeyPolicy, headers: Any, body: Any) -> str | None:
        """Return the group of a message.

        Raises:
            DecodingFailed: its key cannot be found.
        """
        try:
            return policy.group_of(self._message_of(headers, body))
        except BaseException as error:
            if ends_worker(error):
                raise
            raise DecodingFailed(f"its key {policy.name} cannot be found: {error!r:.200}") from error

    def _cancel(self, message_id: str) -> None:
        """Cancel a running message in a thread: the thread that consumes may not wait for the store."""
        if message_id in self._cancelling:
            return
        self._cancelling.add(message_id)
        threading.Thread(target=self._cancel_now, args=(message_id,), name="waooaw-cancel", daemon=True).start()

    def _cancel_now(self, message_id: str) -> None:
        try:
            receipt = self._app.receipts.get(message_id)
            if receipt.status.final:
                return
            self._app.receipts.request_cancellation(receipt, True, BY_KEY)
            broadcast_cancel(self._app, message_id)
        except (StoreUnavailable, UnknownMessage) as error:
            logger.warning(
                "message %s runs on although a later one of its key has arrived: %s",
                message_id,
                error,
                extra={"action": "key_not_cancelled", "message_id": message_id},
            )
        except Exception:
            logger.exception(
                "message %s could not be cancelled", message_id, extra={"action": "key_not_cancelled"}
            )
        finally:
            self._cancelling.discard(message_id)


def key_policies(app: Any) -> dict[str, KeyPolicy]:
    """Return the policies of handlers whose messages have keys, by the names of their tasks.

    Args:
        app: the application, an AgentApp.
    """
    return {
        name: task.key_policy for name, task in app.tasks.items() if getattr(task, "key_policy", None) is not None
    }
