"""Subscriptions and topic schemas in the ledger's tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.clock import now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import SchemaRow, SubscriptionRow
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.schemas import SchemaCheck, TopicSchema
from waooaw_celery.store.subscriptions import IN_STORE, KnownSubscriptions, Subscription, Subscriptions


class LedgerSubscriptions(Subscriptions):
    """Subscriptions and topic schemas in the ledger.

    Args:
        database: the ledger's database.
    """

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def declare(
        self, subscriptions: Sequence[Subscription], schemas: Sequence[TopicSchema] = (), *, renew: bool = True
    ) -> None:
        if not subscriptions and not schemas:
            return
        now = now_within(self._database)
        insert: Any = postgresql_insert if self._database.is_postgresql else sqlite_insert

        def upsert(
            connection: Any, table: Any, key: list[str], fixed: dict[str, Any], updated: dict[str, Any]
        ) -> None:
            statement = insert(table).values(**fixed, **updated)
            connection.execute(
                statement.on_conflict_do_update(index_elements=key, set_=updated)
                if renew
                else statement.on_conflict_do_nothing()
            )

        with self._database.begin("declare subscriptions") as connection:
            for each in subscriptions:
                fixed: dict[str, Any] = {"agent": each.agent, "name": each.name, "subscribed_at": now}
                fixed["catch_up_from"] = each.catch_up_from
                updated: dict[str, Any] = {
                    "patterns": list(each.patterns),
                    "conditions": each.where and dict(each.where.where),
                }
                upsert(connection, SubscriptionRow, ["agent", "name"], fixed, updated)
            for number, schema in enumerate(schemas):
                fixed = {
                    "topic": schema.topic,
                    "version": schema.version,
                    "registered_at": now + timedelta(microseconds=number),  # keeps their order
                    "json_schema": schema.schema,
                    "checked_at": schema.check.value,
                }
                connection.execute(insert(SchemaRow).values(**fixed).on_conflict_do_nothing())
                self._check_same(connection, schema, renew)

    @staticmethod
    def _check_same(connection: Connection, schema: TopicSchema, renew: bool) -> None:
        """Check that a schema has its recorded text, and record where it is checked if ``renew`` is True."""
        is_same = (SchemaRow.topic == schema.topic, SchemaRow.version == schema.version)
        known = _schema_of(connection.execute(select(SchemaRow.__table__).where(*is_same)).one())
        schema.check_same(known, IN_STORE)
        if renew and known.check is not schema.check:
            connection.execute(update(SchemaRow).where(*is_same).values(checked_at=schema.check.value))

    def caught_up(self, subscription: Subscription) -> None:
        self._update(f"record that {subscription.subscriber} has caught up", subscription, catch_up_from=None)

    def close(self) -> None:
        self._database.close()

    def _mark(self, subscription: Subscription, removed_at: datetime | None) -> None:
        self._update(f"change the subscription {subscription.subscriber}", subscription, removed_at=removed_at)

    def _update(self, operation: str, subscription: Subscription, **values: Any) -> None:
        is_same = (SubscriptionRow.agent == subscription.agent, SubscriptionRow.name == subscription.name)
        with self._database.begin(operation) as connection:
            connection.execute(update(SubscriptionRow).where(*is_same).values(values))

    def _read(self) -> KnownSubscriptions:
        with self._database.begin("read the subscriptions") as connection:
            subscriptions = connection.execute(
                select(SubscriptionRow.__table__).order_by(SubscriptionRow.agent, SubscriptionRow.name)
            ).all()
            schemas = connection.execute(select(SchemaRow.__table__).order_by(SchemaRow.registered_at)).all()
        return KnownSubscriptions(
            subscriptions=tuple(
                Subscription(
                    agent=row.agent,
                    name=row.name,
                    patterns=tuple(row.patterns),
                    where=Filter(row.conditions) if row.conditions else None,
                    catch_up_from=row.catch_up_from,
                    subscribed_at=row.subscribed_at,
                    removed_at=row.removed_at,
                )
                for row in subscriptions
            ),
            schemas=tuple(_schema_of(row) for row in schemas),
        )


def _schema_of(row: Any) -> TopicSchema:
    return TopicSchema(
        topic=row.topic, version=row.version, schema=row.json_schema, check=SchemaCheck(row.checked_at)
    )
