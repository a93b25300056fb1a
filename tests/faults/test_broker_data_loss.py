"""A broker restarts without its data: messages and scripts are gone, and all connections are dead."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from faults.catalogue import VALKEY, Fault, check, chosen, servers
from faults.servers import lone_valkey
from waooaw_celery import Message, MessageBus, create_app


@pytest.mark.parametrize("fault", chosen(VALKEY, "servers", "workflows", durable=False), ids=str)
def test_nothing_is_lost(fault: Fault, tmp_path: Path) -> None:
    """The system's worker publishes the messages that the broker lost once more, from the ledger."""
    with servers(VALKEY, durable=False) as on:
        check(fault, on, tmp_path)


def test_the_first_message_after_a_restart_is_published_once() -> None:
    """The sender finds a dead connection and no script, and retries; the queue then has one message."""
    name = f"f{uuid4().hex[:10]}"
    with lone_valkey(durable=False) as server:
        config = {"broker_url": server.url, "result_backend": server.url}
        with closing(create_app("driver", waooaw_sender="driver", waooaw_agents=[name], **config)) as app:
            bus = MessageBus(app)
            for _ in range(2):
                bus.send(Message(from_agent="driver", to_agent=name))
                keys = [key for key in server.client.keys(f"agent.{name}*") if not key.endswith(b"bell")]
                assert sum(server.client.llen(key) for key in keys) == 1
                server.kill()
                server.start()
