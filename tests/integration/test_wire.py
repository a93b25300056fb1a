"""The wire between real workers: plain Celery reads it, every type survives, and the caps hold."""

from __future__ import annotations

import base64
import bz2
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC
from kombu.utils import json as kombu_json
from malformed_messages import bomb
from redis import Redis
from support import PROBE_FOLDER, Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import ConfigurationError, InvalidMessage, RemoteError, UnknownMessage
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.connection import store_url
from waooaw_celery.testing.embedded import end, spawn
from waooaw_celery.wire.encryption import CONTENT_TYPE

RICH = {
    "at": datetime(2026, 11, 25, 12, tzinfo=UTC),
    "day": datetime(2026, 11, 25, tzinfo=UTC).date(),
    "id": UUID(int=77),
    "price": Decimal("12.50"),
    "raw": b"\x00\xff\x80",
    "large": 2**70,
    "text": "ü \u0000 😀",
}
LONG = {"text": "said again and again, " * 400}
FORMATS = ("json", "msgpack", "protobuf")


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with Redis.from_url(store_url(redis_url)) as client:
        yield client


@pytest.fixture
def unserved_agent(broker: Broker, app: AgentApp) -> str:
    """Return the name of an agent without a worker, so that a test can read its queue."""
    name = broker.name()
    app.conf.waooaw_agents = [name]
    return name


def take(app: AgentApp, name: str) -> Any:
    """Take a message from a queue as it travels, before it is decompressed or decoded."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        if connection.transport.driver_type == "amqp":
            return channel.basic_get(name, no_ack=True)
        found: Any = None
        for priority in (0, 3, 6, 9):
            key = channel._q_for_pri(name, priority)
            found = found or channel.client.rpop(key)
        return json.loads(found)


def environment(broker: Broker, name: str) -> dict[str, str]:
    return os.environ | {
        "STOCK_AGENT": name,
        "STOCK_NOTES": store_url(broker.redis_url),
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_BACKEND": broker.redis_url,
    }


def test_a_stock_worker_reads_what_we_send(
    broker: Broker, app: AgentApp, unserved_agent: str, client: Any, tmp_path: Path
) -> None:
    """A worker without this package handles JSON and MessagePack, uncompressed and compressed."""
    bus = MessageBus(app)
    for serializer in ("json", "msgpack"):
        for compression in ("none", "auto", "zstd"):
            for payload in ({**RICH, "large": 5}, LONG):
                bus.send(
                    Message(
                        from_agent="tests",
                        to_agent=unserved_agent,
                        payload=payload,
                        serializer=serializer,
                        compression=compression,
                    )
                )
    log = tmp_path / "stock.log"
    process = spawn(
        [sys.executable, "stock.py", "work"], log=log, env=environment(broker, unserved_agent), cwd=PROBE_FOLDER
    )
    try:
        until(lambda: client.llen(f"stock:{unserved_agent}") == 12, f"twelve messages: {log}")
    finally:
        end(process)
    facts = [kombu_json.loads(fact) for fact in client.lrange(f"stock:{unserved_agent}", 0, -1)]
    assert all(fact["modules"] == [] and fact["from"] == "tests" for fact in facts)
    assert [fact["payload"] for fact in facts[1::2]] == [LONG] * 6
    # Kombu's JSON decodes the tags itself; in MessagePack they are the tags of Kombu's JSON.
    assert [fact["payload"] for fact in facts[0:6:2]] == [{**RICH, "large": 5}] * 3
    assert [fact["payload"] for fact in facts[6::2]] == [{**RICH, "large": 5}] * 3


def test_a_stock_publisher_is_read(broker: Broker, probe: str) -> None:
    """A program without this package sends both formats, and reads compressed results."""
    value = {"a": [1, 2.5, None, "ü"], **LONG}
    result = subprocess.run(
        [sys.executable, "stock.py", json.dumps(value)],
        cwd=PROBE_FOLDER,
        env=environment(broker, probe),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    output = json.loads(result.stdout)
    assert output["modules"] == []
    assert len(output["answers"]) == 6
    assert all(answer == value for _, _, answer in output["answers"])


@pytest.mark.parametrize("serializer", FORMATS)
@pytest.mark.parametrize("compression", ["none", "zlib", "real-gzip", "zstd"])
def test_every_type_survives_a_request(app: AgentApp, probe: str, serializer: str, compression: str) -> None:
    """In every format and with every codec, the result has the values and types of the argument."""
    result = app.send_task(
        f"{probe}.echo", kwargs={"value": {**RICH, **LONG}}, serializer=serializer, compression=compression
    )
    answer = result.get(timeout=20)
    assert answer == {**RICH, **LONG}
    assert {key: type(value) for key, value in answer.items()} == {
        key: type(value) for key, value in {**RICH, **LONG}.items()
    }


@pytest.mark.parametrize("broker", ["ledger"], indirect=True)
def test_the_ledger_stores_payloads_with_their_types(app: AgentApp, probe: str) -> None:
    """A payload is read from the ledger with its types, and is found by its text."""
    message = Message(from_agent="tests", to_agent=probe, payload=RICH, serializer="msgpack")
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    trail = MessageAuditTrail(app.ledger)
    [found] = [one for one in trail.query(text="12.50").records if one.receipt.message_id == message.message_id]
    assert found.payload == RICH
    assert trail.query(to_agent=probe, text=str(UUID(int=77).hex)).records


def test_a_body_is_compressed_only_if_that_saves_space(app: AgentApp, unserved_agent: str) -> None:
    """The header ``compression`` is absent below the threshold and for ``none``."""
    bus = MessageBus(app)
    for payload, compression, expected in (
        ({"n": 1}, None, None),
        (LONG, "none", None),
        (LONG, None, "application/x-gzip"),
        (LONG, "zstd", "application/zstd"),
    ):
        bus.send(Message(from_agent="tests", to_agent=unserved_agent, payload=payload, compression=compression))
        message = take(app, agent_queue(unserved_agent).name)
        headers = message["headers"] if isinstance(message, dict) else message.headers
        assert headers.get("compression") == expected


def test_each_agent_has_its_own_format_and_codec(broker: Broker, unserved_agent: str) -> None:
    """The settings for an agent win over the application's, and a message's choice over both."""
    settings = {
        "waooaw_agents": [unserved_agent],
        "waooaw_agent_serializers": {unserved_agent: "msgpack"},
        "waooaw_agent_compressions": {unserved_agent: "none"},
        "task_compression": "zstd",
    }
    with closing(broker.app(**settings)) as app:
        for fields, content_type, compression in (
            ({}, "application/x-msgpack", None),
            ({"serializer": "json", "compression": "zlib"}, "application/json", "application/x-gzip"),
        ):
            MessageBus(app).send(Message(from_agent="tests", to_agent=unserved_agent, payload=LONG, **fields))
            message = take(app, agent_queue(unserved_agent).name)
            if isinstance(message, dict):
                assert (message["content-type"], message["headers"].get("compression")) == (
                    content_type,
                    compression,
                )
            else:
                properties = message.properties
                assert properties["content_type"] == content_type
                assert properties["application_headers"].get("compression") == compression


def test_results_are_compressed_by_the_same_rule(app: AgentApp, probe: str, client: Any) -> None:
    """A long result is compressed in the result backend, a short one is not, and Celery reads both."""
    for value, packed in ((LONG, True), ("short", False)):
        result = app.send_task(f"{probe}.echo", kwargs={"value": value})
        assert result.get(timeout=20) == value
        raw = client.get(f"celery-task-meta-{result.id}")
        assert raw.startswith(COMPRESSED_PAYLOAD_MAGIC) is packed
        assert len(raw) < 1000


def test_a_body_that_is_too_large_is_recorded_nowhere(broker: Broker, unserved_agent: str) -> None:
    """A message that its receiver would refuse is neither in the ledger nor at the broker."""
    with closing(
        broker.app(waooaw_agents=[unserved_agent], waooaw_max_expanded_bytes=5000, waooaw_max_nodes=100)
    ) as app:
        for payload, reason in (("x" * 5000, "more than waooaw_max_expanded_bytes"), ([1] * 200, "100 values")):
            message = Message(from_agent="tests", to_agent=unserved_agent, payload=payload)
            with pytest.raises(InvalidMessage, match=reason):
                MessageBus(app).send(message)
            with pytest.raises(UnknownMessage):
                MessageBus(app).receipt(message.message_id)
            with pytest.raises(InvalidMessage, match=reason):
                app.signature(f"{unserved_agent}.command", args=(payload,)).delay()
        with pytest.raises(InvalidMessage, match="headers have about"):
            app.signature(f"{unserved_agent}.command", args=(1,)).apply_async(headers={"x": "y" * 70_000})
        with pytest.raises(ConfigurationError, match="there is no codec 'gzap'"):
            MessageBus(app).send(Message(from_agent="tests", to_agent=unserved_agent, compression="gzap"))


def test_a_result_that_is_too_large_is_a_remote_error(app: AgentApp, probe: str) -> None:
    """The caller gets the error at once."""
    with pytest.raises(RemoteError, match="waooaw_max_expanded_bytes"):
        RequestResponseHandler(app).request(probe, "grow", {"size": 17 * 1024 * 1024}, timeout=20)


def test_an_encrypted_message_is_read_with_the_key(
    broker: Broker, app: AgentApp, start_with: Callable[..., str], client: Any
) -> None:
    """Neither the broker nor the result backend has the plaintext; the handler gets it."""
    name = broker.name()
    keys = [f"{id_}={base64.b64encode(os.urandom(32)).decode()}" for id_ in (f"{name}-new", f"{name}-old")]
    settings = {"waooaw_encryption_keys": keys[::-1], "task_compression": "aes-gcm"}
    with closing(broker.app(waooaw_agents=[name], **settings)) as secret:
        MessageBus(secret).send(Message(from_agent="tests", to_agent=name, payload={"iban": "DE0212"}))
        message = take(secret, agent_queue(name).name)
        body = base64.b64decode(message["body"]) if isinstance(message, dict) else message.body
        headers = message["headers"] if isinstance(message, dict) else message.headers
        assert headers["compression"] == CONTENT_TYPE
        assert b"iban" not in body
        start_with(name, **(settings | {"waooaw_encryption_keys": keys}))
        result = secret.send_task(f"{name}.echo", kwargs={"value": {"iban": "DE0212"}})
        assert result.get(timeout=20) == {"iban": "DE0212"}
        assert b"DE0212" not in client.get(f"celery-task-meta-{result.id}")


@pytest.fixture
def start_with(broker: Broker, app: AgentApp) -> Iterator[Callable[..., str]]:
    """Return a function that starts a worker with its own settings for the duration of the test."""
    processes = []

    def start(name: str, **settings: object) -> str:
        processes.append(broker.start(name, app, **settings))
        return name

    yield start
    for process in processes:
        end(process)


def peak_memory(pid: int) -> int:
    """Return the largest peak memory of a process and its children, in MiB."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    kib = 0
    for each in pids:
        line = next(line for line in Path(f"/proc/{each}/status").read_text().splitlines() if "VmHWM" in line)
        kib += int(line.split()[1])
    return kib // 1024


HOSTILE: dict[str, tuple[bytes, str, str | None]] = {
    "a bomb of 300 MB": (bomb("application/x-gzip"), "application/json", "application/x-gzip"),
    "a truncated body": (zlib.compress(b'[["x"], {}, {}]')[:-4], "application/json", "application/x-gzip"),
    "a codec that is not accepted": (bz2.compress(b'[["x"], {}, {}]'), "application/json", "application/x-bz2"),
    "an unknown codec": (b"[[], {}, {}]", "application/json", "application/x-nonsense"),
    "an unknown format": (b"[[], {}, {}]", "application/x-nonsense", None),
    "200,000 lists deep": (b"[" * 200_000 + b"]" * 200_000, "application/json", None),
    "a duplicate key": (b'[["x"], {"a": 1, "a": 2}, {}]', "application/json", None),
    "NaN": (b"[[NaN], {}, {}]", "application/json", None),
    "MessagePack of millions of lists": (
        b"\xdd" + (3_000_000).to_bytes(4, "big") + b"\x90" * 3_000_000,
        "application/x-msgpack",
        None,
    ),
    "truncated MessagePack": (b"\x93\x90", "application/x-msgpack", None),
    "invalid Protobuf": (b"\xff\xff", "application/x-protobuf", None),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_hostile_bodies_are_recorded_and_take_little_memory(broker: Broker, app: AgentApp, probe: str) -> None:
    """Each ends as DEAD or FAILED with the reason, the worker survives, and all together take less than 50 MB."""
    [node] = app.registry.get(probe).workers
    requests = RequestResponseHandler(app)
    assert requests.request(probe, "echo", {"value": 1}, timeout=20) == 1
    stats = app.control.inspect(destination=[node], timeout=20).stats()[node]
    before = peak_memory(stats["pid"])
    for label, (body, content_type, codec) in HOSTILE.items():
        message = Message(from_agent="tests", to_agent=probe, payload=label)
        app.receipts.begin_recording([(message, "command")])()
        with app.producer_or_acquire() as producer:
            producer.publish(
                body,
                routing_key=agent_queue(probe).name,
                content_type=content_type,
                content_encoding="binary",
                headers={"task": f"{probe}.command", "id": message.message_id, "lang": "py"}
                | ({"compression": codec} if codec else {}),
                priority=3,
            )
        assert settled(app, message.message_id) in (MessageStatus.DEAD, MessageStatus.FAILED), label
        assert MessageBus(app).receipt(message.message_id).error, label
    assert requests.request(probe, "echo", {"value": 2}, timeout=20) == 2
    assert app.control.inspect(destination=[node], timeout=20).stats()[node]["pid"] == stats["pid"]
    assert peak_memory(stats["pid"]) - before < 50
