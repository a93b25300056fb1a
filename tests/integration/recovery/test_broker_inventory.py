"""Which messages a broker has: on Valkey and on RabbitMQ."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest
from lost_messages import (
    declare_agent,
    event_names,
    lose_everything,
    recover,
    redis_client,
    send,
)
from support import Broker, queue_length, settled, until

from waooaw_celery import AgentApp, MessageStatus, Priority
from waooaw_celery.maintenance import broker_inventory as inventory_module
from waooaw_celery.messages.queues import agent_queue

Process: TypeAlias = subprocess.Popen[bytes]


@pytest.mark.rabbitmq
@pytest.mark.parametrize("loss", ["purged", "deleted"])
def test_the_messages_of_a_purged_or_deleted_rabbitmq_queue_are_recovered(
    rabbitmq: Broker, loss: str, start: Callable[..., Process]
) -> None:
    """They are published again, and handled once."""
    with closing(rabbitmq.app()) as app:
        agent = declare_agent(rabbitmq, app)
        ids = send(app, agent, 20)
        assert recover(app, agent).recovered == []  # a queue that is not empty may have all of them
        with app.connection_for_write() as connection, connection.channel() as channel:
            queue = agent_queue(agent)(channel)
            queue.purge() if loss == "purged" else queue.delete()
        result = recover(app, agent)
        assert sorted(result.recovered) == sorted(ids)
        assert queue_length(app, agent) == 20
        start(app, agent, on=rabbitmq)
        assert {settled(app, id_) for id_ in ids} == {MessageStatus.HANDLED}
        assert {Counter(event_names(app, id_))["handled"] for id_ in ids} == {1}


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_a_wrong_guess_on_rabbitmq_is_skipped_as_a_duplicate(
    rabbitmq: Broker, start: Callable[..., Process], tmp_path: Path
) -> None:
    """A message that a worker has prefetched looks lost. Its copy is skipped."""
    with closing(rabbitmq.app()) as app:
        agent = rabbitmq.name()
        start(app, agent, "--prefetch-multiplier", "4", on=rabbitmq)
        [first] = send(app, agent, 1, {"sleep": 4})
        until(lambda: "delivered" in event_names(app, first), "the first message")
        [second] = send(app, agent, 1, {"touch": str(tmp_path)})
        until(lambda: queue_length(app, agent) == 0, "the second to be fetched")
        assert recover(app, agent).recovered == [second]
        assert settled(app, second) is MessageStatus.HANDLED
        until(lambda: "duplicate" in event_names(app, second), "its copy")
        assert Counter(event_names(app, second))["handled"] == 1
        assert "recovered" not in event_names(app, first)


@pytest.mark.parametrize("prefix", ["", "mine:"])
def test_only_missing_messages_are_published(
    broker: Broker, app: AgentApp, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In long queues of all priorities, with messages that a worker holds, and with a key prefix."""
    monkeypatch.setattr(inventory_module, "CHUNK_BYTES", 20_000)
    with closing(broker.app(broker_transport_options={"global_keyprefix": prefix})) as own_app:
        agent = declare_agent(broker, own_app)
        ids = [id_ for priority in Priority for id_ in send(own_app, agent, 500, priority=priority)]
        with own_app.connection_for_write() as connection, connection.channel() as channel:
            held = [channel.basic_get(agent_queue(agent).name) for _ in range(30)]
            assert all(held)
            assert recover(own_app, agent).recovered == []
            lost = set()
            with redis_client(broker) as redis:
                for key in redis.keys(f"{prefix}{agent_queue(agent).name}*"):
                    for index in (3, 250) if not key.endswith(b"bell") else ():
                        item = redis.lindex(key, index)
                        lost.add(json.loads(item)["headers"]["id"])
                        assert redis.lrem(key, 1, item)
            assert len(lost) == 8
            assert set(recover(own_app, agent).recovered) == lost <= set(ids)


def test_an_id_in_a_body_does_not_count(broker: Broker, app: AgentApp) -> None:
    """A payload that contains another message's id does not hide that this one is lost."""
    agent = declare_agent(broker, app)
    [lost] = send(app, agent)
    lose_everything(broker)
    text = json.dumps({"id": lost})
    send(app, agent, 1, {"id": lost, "text": text, "texts": [text, json.dumps(text)]})
    assert recover(app, agent).recovered == [lost]
