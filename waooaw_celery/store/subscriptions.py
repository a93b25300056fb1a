"""Stores subscriptions and topic schemas: the interface with its cache, and the Redis implementation."""

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
from waooaw_celery.store.keys import StoreKeys

#: Seconds for which a publisher caches what it read; after that, all publishers know a new subscription.
CACHE_SECONDS = 1.0
#: Number of topics whose subscriptions are cached.
_MAX_CACHED_TOPICS = 10_000

#: Where a conflicting schema is known, for the error.
IN_STORE = "in the store that all processes share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """An agent's subscription: its handler gets the events on matching topics.

    Attributes:
        agent: name of the agent.
        name: name of the subscription and of its handler.
        patterns: patterns of topics. An event that several patterns match is delivered once.
        where: filter on the payload, which the publisher evaluates; None: all events match.
        catch_up_from: the subscriber still has to get the earlier events since this time; None: it does not.
        subscribed_at: when it was first declared, or None.
        removed_at: when it was removed, or None.
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
        """The name that is unique among all subscriptions: ``<agent>.<name>``."""
        return f"{self.agent}.{self.name}"

    @property
    def target(self) -> HandlerName:
        """The handler that its messages are for."""
        return HandlerName(self.agent, f"{EVENT_HANDLERS}{self.name}")

    def has(self, topic: str) -> bool:
        """Whether one of its patterns matches a topic."""
        return any(matches(pattern, topic) for pattern in self.patterns)

    def wants(self, topic: str, payload: JSON) -> bool:
        """Whether it gets an event: its patterns match the topic, and its filter the payload."""
        return self.has(topic) and (self.where is None or self.where.fits(payload))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSubscriptions:
    """The subscriptions and schemas, as they were read together.

    Attributes:
        subscriptions: all subscriptions, also the removed ones, sorted by subscriber.
        schemas: the schemas of all topics, the newest version of each topic last.
    """

    subscriptions: tuple[Subscription, ...]
    schemas: tuple[TopicSchema, ...]
    _by_topic: dict[str, tuple[Subscription, ...]] = field(default_factory=dict, compare=False)

    def subscribers(self, topic: str, payload: JSON) -> list[Subscription]:
        """Return the subscriptions that get an event."""
        found = self._by_topic.get(topic)
        if found is None:
            found = tuple(each for each in self.subscriptions if each.removed_at is None and each.has(topic))
            if len(self._by_topic) < _MAX_CACHED_TOPICS:
                self._by_topic[topic] = found
        return [each for each in found if each.where is None or each.where.fits(payload)]

    def get(self, subscriber: str) -> Subscription:
        """Return the subscription with this name, ``<agent>.<name>``.

        Raises:
            UnknownSubscription: there is no such subscription; the error lists the known ones.
        """
        for each in self.subscriptions:
            if each.subscriber == subscriber:
                return each
        known = ", ".join(each.subscriber for each in self.subscriptions) or "none yet"
        raise UnknownSubscription(f"there is no subscription {subscriber!r} (known: {known})")


class Subscriptions(ABC):
    """The subscriptions and schemas, shared by all processes.

    Every method raises StoreUnavailable if the store does not answer.
    """

    def __init__(self) -> None:
        self._known: KnownSubscriptions | None = None
        self._read_at = 0.0
        self._lock = threading.Lock()

    @abstractmethod
    def declare(
        self, subscriptions: Sequence[Subscription], schemas: Sequence[TopicSchema] = (), *, renew: bool = True
    ) -> None:
        """Record the subscriptions and schemas of an agent's code.

        A removed subscription stays removed. Its ``catch_up_from`` takes effect only when it is first declared.
        A version of a schema keeps the text with which it was first recorded.

        Args:
            subscriptions: the subscriptions.
            schemas: the schemas.
            renew: True, at a worker's start: replace those with the same names. False: only add new ones, so that
                workers with older and newer code do not overwrite each other's in turn.

        Raises:
            SchemaConflict: a schema is recorded with another text. No subscription was recorded.
        """

    @abstractmethod
    def _read(self) -> KnownSubscriptions:
        """Return what is stored."""

    @abstractmethod
    def _mark(self, subscription: Subscription, removed_at: datetime | None) -> None:
        """Record when a subscription was removed; None: it was restored."""

    @abstractmethod
    def caught_up(self, subscription: Subscription) -> None:
        """Record that a subscription has received the earlier events that it asked for."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""

    def known(self) -> KnownSubscriptions:
        """Return the subscriptions and schemas from the cache, at most ``CACHE_SECONDS`` old."""
        known = self._known
        if known is not None and time.monotonic() - self._read_at < CACHE_SECONDS:
            return known
        return self.read()

    def read(self) -> KnownSubscriptions:
        """Return the subscriptions and schemas as they are stored now."""
        with self._lock:
            began = time.monotonic()
            known = self._read()
            if self._known is not None and known == self._known:
                known = self._known  # it has the subscriptions of each topic cached
            self._known, self._read_at = known, began
        return known

    def remove(self, subscriber: str) -> Subscription:
        """Remove a subscription: it gets no further events, even after its agent restarts.

        Args:
            subscriber: name of the subscription, ``<agent>.<name>``.

        Raises:
            UnknownSubscription: there is no such subscription.
        """
        return self._change(subscriber, datetime.now(UTC))

    def restore(self, subscriber: str) -> Subscription:
        """Restore a removed subscription.

        Args:
            subscriber: name of the subscription, ``<agent>.<name>``.

        Raises:
            UnknownSubscription: there is no such subscription.
        """
        return self._change(subscriber, None)

    def _change(self, subscriber: str, removed_at: datetime | None) -> Subscription:
        found = self.read().get(subscriber)
        self._mark(found, removed_at)
        self._read_at = 0.0
        return replace(found, removed_at=removed_at)


class RedisSubscriptions(Subscriptions):
    """The subscriptions and schemas in Redis: one hash for each kind of fact, so that no write needs a read first.

    Args:
        client: client of the Redis.
        prefix: what stands before every key.
    """

    def __init__(self, client: Client, prefix: str = "") -> None:
        super().__init__()
        self._client = client
        self._keys = StoreKeys(prefix)

    def declare(
        self, subscriptions: Sequence[Subscription], schemas: Sequence[TopicSchema] = (), *, renew: bool = True
    ) -> None:
        if not subscriptions and not schemas:
            return
        with store_errors("declare subscriptions"):
            now = datetime.fromtimestamp(redis_time(self._client.time()), UTC)
            self._declare_schemas(schemas, now, renew)
            if subscriptions:
                self._declare_subscriptions(subscriptions, now, renew)

    def _declare_subscriptions(self, subscriptions: Sequence[Subscription], now: datetime, renew: bool) -> None:
        with self._client.pipeline() as pipeline:
            write = pipeline.hset if renew else pipeline.hsetnx
            for each in subscriptions:
                since = {"subscribed_at": now.isoformat(), "catch_up_from": _to_text(each.catch_up_from)}
                pipeline.hsetnx(self._keys.since, each.subscriber, json.dumps(since))
                subscription = {"patterns": each.patterns, "where": each.where and each.where.where}
                write(self._keys.subscriptions, each.subscriber, json.dumps(subscription))
            pipeline.execute()

    def _declare_schemas(self, schemas: Sequence[TopicSchema], now: datetime, renew: bool) -> None:
        if not schemas:
            return
        known = self._recorded(schemas)  # so that a conflict leaves nothing behind
        with self._client.pipeline() as pipeline:
            for number, schema in enumerate(schemas):
                pipeline.hsetnx(self._keys.versions, _schema_key(schema), f"{now.isoformat()} {number:06}")
                pipeline.hsetnx(self._keys.schemas, _schema_key(schema), _schema_record(schema))
            pipeline.execute()
        if len(known) < len(schemas):
            known = self._recorded(schemas)  # two processes may have recorded the first text at once
        changed = {
            _schema_key(schema): _schema_record(schema)
            for schema in schemas
            if known[_schema_key(schema)].check is not schema.check
        }
        if renew and changed:
            self._client.hset(self._keys.schemas, mapping=changed)

    def _recorded(self, schemas: Sequence[TopicSchema]) -> dict[str, TopicSchema]:
        """Return the recorded schemas among these.

        Raises:
            SchemaConflict: one is recorded with another text.
        """
        texts = self._client.hmget(self._keys.schemas, [_schema_key(schema) for schema in schemas])
        found = {}
        for schema, text in zip(schemas, texts, strict=True):
            if text is not None:
                found[_schema_key(schema)] = known = _schema_of(_schema_key(schema), text)
                schema.check_same(known, IN_STORE)
        return found

    def caught_up(self, subscription: Subscription) -> None:
        with store_errors(f"record that {subscription.subscriber} has caught up"):
            self._client.hset(self._keys.caught_up, subscription.subscriber, datetime.now(UTC).isoformat())

    def close(self) -> None:
        self._client.close()

    def _mark(self, subscription: Subscription, removed_at: datetime | None) -> None:
        with store_errors(f"change the subscription {subscription.subscriber}"):
            if removed_at is None:
                self._client.hdel(self._keys.removed, subscription.subscriber)
            else:
                self._client.hset(self._keys.removed, subscription.subscriber, removed_at.isoformat())

    def _read(self) -> KnownSubscriptions:
        with store_errors("read the subscriptions"), self._client.pipeline() as pipeline:
            keys = self._keys
            for key in (
                *(keys.subscriptions, keys.since, keys.caught_up, keys.removed),
                keys.schemas,
                keys.versions,
            ):
                pipeline.hgetall(key)
            stored, since, caught_up, removed, schemas, versions = pipeline.execute()
        subscriptions = []
        for subscriber in sorted(stored):
            agent, _, name = subscriber.partition(".")
            fields, times = json.loads(stored[subscriber]), json.loads(since[subscriber])
            subscriptions.append(
                Subscription(
                    agent=agent,
                    name=name,
                    patterns=tuple(fields["patterns"]),
                    where=fields["where"] and Filter(fields["where"]),
                    catch_up_from=None if subscriber in caught_up else _to_datetime(times["catch_up_from"]),
                    subscribed_at=_to_datetime(times["subscribed_at"]),
                    removed_at=_to_datetime(removed.get(subscriber)),
                )
            )
        return KnownSubscriptions(subscriptions=tuple(subscriptions), schemas=tuple(_schemas(schemas, versions)))


def _schemas(stored: dict[str, str], since: dict[str, str]) -> Iterable[TopicSchema]:
    for key in sorted(stored, key=since.__getitem__):
        yield _schema_of(key, stored[key])


def _schema_key(schema: TopicSchema) -> str:
    return f"{schema.topic} {schema.version}"


def _schema_record(schema: TopicSchema) -> str:
    return json.dumps({"schema": schema.schema, "check": schema.check})


def _schema_of(key: str, record: str) -> TopicSchema:
    topic, _, version = key.partition(" ")
    fields = json.loads(record)
    return TopicSchema(topic=topic, version=version, schema=fields["schema"], check=SchemaCheck(fields["check"]))


def _to_text(time_: datetime | None) -> str | None:
    return time_.isoformat() if time_ is not None else None


def _to_datetime(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
