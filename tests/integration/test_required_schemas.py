"""With ``waooaw_require_schemas``, an event whose topic has no schema is refused, in each kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import Broker

from waooaw_celery import AgentApp, EventBus, MessageAuditTrail
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database import upgrade

ANY: dict[str, Any] = {}


@pytest.fixture(params=["redis", "sqlite", "postgresql", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def apps(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[AgentApp, AgentApp]]:
    """Two applications that share a store: one requires schemas, the other does not."""
    kind = request.param
    broker: Broker = request.getfixturevalue("rabbitmq_broker" if kind == "rabbitmq" else "valkey_broker")
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else None
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}" if kind == "sqlite" else url
    strict = broker.app(waooaw_require_schemas=True, waooaw_database_url=url)
    with closing(strict), closing(broker.app(waooaw_database_url=url)) as other:
        if url is not None:
            upgrade.upgrade(strict.database)
        yield strict, other


def test_a_topic_without_a_schema_is_refused(apps: tuple[AgentApp, AgentApp]) -> None:
    """The error is one sentence, nothing is recorded, and an application without the setting publishes."""
    strict, other = apps
    topic = f"t{uuid4().hex[:10]}.new"
    with pytest.raises(InvalidMessage) as refused:
        EventBus(strict).publish(topic, {"n": 1})
    assert str(refused.value) == (
        f"{topic} has no schema, and waooaw_require_schemas is set: register one with app.schemas.register()"
    )
    if strict.settings.database_url is not None:
        assert not MessageAuditTrail(strict.ledger).query(topic=topic).records
    EventBus(other).publish(topic, {"n": 1})


def test_a_schema_that_another_process_has_just_registered_counts(apps: tuple[AgentApp, AgentApp]) -> None:
    """The publisher has read the schemas a moment before, and reads them again before it refuses."""
    strict, other = apps
    topic = f"t{uuid4().hex[:10]}.new"
    with pytest.raises(InvalidMessage, match="has no schema"):
        EventBus(strict).publish(topic)
    other.schemas.register(topic, ANY)
    EventBus(other).publish(topic)
    assert EventBus(strict).publish(topic).topic == topic


def test_an_applications_own_schema_counts(apps: tuple[AgentApp, AgentApp]) -> None:
    """It is registered in the code of the publisher."""
    topic = f"t{uuid4().hex[:10]}.own"
    apps[0].schemas.register(topic, ANY)
    assert EventBus(apps[0]).publish(topic).topic == topic
