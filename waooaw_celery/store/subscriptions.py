"""Who wants which events: subscriptions and schemas, kept beside the agents, and Redis as their keeper."""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from waooaw_celery.errors import UnknownSubscription
from waooaw_celery.messages.queues import EVENT_HANDLERS, HandlerName
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import matches
from waooaw_celery.messages.topics.schemas import SchemaCheck, TopicSchema
from waooaw_celery.messages.validation import JSON
from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors

#: Seconds for which a publisher goes by what it read: so soon is a new subscription known to all.
CACHE_SECONDS = 1.0
#: Topics of which it is remembered who wants them.
_REMEMBERED = 10_000

_WANTED = "waooaw:subscriptions"
_SINCE = f"{_WANTED}:since"
_CAUGHT_UP = f"{_WANTED}:caught_up"
_REMOVED = f"{_WANTED}:removed"
_SCHEMAS = "waooaw:schemas"
_VERSIONS = f"{_SCHEMAS}:since"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """That a handler of an agent gets the events of some topics.

    Attributes:
        agent: whose handler.
        name: of the subscription: the handler's.
        patterns: of topics; one that several match is delivered once.
        where: what its payloads are like, checked before a message is sent; None: all.
        catch_up_from: from when on it also wants what was published before it was there, and has not got it yet.
        subscribed_at: when it was first declared; None: it was not yet.
        removed_at: when it was removed by command; None: it stands.
    """

    agent: str
    name: str
    patterns: tuple[str, ...]
    where: Filter | None = None
    catch_up_from: datetime | None = None
    subscribed_at: datetime | None = None
    removed_at: datetime | None = None

    @property
    def subscriber(self) -> str:
        """Its name among all subscriptions: ``<agent>.<name>``."""
        return f"{self.agent}.{self.name}"

    @property
    def target(self) -> HandlerName:
        """The handler that its messages are for."""
        return HandlerName(self.agent, f"{EVENT_HANDLERS}{self.name}")

    def has(self, topic: str) -> bool:
        """Whether a topic is one of its own."""
        return any(matches(pattern, topic) for pattern in self.patterns)

    def wants(self, topic: str, payload: JSON) -> bool:
        """Whether it wants an event."""
        return self.has(topic) and (self.where is None or self.where.fits(payload))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSubscriptions:
    """What was known of subscriptions and schemas at a moment.

    Attributes:
        subscriptions: all of them, also those that were removed, by subscriber.
        schemas: of all topics, the newest version of each last.
    """

    subscriptions: tuple[Subscription, ...]
    schemas: tuple[TopicSchema, ...]
    _by_topic: dict[str, tuple[Subscription, ...]] = field(default_factory=dict, compare=False)

    def subscribers(self, topic: str, payload: JSON) -> list[Subscription]:
        """Return the subscriptions that want an event."""
        found = self._by_topic.get(topic)
        if found is None:
            found = tuple(each for each in self.subscriptions if each.removed_at is None and each.has(topic))
            if len(self._by_topic) < _REMEMBERED:
                self._by_topic[topic] = found
        return [each for each in found if each.where is None or each.where.fits(payload)]

    def get(self, subscriber: str) -> Subscription:
        """Return a subscription.

        Raises:
            UnknownSubscription: nobody ever subscribed under this name; the sentence lists who did.
        """
        for each in self.subscriptions:
            if each.subscriber == subscriber:
                return each
        known = ", ".join(each.subscriber for each in self.subscriptions) or "none yet"
        raise UnknownSubscription(f"there is no subscription {subscriber!r} (known: {known})")


class Subscriptions(ABC):
    """Subscriptions and schemas, kept where every process sees the same ones.

    Every method raises StoreUnavailable when what keeps them does not answer.
    """

    def __init__(self) -> None:
        self._known: KnownSubscriptions | None = None
        self._read_at = 0.0
        self._lock = threading.Lock()

    @abstractmethod
    def declare(
        self, subscriptions: Sequence[Subscription], schemas: Sequence[TopicSchema] = (), *, renew: bool = True
    ) -> None:
        """Write down that these are wanted, and how their topics look.

        One that was removed by command stays removed. From when on one wants to catch up counts when it is first
        declared.

        Args:
            subscriptions: of an agent's code.
            schemas: of an agent's code.
            renew: whether they replace what is known under the same names, as at a worker's start; otherwise only
                what is not known is added, so that workers with older and newer code do not take turns.
        """

    @abstractmethod
    def _read(self) -> KnownSubscriptions:
        """Return what is kept."""

    @abstractmethod
    def _mark(self, subscription: Subscription, removed_at: datetime | None) -> None:
        """Note that a subscription was removed, or stands again."""

    @abstractmethod
    def caught_up(self, subscription: Subscription) -> None:
        """Note that a subscription has got what was published before it was there."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""

    def known(self) -> KnownSubscriptions:
        """Return what is known, as it was at most ``CACHE_SECONDS`` ago."""
        known = self._known
        if known is not None and time.monotonic() - self._read_at < CACHE_SECONDS:
            return known
        return self.read()

    def read(self) -> KnownSubscriptions:
        """Return what is known, as it is now."""
        with self._lock:
            began = time.monotonic()
            known = self._read()
            if self._known is not None and known == self._known:
                known = self._known  # which remembers who wants which topics
            self._known, self._read_at = known, began
        return known

    def remove(self, subscriber: str) -> Subscription:
        """Take a subscription off: it gets no further events, also when its agent starts again.

        Raises:
            UnknownSubscription: there is none of this name.
        """
        return self._change(subscriber, datetime.now(UTC))

    def restore(self, subscriber: str) -> Subscription:
        """Let a subscription that was removed stand again.

        Raises:
            UnknownSubscription: there is none of this name.
        """
        return self._change(subscriber, None)

    def _change(self, subscriber: str, removed_at: datetime | None) -> Subscription:
        found = self.read().get(subscriber)
        self._mark(found, removed_at)
        self._read_at = 0.0
        return replace(found, removed_at=removed_at)


class RedisSubscriptions(Subscriptions):
    """Subscriptions kept in Redis: a hash for each kind of fact, so that none is read to be written.

    Args:
        client: connection to Redis.
    """

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def declare(
        self, subscriptions: Sequence[Subscription], schemas: Sequence[TopicSchema] = (), *, renew: bool = True
    ) -> None:
        if not subscriptions and not schemas:
            return
        with store_errors("declare subscriptions"), self._client.pipeline() as pipeline:
            now = datetime.fromtimestamp(redis_time(self._client.time()), UTC)
            put = pipeline.hset if renew else pipeline.hsetnx
            for each in subscriptions:
                since = {"subscribed_at": now.isoformat(), "catch_up_from": _text(each.catch_up_from)}
                pipeline.hsetnx(_SINCE, each.subscriber, json.dumps(since))
                wanted = {"patterns": each.patterns, "where": each.where and each.where.where}
                put(_WANTED, each.subscriber, json.dumps(wanted))
            for number, schema in enumerate(schemas):
                key = f"{schema.topic} {schema.version}"
                pipeline.hsetnx(_VERSIONS, key, f"{now.isoformat()} {number:06}")
                put(_SCHEMAS, key, json.dumps({"schema": schema.schema, "check": schema.check}))
            pipeline.execute()

    def caught_up(self, subscription: Subscription) -> None:
        with store_errors(f"note that {subscription.subscriber} has caught up"):
            self._client.hset(_CAUGHT_UP, subscription.subscriber, datetime.now(UTC).isoformat())

    def close(self) -> None:
        self._client.close()

    def _mark(self, subscription: Subscription, removed_at: datetime | None) -> None:
        with store_errors(f"change the subscription {subscription.subscriber}"):
            if removed_at is None:
                self._client.hdel(_REMOVED, subscription.subscriber)
            else:
                self._client.hset(_REMOVED, subscription.subscriber, removed_at.isoformat())

    def _read(self) -> KnownSubscriptions:
        with store_errors("read the subscriptions"), self._client.pipeline() as pipeline:
            for key in (_WANTED, _SINCE, _CAUGHT_UP, _REMOVED, _SCHEMAS, _VERSIONS):
                pipeline.hgetall(key)
            wanted, since, caught_up, removed, schemas, versions = pipeline.execute()
        subscriptions = []
        for subscriber in sorted(wanted):
            agent, _, name = subscriber.partition(".")
            said, began = json.loads(wanted[subscriber]), json.loads(since[subscriber])
            subscriptions.append(
                Subscription(
                    agent=agent,
                    name=name,
                    patterns=tuple(said["patterns"]),
                    where=said["where"] and Filter(said["where"]),
                    catch_up_from=None if subscriber in caught_up else _moment(began["catch_up_from"]),
                    subscribed_at=_moment(began["subscribed_at"]),
                    removed_at=_moment(removed.get(subscriber)),
                )
            )
        return KnownSubscriptions(subscriptions=tuple(subscriptions), schemas=tuple(_schemas(schemas, versions)))


def _schemas(kept: dict[str, str], since: dict[str, str]) -> Iterable[TopicSchema]:
    for key in sorted(kept, key=since.__getitem__):
        topic, _, version = key.partition(" ")
        said = json.loads(kept[key])
        yield TopicSchema(topic=topic, version=version, schema=said["schema"], check=SchemaCheck(said["check"]))


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
