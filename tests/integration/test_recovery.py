"""What the broker loses is published again: each accepted message is handled, and has one end."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from celery import chain, chord
from process_pool import spawn
from proxy import proxied
from redis import Redis
from support import PATIENCE, Broker, lone_database, note, settled, until

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, MessageStatus, MessageType, Priority, create_app
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.broker.incoming.delivery import DELIVERY_COUNT
from waooaw_celery.broker.redis.scripts import PUBLISH
from waooaw_celery.embedded import end_all, valkey
from waooaw_celery.errors import BrokerUnavailable, InvalidMessage, RequestTimeout, UnknownMessage, WaooawError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.rows import event_row
from waooaw_celery.ledger.read.lost import MAX_RECOVERIES, LostMessageRules, claim, claiming, judge
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance import broker_inventory as broker_module
from waooaw_celery.maintenance.recovery import Recovery, RecoveryResult
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.publish_options import RECOVERED_HEADER
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.store.connection import store_url
from waooaw_celery.store.subscriptions import Subscription

ROOT = Path(__file__).parents[2]
KEPT = RetentionPolicy.DAYS_90

Process: TypeAlias = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def ledger_url(postgres_url: str) -> Iterator[str]:
    """A ledger of this module's own: what is open here is nobody else's."""
    with lone_database(postgres_url) as url:
        app = create_app(waooaw_database_url=url)
        schema.upgrade(app.database)
        app.close()
        yield url


@pytest.fixture(scope="module")
def broker(redis_url: str, ledger_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Valkey of this module's own, which loses what it has; answers are in another."""
    with valkey() as url:
        yield Broker(url, redis_url, tmp_path_factory.mktemp("recovery"), ledger_url)


@pytest.fixture(scope="module")
def rabbitmq(
    amqp_url: str, redis_url: str, ledger_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    broker = Broker(amqp_url, redis_url, tmp_path_factory.mktemp("recovery-amqp"), ledger_url)
    yield broker
    broker.clean()


@pytest.fixture
def app(broker: Broker) -> Iterator[AgentApp]:
    with closing(broker.app()) as app:
        yield app
        gc.collect()  # results of Celery's forget themselves while their server is there


@pytest.fixture
def start(broker: Broker) -> Iterator[Callable[..., Process]]:
    """Start a worker of an agent that lives as long as the test."""
    processes: list[Process] = []

    def _start(app: AgentApp, name: str, *options: str, on: Broker = broker, **settings: Any) -> Process:
        beats: Any = {"waooaw_heartbeat_seconds": 0.3} | settings
        processes.append(on.start(name, app, *options, **beats))
        return processes[-1]

    yield _start
    end_all(processes)


@pytest.fixture(params=["postgresql", "sqlite"])
def either(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path, ledger_url: str) -> Iterator[AgentApp]:
    """An application with its ledger in each kind of database."""
    url = ledger_url if request.param == "postgresql" else f"sqlite:///{tmp_path}/ledger.sqlite"
    with closing(broker.app(waooaw_database_url=url)) as app:
        schema.upgrade(app.database)
        yield app


def client(broker: Broker) -> Any:
    return Redis.from_url(store_url(broker.url))


def lose(broker: Broker) -> None:
    """The broker loses everything that it has."""
    with client(broker) as redis:
        redis.flushall()


def declared(broker: Broker, app: AgentApp, *handlers: str) -> str:
    """Return the name of an agent that was declared once, and has no worker."""
    name = broker.name()
    app.registry.declare(name, handlers or ["command"], f"{name}@gone", 0.001)
    return name


def recover(app: AgentApp, agent: str | None = None, **options: Any) -> RecoveryResult:
    """Look once, without the patience that real brokers and workers need."""
    return Recovery(app, after=0, pause=0.2).run(agent=agent, **options)


def send(app: AgentApp, to: str, number: int = 1, payload: Any = None, **fields: Any) -> list[str]:
    messages = [Message(from_agent="tests", to_agent=to, payload=payload or {}, **fields) for _ in range(number)]
    ids = [receipt.message_id for receipt in MessageBus(app).send_many(messages)]
    app.receipts.flush()
    return ids


def record(app: AgentApp, message_id: str) -> AuditRecord:
    return MessageAuditTrail(app.ledger).receipt(message_id)


def told(app: AgentApp, message_id: str) -> list[str]:
    return [event.event for event in record(app, message_id).events]


def waiting(app: AgentApp, agent: str) -> int:
    with app.connection_for_read() as connection:
        return queue_depth(connection, agent_queue(agent)).total


def raw(broker: Broker, agent: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what waits for an agent as it travels, with the list in which it is, and without what changes."""
    found = []
    with client(broker) as redis:
        for key in sorted(redis.keys(f"{agent_queue(agent).name}*")):
            for item in redis.lrange(key, 0, -1) if not key.endswith(b"bell") else ():
                message = json.loads(item)
                del message["properties"]["delivery_tag"], message["headers"]["origin"]
                found.append((key.decode(), message))
    return found


# --- what is lost


def test_a_broker_that_loses_everything_in_mid_load_loses_no_message(
    broker: Broker, app: AgentApp, start: Callable[..., Process], tmp_path: Path
) -> None:
    """All that was accepted is handled, also what a worker held, and each message has one end."""
    agent = broker.name()
    start(app, agent)
    do = {"sleep": 0.005, "touch": str(tmp_path)}
    ids = [id_ for _ in range(10) for id_ in send(app, agent, 20, do)]
    until(lambda: len(list(tmp_path.iterdir())) > 20, "the first messages")
    lose(broker)
    ids += [id_ for _ in range(5) for id_ in send(app, agent, 20, do)]

    def ended() -> bool:
        recover(app, agent)
        receipts = {receipt.message_id: receipt for receipt in app.receipts.recent(limit=10_000)}
        return all(receipts[id_].status.final for id_ in ids)

    until(ended, "the end of every message", 60)
    assert {path.name for path in tmp_path.iterdir()} == set(ids)
    events = {id_: Counter(told(app, id_)) for id_ in ids}
    assert {each["handled"] for each in events.values()} == {1}
    assert sum(each["recovered"] for each in events.values()) >= 10
    [again, *_] = [id_ for id_ in ids if events[id_]["recovered"]]
    [why] = [event.error for event in record(app, again).events if event.event == "recovered"]
    assert why == "not in the broker"


@pytest.mark.rabbitmq
@pytest.mark.parametrize("how", ["purged", "deleted"])
def test_a_queue_of_rabbitmq_that_is_gone_is_filled_again(
    rabbitmq: Broker, how: str, start: Callable[..., Process]
) -> None:
    """Purged or deleted: its messages are published again, and handled once."""
    with closing(rabbitmq.app()) as app:
        agent = declared(rabbitmq, app)
        ids = send(app, agent, 20)
        assert recover(app, agent).recovered == []  # some wait, so that nobody can know of the others
        with app.connection_for_write() as connection, connection.channel() as channel:
            queue = agent_queue(agent)(channel)
            queue.purge() if how == "purged" else queue.delete()
        done = recover(app, agent)
        assert sorted(done.recovered) == sorted(ids)
        assert waiting(app, agent) == 20
        start(app, agent, on=rabbitmq)
        assert {settled(app, id_) for id_ in ids} == {MessageStatus.HANDLED}
        assert {Counter(told(app, id_))["handled"] for id_ in ids} == {1}


@pytest.mark.rabbitmq
def test_a_wrong_guess_on_rabbitmq_is_no_second_handling(
    rabbitmq: Broker, start: Callable[..., Process], tmp_path: Path
) -> None:
    """What a worker has fetched and not begun looks as if it was lost; its copy is skipped."""
    with closing(rabbitmq.app()) as app:
        agent = rabbitmq.name()
        start(app, agent, "--prefetch-multiplier", "4", on=rabbitmq)
        [first] = send(app, agent, 1, {"sleep": 4})
        until(lambda: "delivered" in told(app, first), "the first message")
        [second] = send(app, agent, 1, {"touch": str(tmp_path)})
        until(lambda: waiting(app, agent) == 0, "the second to be fetched")
        assert recover(app, agent).recovered == [second]
        assert settled(app, second) is MessageStatus.HANDLED
        until(lambda: "duplicate" in told(app, second), "its copy")
        assert Counter(told(app, second))["handled"] == 1
        assert "recovered" not in told(app, first)


def test_what_a_killed_worker_had_begun_is_handled_by_another(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """Its worker is gone and so is the message: it is published again, as the attempt that it was."""
    agent = broker.name()
    worker = start(app, agent)
    [message_id] = send(app, agent, 1, {"first_sleep": 60})
    until(lambda: "delivered" in told(app, message_id), "its beginning")
    lose(broker)
    assert recover(app, agent).recovered == []  # its worker lives
    worker.kill()
    worker.wait(10)
    until(lambda: recover(app, agent).recovered, "its recovery")
    [recovered] = [event for event in record(app, message_id).events if event.event == "recovered"]
    assert recovered.error == f"not in the broker, and its worker, {agent}@{socket.gethostname()}, is gone"
    [(_, again)] = raw(broker, agent)
    assert again["headers"]["retries"] == 0


def test_a_worker_that_was_started_anew_does_not_stand_in_for_its_predecessor(
    broker: Broker, app: AgentApp
) -> None:
    """It has the same name, and gives signs of life, but what was begun before its start is lost."""
    agent = declared(broker, app)
    [message_id] = send(app, agent)
    note(app.receipts, record_message(app, message_id), MessageEvent.DELIVERED, worker="w@h")
    lose(broker)
    app.registry.declare(agent, ["command"], "w@h", 60, started_at=datetime.now(UTC) - timedelta(minutes=1))
    assert recover(app, agent).recovered == []
    app.registry.declare(agent, ["command"], "w@h", 60, started_at=datetime.now(UTC))
    assert recover(app, agent).recovered == [message_id]


def test_a_lost_retry_is_the_attempt_that_it_was(broker: Broker, app: AgentApp) -> None:
    """The attempt behind the one that asked for it: so attempts stay bounded."""
    agent = declared(broker, app)
    [message_id] = send(app, agent)
    message = record_message(app, message_id)
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.RETRIED, worker="w@h")
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.RETRIED, worker="w@h", attempt=2)
    lose(broker)
    assert recover(app, agent).recovered == [message_id]
    [(_, again)] = raw(broker, agent)
    assert again["headers"]["retries"] == 2


def record_message(app: AgentApp, message_id: str) -> Message:
    """Return a message of which a worker tells."""
    found = record(app, message_id)
    return Message(
        from_agent=found.receipt.from_agent,
        to_agent=found.receipt.to_agent,
        message_id=message_id,
        sent_at=found.receipt.sent_at,
        retention=app.settings.retention,
    )


def test_a_message_whose_publish_is_unknown_is_resolved(broker: Broker, app: AgentApp) -> None:
    """One that arrived is left alone, one that did not is published: the senders were told of neither."""
    agent = declared(broker, app)
    arrived, never = (Message(from_agent="tests", to_agent=agent) for _ in range(2))
    with proxied(store_url(broker.url).replace("unix://", "//")) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        with closing(broker.app(broker_url=url, task_publish_retry=False)) as far:
            far.registry.declare(agent, ["command"], f"{agent}@gone", 0.001)
            send(far, agent)
            proxy.lose_answer(PUBLISH.digest.encode())
            with suppress(BrokerUnavailable):
                far.send_task(f"{agent}.command", args=({},), message=arrived)
            assert proxy.lost.wait(5)
    with closing(broker.app(broker_url="redis://127.0.0.1:1/0")) as cut_off, pytest.raises(BrokerUnavailable):
        MessageBus(cut_off).send(never)
    assert MessageBus(app).receipt(never.message_id).status is MessageStatus.PENDING
    assert recover(app, agent).recovered == [never.message_id]
    assert MessageBus(app).receipt(never.message_id).status is MessageStatus.SENT
    assert {message["headers"]["id"] for _, message in raw(broker, agent)} >= {
        arrived.message_id,
        never.message_id,
    }


def test_what_is_published_again_is_what_was_published(broker: Broker, app: AgentApp) -> None:
    """Message, .delay, request, event or part of a canvas: headers, body and place are the very same."""
    name = declared(broker, app, "command", "echo", "nap", "replied")
    bus, to = MessageBus(app), {"from_agent": "tests", "to_agent": name}
    value = {"at": datetime(2026, 1, 1, tzinfo=UTC), "id": UUID(int=7), "text": "ü" * 600}
    bus.send(Message(payload=value, priority=Priority.URGENT, ttl_seconds=None, correlation_id="a", **to))
    bus.send(Message(payload=value, serializer="msgpack", compression="none", priority=Priority.LOW, **to))
    bus.send(Message(message_type=MessageType.COMMAND, causation_id="b", conversation_id="c", resent=2, **to))
    echo = app.signature(f"{name}.echo", kwargs={"value": 1})
    later = app.signature(f"{name}.command", args=({"n": value},), immutable=True)
    due = datetime.now(UTC) + timedelta(seconds=600)
    app.send_task(f"{name}.echo", args=({"args": [1]},), eta=due, time_limit=7, soft_time_limit=5)
    app.send_task(f"{name}.echo", kwargs={"args": [], "kwargs": {}}, headers={"mine": "x"}, shadow="s")
    app.send_task(f"{name}.echo", (1,), link=[later], link_error=[later], expires=900, priority="high")
    app.send_task(f"{name}.echo", (1,), serializer="msgpack", ignore_result=True, group_id="g", group_index=3)
    chain(echo, later).apply_async()
    chord([echo.clone(), echo.clone()], later).apply_async()
    Requests(app).request_later(name, "nap", {"seconds": 0}, on_reply="replied", from_agent=name, timeout=60)
    before = raw(broker, name)
    assert len(before) == 11
    lose(broker)
    done = recover(app, name)
    assert (len(done.recovered), done.failed, done.error) == (11, [], None)
    after = raw(broker, name)
    for _, message in after:
        assert message["headers"].pop(RECOVERED_HEADER) == 1
    by_id = {message["headers"]["id"]: (list_, message) for list_, message in after}
    for list_, message in before:
        again_list, again = by_id[message["headers"]["id"]]
        assert again_list == list_
        for each in (message, again):  # not said, and no, are the same to Celery
            each["headers"]["ignore_result"] = bool(each["headers"]["ignore_result"])
            # What nobody reads on Redis: the address of answers, and options that Celery passes on by chance.
            for name in ("reply_to", "argsrepr", "kwargsrepr"):
                each["properties"].pop(name, None)
        assert again["headers"] == message["headers"]
        assert again == message


def test_an_event_is_published_again_to_its_subscriber(broker: Broker, app: AgentApp) -> None:
    """The message to a subscriber has the attributes of the event."""
    agent = broker.name()
    app.registry.declare(agent, ["event.noted"], f"{agent}@gone", 0.001)
    app.subscriptions.declare([Subscription(agent=agent, name="noted", patterns=(f"{agent}.*",))])
    published = EventBus(app).publish(topic=f"{agent}.new", event={"n": 1})
    assert len(published.receipts) == 1
    before = raw(broker, agent)
    lose(broker)
    assert recover(app, agent).recovered == [before[0][1]["headers"]["id"]]
    [(_, again)] = raw(broker, agent)
    assert again["headers"].pop(RECOVERED_HEADER) == 1
    assert again == before[0][1]


def test_the_answer_to_a_lost_request_for_a_reply_comes(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """A request whose answer comes as a message is recovered, and its reply too."""
    asker, asked = broker.name(), declared(broker, app, "echo")
    start(app, asker)
    params = {"to_agent": asked, "method": "echo", "params": {"value": 5}, "timeout": 120}
    message_id = Requests(app).request(asker, "ask_for_reply", params, timeout=20)
    app.receipts.flush()
    lose(broker)
    assert recover(app, asked).recovered == [message_id]
    start(app, asked)
    until(lambda: Requests(app).request(asker, "replies", timeout=20), "the reply")
    [reply] = Requests(app).request(asker, "replies", timeout=20)
    assert (reply["message_id"], reply["result"]) == (message_id, 5)


def test_a_chain_goes_on_behind_its_lost_first_step(
    broker: Broker, app: AgentApp, start: Callable[..., Process], tmp_path: Path
) -> None:
    """The second step is remembered with the first, and runs when that was recovered."""
    agent = declared(broker, app, "command", "echo")
    first = app.signature(f"{agent}.echo", kwargs={"value": 1})
    then = app.signature(f"{agent}.command", args=({"touch": str(tmp_path)},), immutable=True)
    result = chain(first, then).apply_async()
    app.receipts.flush()
    lose(broker)
    assert recover(app, agent).recovered == [result.parent.id]
    start(app, agent)
    until(lambda: list(tmp_path.iterdir()), "the second step")
    assert settled(app, result.id) is MessageStatus.HANDLED
    assert [path.name for path in tmp_path.iterdir()] == [result.id]


def test_a_chain_whose_first_step_runs_twice_goes_on_once(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """It was handed out again while its first worker lived on: both come to its end, and none of them fails."""
    agent = declared(broker, app, "command", "nap")
    first = app.signature(f"{agent}.nap", kwargs={"seconds": 2})
    then = app.signature(f"{agent}.command", args=({},), immutable=True)
    result = chain(first, then).apply_async()
    app.receipts.flush()
    with client(broker) as redis:
        [key] = [key for key in redis.keys(f"{agent_queue(agent).name}*") if not key.endswith(b"bell")]
        copy = json.loads(redis.lindex(key, 0))
        copy["headers"][DELIVERY_COUNT] = 1
        start(app, agent, "-c", "2")

        def begun_a_while_ago() -> bool:
            begun = [event.at for event in record(app, result.parent.id).events if event.event == "delivered"]
            return bool(begun) and datetime.now(UTC) - begun[0] > timedelta(seconds=0.5)

        until(begun_a_while_ago, "the first attempt")
        redis.lpush(key, json.dumps(copy))  # it ends so much later that what follows is known to be on its way
    until(lambda: told(app, result.parent.id).count("delivered") == 2, "both attempts")
    until(lambda: settled_now(app, result.id), "the second step")
    with client(broker) as redis:
        until(lambda: redis.hlen("unacked") == 0 and waiting(app, agent) == 0, "the end of everything")
    events = [event.event for event in record(app, result.parent.id).events]
    assert (events.count("delivered"), events.count("handled"), events.count("failed")) == (2, 1, 0)
    assert told(app, result.id).count("handled") == 1
    assert "sent already" not in (broker.folder / f"{agent}.log").read_text()


def settled_now(app: AgentApp, message_id: str) -> bool:
    with suppress(UnknownMessage):
        return MessageBus(app).receipt(message_id).status.final
    return False


def test_a_reply_that_was_written_down_and_not_published_comes(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """The worker that was about to publish it was killed: its handler gets it all the same."""
    agent = broker.name()
    start(app, agent)
    asked_at = datetime.now(UTC).isoformat()
    payload = {"message_id": "asked", "asked_at": asked_at, "result": 7, "error": None}
    reply = Message(
        from_agent="other", to_agent=agent, message_type=MessageType.RESPONSE, payload=payload, retention=KEPT
    )
    app.receipts.pending([(reply, "replied")])()
    assert recover(app, agent).recovered == [reply.message_id]
    assert settled(app, reply.message_id) is MessageStatus.HANDLED
    [got] = Requests(app).request(agent, "replies", timeout=20)
    assert (got["message_id"], got["result"]) == ("asked", 7)


# --- what is not


def test_a_dry_run_changes_nothing(either: AgentApp, broker: Broker) -> None:
    """It tells what would be published, and writes and publishes nothing."""
    agent = declared(broker, either)
    ids = send(either, agent, 3)
    lose(broker)
    events = [told(either, id_) for id_ in ids]
    done = recover(either, agent, dry_run=True)
    assert (done.looked_for, sorted(done.recovered)) == (3, sorted(ids))
    assert waiting(either, agent) == 0
    assert [told(either, id_) for id_ in ids] == events
    assert recover(either, agent, limit=2).unfinished
    assert waiting(either, agent) == 2
    assert len(recover(either, agent).recovered) == 1
    assert waiting(either, agent) == 3


def test_what_nobody_wants_any_more_is_not_published(either: AgentApp, broker: Broker) -> None:
    """Neither what has expired, nor a request that was awaited, nor what has ended, nor what is too new."""
    agent = declared(broker, either, "command", "echo")
    send(either, agent, 1, ttl_seconds=0.2)
    with pytest.raises(RequestTimeout):
        Requests(either).request(agent, "echo", {"value": 1}, timeout=0.3)
    streamed = Requests(either).stream(agent, "echo", {"value": 1}, timeout=60)
    [ended, erased] = send(either, agent, 2)
    note(either.receipts, record_message(either, ended), MessageEvent.DELIVERED, MessageEvent.HANDLED)
    either.receipts.flush()
    lose(broker)
    found = Recovery(either, after=30, pause=0.1).run(agent=agent)
    assert (found.looked_for, found.recovered) == (0, [])
    assert recover(either, agent).recovered == [erased]
    assert waiting(either, agent) == 1
    streamed.close()


def test_what_was_refused_together_with_another_is_not_published(either: AgentApp, broker: Broker) -> None:
    """One of two messages was sent before: both are refused, and the new one has an end."""
    agent = declared(broker, either)
    old, new = (Message(from_agent="tests", to_agent=agent) for _ in range(2))
    MessageBus(either).send(old)
    either.receipts.flush()
    with pytest.raises(InvalidMessage, match="sent already"):
        MessageBus(either).send_many([new, old])
    receipt = MessageBus(either).receipt(new.message_id)
    assert (receipt.status, str(receipt.error)[:14]) == (MessageStatus.FAILED, "not published:")
    lose(broker)
    assert recover(either, agent).recovered == [old.message_id]


def test_what_went_another_way_is_not_published(either: AgentApp, broker: Broker) -> None:
    """A message that was only written down is nobody's to publish."""
    agent = declared(broker, either)
    message = Message(from_agent="tests", to_agent=agent)
    assert MessageAuditTrail(either.ledger).log_message(message)
    assert recover(either, agent).recovered == []


def test_two_runs_at_once_publish_once(either: AgentApp, broker: Broker) -> None:
    """One of them does it, or they share it: no message is published twice."""
    after = 4  # seconds: what one run claims it must have published by then, or it counts as lost again
    agent = declared(broker, either)
    ids = send(either, agent, 300)
    lose(broker)
    begin = threading.Barrier(4)

    def run(_: int) -> list[str]:
        with closing(broker.app(waooaw_database_url=either.database.url.render_as_string(False))) as app:
            begin.wait()
            return Recovery(app, after=after, pause=0.1).run(agent=agent).recovered

    until(
        lambda: Recovery(either, after=after, pause=0).run(agent=agent, dry_run=True).looked_for == 300,
        "their age",
    )
    with ThreadPoolExecutor(4) as threads:
        recovered = [id_ for done in threads.map(run, range(4)) for id_ in done]
    assert sorted(recovered) == sorted(ids)
    assert waiting(either, agent) == 300
    assert recover(either, agent).recovered == []


def test_what_was_told_since_the_broker_was_asked_is_left_to_the_next_run(
    either: AgentApp, broker: Broker
) -> None:
    """However long a run takes from its look to its claim, it publishes nothing that another one did meanwhile."""
    [id_] = send(either, declared(broker, either))
    rules = LostMessageRules(after=timedelta(0), lost=timedelta(hours=1), exact=True)
    looked_at = datetime.now(UTC)
    for asked_at, found in ((looked_at, 1), (looked_at, 0), (None, 1)):
        with claiming(either.database) as connection:
            lost = judge(connection, [id_], rules, asked_at or datetime.now(UTC))
            claim(connection, lost)
        assert len(lost) == found


def test_a_healthy_broker_is_left_alone_under_load(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """A backlog, retries, priorities and a busy worker: however often it is looked, nothing counts as lost."""
    agent = broker.name()
    start(app, agent, "-c", "2")
    ids: list[str] = []
    done = threading.Event()
    recovered: list[str] = []

    def look() -> None:
        with closing(broker.app()) as mine:
            while not done.is_set():
                recovered.extend(recover(mine, agent).recovered)

    with ThreadPoolExecutor(1) as threads:
        looking = threads.submit(look)
        try:
            for number in range(30):
                do = {"sleep": 0.005} | ({"fail_times": 1, "countdown": 0.2} if number % 5 == 0 else {})
                ids += send(app, agent, 20, do, priority=list(Priority)[number % 4])
            for id_ in ids:
                assert settled(app, id_) is MessageStatus.HANDLED
        finally:
            done.set()
        looking.result(30)
    assert recovered == []
    assert not [id_ for id_ in ids if {"recovered", "duplicate"} & set(told(app, id_))]


@pytest.mark.parametrize("prefix", ["", "mine:"])
def test_only_what_is_missing_is_published(
    broker: Broker, app: AgentApp, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In long queues of all priorities, among what a worker holds, and with a prefix of all keys."""
    monkeypatch.setattr(broker_module, "CHUNK_BYTES", 20_000)
    with closing(broker.app(broker_transport_options={"global_keyprefix": prefix})) as mine:
        agent = declared(broker, mine)
        ids = [id_ for priority in Priority for id_ in send(mine, agent, 500, priority=priority)]
        with mine.connection_for_write() as connection, connection.channel() as channel:
            held = [channel.basic_get(agent_queue(agent).name) for _ in range(30)]
            assert all(held)
            assert recover(mine, agent).recovered == []
            lost = set()
            with client(broker) as redis:
                for key in redis.keys(f"{prefix}{agent_queue(agent).name}*"):
                    for index in (3, 250) if not key.endswith(b"bell") else ():
                        item = redis.lindex(key, index)
                        lost.add(json.loads(item)["headers"]["id"])
                        assert redis.lrem(key, 1, item)
            assert len(lost) == 8
            assert set(recover(mine, agent).recovered) == lost <= set(ids)


def test_an_id_in_a_body_is_not_the_messages(broker: Broker, app: AgentApp) -> None:
    """A message that tells of another does not stand in for it."""
    agent = declared(broker, app)
    [lost] = send(app, agent)
    lose(broker)
    text = json.dumps({"id": lost})
    send(app, agent, 1, {"id": lost, "text": text, "texts": [text, json.dumps(text)]})
    assert recover(app, agent).recovered == [lost]


def test_what_is_lost_again_and_again_has_failed(broker: Broker, app: AgentApp) -> None:
    """It is recovered five times, and then it has one end, which says so."""
    agent = declared(broker, app)
    [message_id] = send(app, agent)
    for _ in range(MAX_RECOVERIES):
        lose(broker)
        assert recover(app, agent).recovered == [message_id]
    lose(broker)
    done = recover(app, agent)
    assert (done.recovered, done.given_up) == ([], [message_id])
    receipt = MessageBus(app).receipt(message_id)
    assert receipt.status is MessageStatus.FAILED
    assert receipt.error == "lost: it was recovered 5 times, and is not in the broker"


def test_a_broker_that_is_away_is_told_once(
    broker: Broker, app: AgentApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends, with one line, and the messages are as they were."""
    agent = declared(broker, app)
    [message_id] = send(app, agent)
    with closing(broker.app(broker_url="redis://127.0.0.1:1/0")) as cut_off:
        done = recover(cut_off, agent)
    assert done.error is not None
    assert "the broker does not answer" in done.error
    assert [each.action for each in caplog.records if hasattr(each, "action")] == ["not_recovered"]  # type: ignore[attr-defined]
    assert told(app, message_id) == ["sent"]


@pytest.mark.rabbitmq
def test_a_broker_that_froze_holds_no_recovery_up(rabbitmq: Broker) -> None:
    """The line freezes between its two looks: the run ends in time, and says why it did nothing."""
    with ThreadPoolExecutor(1) as pool, proxied(rabbitmq.url) as line:
        url = f"amqp://guest:guest@127.0.0.1:{line.port}//"
        with closing(rabbitmq.app()) as app:
            agent = declared(rabbitmq, app)
            send(app, agent)
            with app.connection_for_write() as connection, connection.channel() as channel:
                agent_queue(agent)(channel).purge()
        with closing(rabbitmq.app(broker_url=url)) as app:
            run = pool.submit(Recovery(app, after=0, pause=2.0).run, agent=agent)
            until(lambda: line.connections, "its connection")
            time.sleep(1.0)  # between the looks
            line.freeze(also_new=True)
            done = run.result(PATIENCE)
    assert "the broker does not answer" in str(done.error)


def test_what_waits_in_this_computers_spool_is_not_lost(broker: Broker, app: AgentApp) -> None:
    """A worker has told how a message ended, and the ledger does not have that yet."""
    agent = declared(broker, app)
    known, lost = send(app, agent, 2)
    lose(broker)
    with closing(broker.app(waooaw_spool_folder=str(broker.folder / "elsewhere"))) as other:
        fact = MessageFact(
            message_id=known, event=MessageEvent.HANDLED, message=record_message(app, known), handler="command"
        )
        other.ledger.spool.append([event_row(fact, other.settings.retention)])
        assert recover(other, agent, dry_run=True).recovered == [lost]


# --- duplicates


def double(broker: Broker, agent: str, **headers: Any) -> None:
    """Put a copy of what waits for an agent behind it, as a publish does that was repeated."""
    with client(broker) as redis:
        [key] = [key for key in redis.keys(f"{agent_queue(agent).name}*") if not key.endswith(b"bell")]
        message = json.loads(redis.lindex(key, 0))
        message["headers"] |= headers
        redis.lpush(key, json.dumps(message))


@pytest.mark.parametrize("kind", ["strict", "batched", "redis"])
def test_a_message_that_comes_twice_is_handled_once(
    broker: Broker, start: Callable[..., Process], kind: str
) -> None:
    """The copy is acknowledged and told of, and the status stays."""
    settings: dict[str, Any] = {"waooaw_database_url": None} if kind == "redis" else {"waooaw_audit_mode": kind}
    other = broker if kind != "redis" else Broker(broker.url, broker.redis_url, broker.folder)
    with closing(other.app(**settings)) as app:
        agent = declared(other, app)
        [message_id] = send(app, agent)
        # In batched mode nobody asks unless something says that it came before.
        double(broker, agent, **({RECOVERED_HEADER: 1} if kind == "batched" else {}))
        start(app, agent, on=other, **{name: value for name, value in settings.items() if value})
        assert settled(app, message_id) is MessageStatus.HANDLED
        until(lambda: waiting(app, agent) == 0, "the end of the copy")
        with client(broker) as redis:
            until(lambda: redis.hlen("unacked") == 0, "its acknowledgement")
        receipt = MessageBus(app).receipt(message_id)
        assert (receipt.status, receipt.attempts) == (MessageStatus.HANDLED, 1)
        seen = Requests(app).request(agent, "seen", timeout=20)
        assert [each["message_id"] for each in seen] == [message_id]
        if kind == "redis":
            return
        until(lambda: "duplicate" in told(app, message_id), "the note of the copy")
        events = Counter(told(app, message_id))
        assert (events["handled"], events["duplicate"]) == (1, 1)


def test_whoever_begins_hears_that_it_has_ended(either: AgentApp) -> None:
    """A retry is begun, and so is what nothing is known of; what is told late is written as it was."""
    agent = "w-1"
    message = Message(from_agent="tests", to_agent=agent, retention=either.settings.retention)
    either.receipts.pending([(message, "command")])()

    def begin(attempt: int) -> bool:
        about: dict[str, Any] = {"message": message, "handler": "command", "worker": "w@h", "attempt": attempt}
        return either.receipts.begin(
            MessageFact(message_id=message.message_id, event=MessageEvent.DELIVERED, **about), doubtful=False
        )

    assert begin(1)
    note(either.receipts, message, MessageEvent.RETRIED)
    assert begin(2)
    note(either.receipts, message, MessageEvent.HANDLED, attempt=2)
    assert not begin(1)
    note(either.receipts, message, MessageEvent.DELIVERED, worker="late@h")
    events = ["delivered", "retried", "delivered", "handled", "duplicate", "delivered"]
    assert told(either, message.message_id) == events
    assert MessageBus(either).receipt(message.message_id).status is MessageStatus.HANDLED


@pytest.mark.parametrize(
    ("method", "params", "answer"),
    [("echo", {"value": 7}, ("SUCCESS", "7")), ("fail", {"text": "no"}, ("FAILURE", "no"))],
)
def test_a_copy_of_a_request_leaves_its_answer(
    broker: Broker, app: AgentApp, start: Callable[..., Process], method: str, params: Any, answer: Any
) -> None:
    """Who waits for it, or comes for it later, is not told that it was revoked."""
    agent = declared(broker, app, method)
    result = app.send_task(f"{agent}.{method}", kwargs=params)
    app.receipts.flush()
    double(broker, agent)
    start(app, agent)
    until(lambda: "duplicate" in told(app, result.id), "the copy")
    assert (result.state, str(result.result)) == answer


def test_a_handler_that_replaces_itself_is_no_copy(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """The replacement has the same id, and is handled."""
    agent = broker.name()
    start(app, agent)
    params = {"to_agent": agent, "method": "echo", "params": {"value": 3}}
    assert Requests(app).request(agent, "let_another_answer", params, timeout=20) == 3


def test_while_the_ledger_is_away_it_is_handled(broker: Broker, tmp_path: Path) -> None:
    """Nobody knows whether it has ended: twice is better than never."""
    url = f"sqlite:///{tmp_path}/no/such/folder.sqlite"
    for mode in ("strict", "batched"):
        settings = {
            "waooaw_database_url": url,
            "waooaw_audit_mode": mode,
            "waooaw_spool_folder": str(tmp_path / mode),
        }
        with closing(broker.app(**settings)) as app:
            message = Message(from_agent="tests", to_agent="nobody", retention=app.settings.retention)
            fact = MessageFact(
                message_id=message.message_id, event=MessageEvent.DELIVERED, message=message, handler="command"
            )
            began = time.monotonic()
            assert app.receipts.begin(fact, doubtful=True)
            assert time.monotonic() - began < 10


def test_beat_and_the_shell_recover(broker: Broker, app: AgentApp, tmp_path: Path) -> None:
    """The system's worker looks again and again; and whoever does not want to wait says so."""
    agent = declared(broker, app)
    env = os.environ | {
        "CELERY_BROKER_URL": broker.url,
        "WAOOAW_DATABASE_URL": broker.database_url or "",
        "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
        "WAOOAW_RECOVER_SECONDS": "1",
        "WAOOAW_RECOVER_AFTER": "0.5",
    }
    [message_id] = send(app, agent)
    lose(broker)
    shell = [sys.executable, "-m", "waooaw_celery", "recover", "--agent", agent]
    until(lambda: recover(app, agent, dry_run=True).recovered, "its age")

    def run(*options: str) -> str:
        return subprocess.run([*shell, *options], env=env, capture_output=True, text=True, check=True).stdout

    assert message_id in run("--dry-run")
    said = json.loads(run("--json"))
    assert (said["looked_for"], said["recovered"], said["error"]) == (1, [message_id], None)
    lose(broker)
    celery = [sys.executable, "-m", "celery", "-A", "beat_schedule"]
    beat = [*celery, "beat", "--schedule", str(tmp_path / "schedule")]
    system = [*celery, "worker", "-n", f"{agent}-system@%h", "-c", "1", "--without-mingle", "--without-gossip"]
    processes = [spawn(command, log=tmp_path / "log", env=env, cwd=ROOT) for command in (beat, system)]
    try:
        until(lambda: waiting(app, agent) == 1, "its recovery", 40)
    finally:
        end_all(processes)
    assert told(app, message_id).count("recovered") == 2
    assert "the broker had lost some" in (tmp_path / "log").read_text()


def test_an_unknown_agent_is_an_error(app: AgentApp) -> None:
    """A name that cannot be one is told."""
    with pytest.raises(WaooawError, match="agent"):
        recover(app, "Not A Name")
