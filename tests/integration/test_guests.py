"""A plain Celery application in the same process as one of this package works as it does alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Queue
from process_pool import spawn
from support import PROBE_FOLDER, Broker, until

from waooaw_celery import AgentApp, create_app
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.testing.embedded import end_all
from waooaw_celery.wire.caps import MIB

#: JSON texts that this package refuses: too many values, too large, not a number, too deep, a key twice.
BODIES = {
    "values": "[" + "0," * 299_999 + "0]",
    "size": json.dumps("x" * (20 * MIB)),
    "not a number": "NaN",
    "depth": "[" * 101 + "]" * 101,
    "a key twice": '{"a": 1, "a": 2}',
}


@pytest.fixture
def answers(redis_url: str, tmp_path: Path) -> Iterator[Any]:
    """A function that starts a worker, sends it what this package refuses, and returns its answers."""
    processes, apps = [], []

    def ask(guest: str) -> dict[str, Any]:
        queue = f"host-{uuid4().hex[:8]}"
        app = Celery("caller", broker=redis_url, backend=redis_url, set_as_current=False)
        apps.append(app)
        app.conf.task_default_queue = queue
        env = os.environ | {
            "CELERY_BROKER_URL": redis_url,
            "CELERY_RESULT_BACKEND": redis_url,
            "GUEST": guest,
            "GUEST_QUEUE": queue,
        }
        command = [sys.executable, "-m", "celery", "-A", "guest", "worker", "-n", f"{queue}@host", "-c", "1"]
        command += ["--without-mingle", "--without-gossip"]
        processes.append(spawn(command, log=tmp_path / f"{queue}.log", env=env, cwd=PROBE_FOLDER))
        sent = {name: publish(app, body) for name, body in BODIES.items()}
        sent["compressed"] = app.send_task("host.measure", ["x" * (20 * MIB)], compression="gzip").id
        sent["msgpack"] = app.send_task("host.measure", [[0] * 300_000], serializer="msgpack").id
        sent["result"] = app.send_task("host.make", [300_000]).id
        found = {name: app.AsyncResult(id_).get(timeout=30) for name, id_ in sent.items()}
        found["result"] = len(found["result"])
        return found

    yield ask
    end_all(processes)
    for app in apps:
        app.close()


def publish(app: Celery, argument: str) -> str:
    """Publish a task whose only argument is this JSON text, and return its id."""
    id_ = str(uuid4())
    headers = {"task": "host.measure", "id": id_, "lang": "py", "root_id": id_, "retries": 0}
    with app.connection_for_write() as connection:
        connection.Producer().publish(
            f"[[{argument}], {{}}, {{}}]",
            routing_key=app.conf.task_default_queue,
            content_type="application/json",
            content_encoding="utf-8",
            headers=headers,
        )
    return id_


def test_a_plain_worker_takes_what_it_takes_without_this_package(answers: Any) -> None:
    """Its module creates an application of this package with small limits; the answers are the same."""
    alone = answers("")
    assert alone["values"] == ["list", 300_000, 0]
    assert answers("yes") == alone


OTHERS = ["kombu", "memory", pytest.param("amqp", marks=pytest.mark.rabbitmq)]


@pytest.fixture
def bounded(request: pytest.FixtureRequest, redis_url: str) -> Iterator[AgentApp]:
    """An application with small limits on a transport."""
    options: dict[str, Any] = {"waooaw_max_nodes": 40, "waooaw_max_expanded_bytes": 2000, "broker_url": redis_url}
    if request.param == "amqp":
        options["broker_url"] = request.getfixturevalue("amqp_url")
    elif request.param == "memory":
        options |= {"broker_url": "memory://", "waooaw_allow_unordered": True}
    else:
        options["waooaw_redis_transport"] = request.param
    with closing(create_app(**options)) as app:
        yield app


@pytest.mark.parametrize("bounded", ["waooaw", *OTHERS], indirect=True)
def test_our_own_consumers_decode_within_the_limits_of_their_application(bounded: AgentApp) -> None:
    """On every transport, also messages that are no tasks; a plain application on the server has no limits."""
    refused(bounded, "[" + "0," * 50 + "0]", None, "more than 40 values")


@pytest.mark.parametrize("bounded", OTHERS, indirect=True)
def test_our_own_consumers_decompress_within_the_limits_of_their_application(bounded: AgentApp) -> None:
    """On every transport; on our own for Redis, the message becomes a dead letter before it is delivered."""
    refused(bounded, '"' + "x" * 3000 + '"', "gzip", "than 2000")


def refused(bounded: AgentApp, body: str, compression: str | None, reason: str) -> None:
    """Check that an application refuses a body, and that a plain one on the same server reads it."""
    queue = Queue(f"bounded-{uuid4().hex[:8]}", auto_delete=True)
    plain = Celery("plain", broker=bounded.conf.broker_url, set_as_current=False)
    with closing(plain), plain.connection_for_write() as theirs, bounded.connection_for_read() as ours:
        queue(theirs.default_channel).declare()
        found: list[Any] = []

        def received(connection: Any) -> Any:
            until(
                lambda: found.append(queue(connection.default_channel).get(no_ack=True)) or found[-1], "a message"
            )
            return found[-1]

        for _ in range(2):
            theirs.Producer().publish(
                body,
                routing_key=queue.name,
                content_type="application/json",
                content_encoding="utf-8",
                compression=compression,
            )
        try:
            with pytest.raises(DecodingFailed, match=reason):
                decode(received(ours))
            assert received(theirs).payload == json.loads(body)
        finally:
            with suppress(Exception):  # RabbitMQ may have removed it
                queue(theirs.default_channel).delete()


def decode(message: Any) -> Any:
    """Decode a message as Kombu's consumer does."""
    if message.errors:
        message._reraise_error()
    return message.decode()


@pytest.mark.parametrize("broker", ["ledger"], indirect=True)
def test_results_are_decoded_within_the_limits_of_their_application(broker: Broker) -> None:
    """A stored result that is too large is refused by our application, and returned by a plain one."""
    id_ = str(uuid4())
    with (
        closing(broker.app(waooaw_max_nodes=10)) as ours,
        closing(Celery("plain", backend=broker.redis_url, set_as_current=False)) as plain,
    ):
        plain.backend.store_result(id_, [0] * 20, "SUCCESS")
        assert plain.AsyncResult(id_).result == [0] * 20
        with pytest.raises(DecodingFailed, match="an answer cannot be read: it contains more than 10 values"):
            _ = ours.AsyncResult(id_).result
        plain.backend.forget(id_)
