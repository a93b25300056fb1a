"""A version of a topic's schema keeps its text: in one process, between processes, and after a restart."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import PROBE_FOLDER, Broker

from waooaw_celery import AgentApp, EventBus, aio
from waooaw_celery.errors import SchemaConflict
from waooaw_celery.ledger.database import upgrade
from waooaw_celery.messages.topics.schemas import SchemaCheck, TopicSchema
from waooaw_celery.store.subscriptions import Subscription
from waooaw_celery.testing.embedded import end

ONE: dict[str, Any] = {"required": ["n"]}
OTHER: dict[str, Any] = {"required": ["m"]}


@pytest.fixture(params=["redis", "sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Settings with each kind of store."""
    if request.param == "redis":
        return {"waooaw_database_url": None}
    if request.param == "sqlite":
        return {"waooaw_database_url": f"sqlite:///{tmp_path / 'ledger.sqlite'}"}
    return {"waooaw_database_url": request.getfixturevalue("postgres_url")}


@pytest.fixture
def app(valkey_broker: Broker, settings: dict[str, Any]) -> Iterator[AgentApp]:
    with closing(valkey_broker.app(**settings)) as app:
        if settings["waooaw_database_url"] is not None:
            upgrade.upgrade(app.database)
        yield app


@pytest.fixture
def topic() -> str:
    return f"t{uuid4().hex[:10]}.checked"


def test_another_text_is_refused_by_the_store(app: AgentApp, topic: str) -> None:
    """Whoever declares it, worker or publisher; the order of keys is no difference, and 1 is not true."""
    first = TopicSchema(topic=topic, version="1", schema={"const": 1, "title": "x"})
    declare = app.subscriptions.declare
    declare([], [first])
    declare([], [TopicSchema(topic=topic, version="1", schema={"title": "x", "const": 1})])
    changed = TopicSchema(topic=topic, version="1", schema={"const": True, "title": "x"})
    unrelated = TopicSchema(topic=f"{topic}.new", version="1", schema=ONE)
    agent = f"a{uuid4().hex[:8]}"
    for renew in (True, False):
        with pytest.raises(SchemaConflict, match=rf"{topic} already has another schema in version 1 in the store"):
            declare([Subscription(agent=agent, name="one", patterns=(topic,))], [unrelated, changed], renew=renew)
    known = app.subscriptions.read()
    assert [each.text for each in known.schemas if each.topic.startswith(topic)] == [first.text]
    assert agent not in {each.agent for each in known.subscriptions}
    declare([], [TopicSchema(topic=topic, version="2", schema=changed.schema)])


def test_where_a_schema_is_checked_may_change(app: AgentApp, topic: str) -> None:
    """A worker's start changes it, a publisher does not; the text is the same."""
    at_publish = TopicSchema(topic=topic, version="1", schema=ONE)
    at_receipt = TopicSchema(topic=topic, version="1", schema=ONE, check=SchemaCheck.RECEIPT)
    for declared, renew, check in [
        (at_publish, True, SchemaCheck.PUBLISH),
        (at_receipt, False, SchemaCheck.PUBLISH),
        (at_receipt, True, SchemaCheck.RECEIPT),
    ]:
        app.subscriptions.declare([], [declared], renew=renew)
        assert [each.check for each in app.subscriptions.read().schemas if each.topic == topic] == [check]


def test_one_of_several_texts_wins(
    app: AgentApp, valkey_broker: Broker, settings: dict[str, Any], topic: str
) -> None:
    """Of eight processes that declare different texts at once, one succeeds, and its text stays."""

    def declare(number: int) -> str | None:
        schema = TopicSchema(topic=topic, version="1", schema={"const": number})
        with closing(valkey_broker.app(**settings)) as own:
            try:
                own.subscriptions.declare([], [schema])
            except SchemaConflict:
                return None
        return schema.text

    with ThreadPoolExecutor(8) as pool:
        texts = [text for text in pool.map(declare, range(8)) if text is not None]
    assert [each.text for each in app.subscriptions.read().schemas if each.topic == topic] == texts
    assert len(texts) == 1


def test_a_publisher_with_another_text_is_refused(
    app: AgentApp, valkey_broker: Broker, settings: dict[str, Any], topic: str
) -> None:
    """Its publish raises, blocking and awaited, also for a schema that it registers after its first publish."""
    app.schemas.register(topic, ONE)
    EventBus(app).publish(topic, {"n": 1})
    with closing(valkey_broker.app(**settings)) as later:
        bus = EventBus(later)
        bus.publish(topic, {"n": 1})
        later.schemas.register(topic, OTHER)
        for _ in range(2):
            with pytest.raises(SchemaConflict, match=topic):
                bus.publish(topic, {"m": 1})

        async def publish() -> None:
            await aio.EventBus(later).publish(topic, {"m": 1})

        with pytest.raises(SchemaConflict, match=topic):
            asyncio.run(publish())
    with closing(valkey_broker.app(**settings)) as same:
        same.schemas.register(topic, ONE)
        EventBus(same).publish(topic, {"n": 1})


def worker(broker: Broker, topics: str) -> subprocess.CompletedProcess[str]:
    """Start a worker whose code registers schemas, and wait for its end."""
    env = os.environ | {
        "PROBE_NAME": broker.name(),
        "PROBE_TOPICS": topics,
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_BACKEND": broker.redis_url,
        "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
    }
    if broker.database_url:
        env["WAOOAW_DATABASE_URL"] = broker.database_url
    command = [sys.executable, "-m", "celery", "-A", "event_probe", "worker", "-n", "conflict@t", "-c", "1"]
    return subprocess.run(
        command, env=env, cwd=PROBE_FOLDER, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_worker_with_another_text_does_not_start(broker: Broker) -> None:
    """A publisher registered the version first: the worker ends with one line that names topic and version."""
    topics = f"t{uuid4().hex[:10]}"
    with closing(broker.app()) as app:
        app.schemas.register(f"{topics}.checked", OTHER, version="1")
        EventBus(app).publish(f"{topics}.checked", {"m": 1})
        ended = worker(broker, topics)
        assert ended.returncode == 1
        last = ended.stderr.strip().splitlines()[-1]
        assert last.startswith(f"Error: {topics}.checked already has another schema in version 1")
        assert "Traceback" not in ended.stderr
        known = [each.text for each in app.subscriptions.read().schemas if each.topic == f"{topics}.checked"]
        assert known == [TopicSchema(topic="x", version="1", schema=OTHER).text]


def test_a_worker_binds_publishers_and_its_own_restart(broker: Broker) -> None:
    """What a worker declared stays after its end: another text of a publisher is refused, its own is not."""
    topics, name = f"t{uuid4().hex[:10]}", broker.name()
    with closing(broker.app()) as app:
        for _ in range(2):
            end(broker.start(name, app, module="event_probe", env={"PROBE_TOPICS": topics}))
        app.schemas.register(f"{topics}.checked", OTHER, version="1")
        with pytest.raises(SchemaConflict, match=f"{topics}.checked already has another schema in version 1"):
            EventBus(app).publish(f"{topics}.checked", {"m": 1})
