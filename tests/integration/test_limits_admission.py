"""Admission control in the publisher: every send is counted, and a refused message leaves only its refusal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group
from support import Broker, queue_length, settled, until

from waooaw_celery import (
    AgentApp,
    Message,
    MessageAuditTrail,
    MessageBus,
    MessageStatus,
    MessageType,
    Priority,
    RateLimitExceeded,
    RequestResponseHandler,
    aio,
)
from waooaw_celery.app.publishing import publisher as publisher_module
from waooaw_celery.errors import InvalidMessage, NoHandler, StoreUnavailable, UnknownAgent
from waooaw_celery.ledger import refusals as refusals_module
from waooaw_celery.testing.embedded import end_all

Limited = Callable[..., AgentApp]


@pytest.fixture
def limited(broker: Broker) -> Iterator[Limited]:
    """Return a factory of applications, each with its own sender, by default limited to three messages an hour."""
    apps: list[AgentApp] = []

    def make(limit: str | None = "3/hour", **config: Any) -> AgentApp:
        sender = f"sender-{uuid4().hex[:8]}"
        settings = {"waooaw_sender": sender, "waooaw_agents": [sender], "waooaw_rate_limit": limit}
        apps.append(broker.app(**(settings | config)))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def limited_worker(broker: Broker, app: AgentApp) -> Iterator[str]:
    """Start a worker of an agent that may send one message an hour; return the agent's name."""
    name = broker.name()
    process = broker.start(name, app, waooaw_rate_limit="1/hour")
    yield name
    end_all([process])


def sender_of(app: AgentApp) -> str:
    """Return the name of the application's sender."""
    assert app.settings.sender is not None
    return app.settings.sender


def used(app: AgentApp) -> int:
    """Return the number of messages counted for the sender."""
    return app.limiter.status(sender_of(app))[0].used


def message(app: AgentApp, to: str, **fields: Any) -> Message:
    """Return a message from the sender."""
    return Message(**({"from_agent": sender_of(app), "to_agent": to, "payload": {}} | fields))


SENDS: dict[str, Callable[[AgentApp, str], Any]] = {
    "send": lambda app, to: MessageBus(app).send(message(app, to)),
    "send_many": lambda app, to: MessageBus(app).send_many([message(app, to)]),
    "broadcast": lambda app, to: MessageBus(app).broadcast(sender_of(app), [to], {}),
    "delay": lambda app, to: app.signature(f"{to}.command", args=({},)).delay(),
    "apply_async": lambda app, to: app.signature(f"{to}.command", args=({},)).apply_async(priority=Priority.LOW),
    "send_task": lambda app, to: app.send_task(f"{to}.command", ({},)),
    "countdown": lambda app, to: app.send_task(f"{to}.command", ({},), countdown=0.1),
    "chain": lambda app, to: chain(echo(app, to, 1), echo(app, to, immutable=True)).delay(),
    "group": lambda app, to: group([echo(app, to, 1)]).delay(),
    "request": lambda app, to: RequestResponseHandler(app).request(to, "echo", {"value": 1}, timeout=20),
    "request_later": lambda app, to: RequestResponseHandler(app).request_later(
        to, "echo", {"value": 1}, on_reply=f"{sender_of(app)}.seen", timeout=20
    ),
    "stream": lambda app, to: list(RequestResponseHandler(app).stream(to, "echo", {"value": 1}, timeout=20)),
    "send_request": lambda app, to: RequestResponseHandler(app).send_request(to, "echo", {"value": 1}, timeout=20),
}


def echo(app: AgentApp, to: str, value: Any = 0, immutable: bool = False) -> Any:
    """Return a signature of the agent's ``echo`` handler."""
    return app.signature(f"{to}.echo", kwargs={"value": value}, immutable=immutable)


@pytest.mark.parametrize("method", SENDS)
def test_every_send_is_counted_and_refused(limited: Limited, probe: str, method: str) -> None:
    """Three messages pass and are counted; the fourth raises in the caller."""
    app = limited()
    for count in (1, 2, 3):
        SENDS[method](app, probe)
        assert used(app) == count
    with pytest.raises(RateLimitExceeded, match="3/hour") as caught:
        SENDS[method](app, probe)
    assert caught.value.agent == sender_of(app)
    assert 3590 < caught.value.retry_after < 3601
    assert used(app) == 3
    if app.settings.database_url is not None:  # a refused message is not recorded
        assert len(MessageAuditTrail(app.ledger).query(from_agent=sender_of(app)).records) == 3


def test_the_members_of_a_group_are_counted_one_by_one(limited: Limited, probe: str) -> None:
    """Celery publishes them one after the other: three pass, and the fourth raises."""
    app = limited()
    with pytest.raises(RateLimitExceeded):
        group([echo(app, probe, number) for number in range(5)]).delay()
    assert used(app) == 3


def test_without_a_limit_nothing_is_counted(limited: Limited, probe: str) -> None:
    """By default no limiter is made."""
    app = limited(None)
    for _ in range(5):
        MessageBus(app).send(message(app, probe))
    assert "admission_control" in vars(app.components)
    assert "limiter" not in vars(app.components)


@pytest.mark.parametrize("how", ["send_many", "broadcast"])
def test_a_batch_passes_as_a_whole(
    limited: Limited, broker: Broker, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four messages exceed a limit of three: none is recorded, published or counted, even in a split batch."""
    monkeypatch.setattr(publisher_module, "MAX_BATCH_SIZE", 2)
    names = [broker.name() for _ in range(4)]
    app = limited(waooaw_agents=names)
    bus = MessageBus(app)

    def send(count: int) -> None:
        if how == "broadcast":
            bus.broadcast(sender_of(app), names[:count], {})
        else:
            bus.send_many(message(app, name) for name in names[:count])

    with pytest.raises(RateLimitExceeded, match=r"3/hour never allows .* to send 4 messages at once"):
        send(4)
    send(2)
    with pytest.raises(RateLimitExceeded, match="try again"):
        send(2)
    assert used(app) == 2
    assert [queue_length(app, name) for name in names] == [1, 1, 0, 0]
    if broker.database_url is not None:
        assert len(MessageAuditTrail(app.ledger).query(from_agent=sender_of(app)).records) == 2


def test_an_invalid_message_is_not_counted(limited: Limited, probe: str) -> None:
    """Nothing is counted for an unknown agent, a missing handler, an invalid payload or an expired message."""
    app = limited()
    expired = message(app, probe, ttl_seconds=0.001)
    time.sleep(0.002)
    for error, send in (
        (UnknownAgent, lambda: MessageBus(app).send(message(app, "nobody-at-all"))),
        (NoHandler, lambda: MessageBus(app).send(message(app, probe, message_type=MessageType.QUERY))),
        (InvalidMessage, lambda: app.send_task(f"{probe}.echo", kwargs={"value": {1}})),
        (InvalidMessage, lambda: MessageBus(app).send(expired)),
        (UnknownAgent, lambda: app.send_task(f"{probe}.no_such_method")),
    ):
        with pytest.raises(error):
            send()
    assert used(app) == 0


def test_plain_tasks_are_not_counted(limited: Limited, broker: Broker) -> None:
    """Tasks of the application and of the package are not messages of an agent."""
    app = limited("1/hour", task_default_queue=broker.name())
    for _ in range(3):
        app.send_task("billing.reports.total", (1, 2))
        app.send_task("waooaw.sweep")
    assert used(app) == 0


def test_a_send_with_wait_waits_for_the_limit(limited: Limited, probe: str) -> None:
    """With two a second, five messages take two seconds; one whose wait is too short raises."""
    app = limited("2/second")
    bus = MessageBus(app)
    began = time.monotonic()
    for _ in range(3):
        bus.send(message(app, probe), wait=10)
    bus.send_many([message(app, probe)], wait=10)
    app.send_task(f"{probe}.command", ({},), wait=10)
    assert 2 <= time.monotonic() - began < 10
    bus.broadcast(sender_of(app), [probe], {}, wait=10)
    with pytest.raises(RateLimitExceeded):
        bus.send(message(app, probe), wait=0.01)
    with pytest.raises(InvalidMessage, match="wait must be"):
        bus.send(message(app, probe), wait=-1)


def test_urgent_messages_use_the_reserve(limited: Limited, probe: str) -> None:
    """With a reserve of half, the third of four messages passes only when it is URGENT."""
    app = limited("4/hour", waooaw_urgent_reserve=0.5)
    bus = MessageBus(app)
    bus.send_many([message(app, probe), message(app, probe, priority=Priority.HIGH)])
    with pytest.raises(RateLimitExceeded):
        bus.send(message(app, probe, priority=Priority.HIGH))
    bus.send(message(app, probe, priority=Priority.URGENT))
    app.send_task(f"{probe}.command", ({},), priority="urgent")
    with pytest.raises(RateLimitExceeded):
        bus.send(message(app, probe, priority=Priority.URGENT))


def test_rules_for_recipients_and_types_apply_to_sends(limited: Limited, probe: str, other: str) -> None:
    """One message an hour to each agent, and no more than one ACK in all."""
    app = limited("1/hour to *; 1/hour of ack; 2/hour to " + probe)
    bus = MessageBus(app)
    bus.send(message(app, other))
    with pytest.raises(RateLimitExceeded, match=f"1/hour to {other}"):
        bus.send(message(app, other))
    bus.send(message(app, probe, message_type=MessageType.ACK))
    with pytest.raises(RateLimitExceeded, match="1/hour of ack"):
        bus.send(message(app, probe, message_type=MessageType.ACK))
    bus.send(message(app, probe))


def test_a_check_before_a_send_counts_nothing(limited: Limited, probe: str) -> None:
    """``check_limit`` followed by ``send_message`` counts the message once, when it is sent."""
    app = limited()
    rate_limiter, message_bus = aio.RateLimiter(app.limiter), aio.MessageBus(app)

    async def example() -> None:
        for _ in range(3):
            await rate_limiter.check_limit(sender_of(app))
            await message_bus.send_message(message(app, probe))
        with pytest.raises(RateLimitExceeded):
            await rate_limiter.check_limit(sender_of(app))
        assert (await rate_limiter.status(sender_of(app)))[0].remaining == 0
        assert sender_of(app) in [status.agent for status in await rate_limiter.near()]
        await rate_limiter.set_quota(sender_of(app), "4/hour")
        await rate_limiter.acquire(sender_of(app), wait=1)
        await rate_limiter.reset(sender_of(app))
        await rate_limiter.acquire(sender_of(app), 4)

    asyncio.run(asyncio.wait_for(example(), 30))


def test_many_coroutines_wait_for_the_limit_on_one_event_loop(limited: Limited, probe: str) -> None:
    """Forty wait, more than there are threads, and a message of another sender passes meanwhile."""
    app = limited("20/4 seconds", waooaw_rate_limits={"hurried": "unlimited"})
    limiter, bus = aio.RateLimiter(app.limiter), aio.MessageBus(app)

    async def send_all() -> float:
        began = time.monotonic()
        calls = [limiter.acquire(sender_of(app), wait=60) for _ in range(20)]
        calls += [bus.send(message(app, probe), wait=60) for _ in range(20)]
        waiting = [asyncio.ensure_future(call) for call in calls]
        while sum(call.done() for call in waiting) < 20:
            await asyncio.sleep(0.01)
        await bus.send(message(app, probe, from_agent="hurried"))
        assert sum(call.done() for call in waiting) == 20
        await asyncio.gather(*waiting)
        return time.monotonic() - began

    assert asyncio.run(asyncio.wait_for(send_all(), 60)) >= 4
    if app.settings.database_url is not None:
        assert MessageAuditTrail(app.ledger).refusals(sender_of(app)) == []


def test_a_quota_set_at_run_time_applies_to_a_running_worker(
    app: AgentApp, limited_worker: str, other: str
) -> None:
    """Its handler's second message is refused; after the quota is raised, the next one passes."""
    bus = MessageBus(app)

    def forward() -> str:
        sent = bus.send(Message(from_agent="tests", to_agent=limited_worker, payload={"forward_to": other}))
        settled(app, sent.message_id)
        return bus.receipt(sent.message_id).error or ""

    assert forward() == ""
    assert "RateLimitExceeded" in forward()
    app.limiter.set_quota(limited_worker, "2/hour")
    assert forward() == ""
    assert "2/hour" in forward()
    app.limiter.set_quota(limited_worker, None)
    app.limiter.reset(limited_worker)
    assert forward() == ""


def test_continuations_are_not_limited(app: AgentApp, limited_worker: str) -> None:
    """Retries, steps of a chain, callbacks and a chord's body pass although the worker has used up its limit."""
    app.limiter.set_quota(limited_worker, "1/hour")
    app.limiter.acquire(limited_worker)  # the limit is used up
    bus = MessageBus(app)
    retried = bus.send(Message(from_agent="tests", to_agent=limited_worker, payload={"fail_times": 2}))
    assert settled(app, retried.message_id) is MessageStatus.HANDLED

    def step(value: int) -> Any:
        return echo(app, limited_worker, value, immutable=True)

    assert chain(*(step(number) for number in range(5))).delay().get(timeout=20) == 4
    assert chord([step(1), step(2)], step(3)).delay().get(timeout=20) == 3
    linked = step(1)
    linked.link(app.signature(f"{limited_worker}.command", args=({"linked": 1},), immutable=True))
    linked.delay()

    def was_linked() -> bool:
        seen = RequestResponseHandler(app).request(limited_worker, "seen", timeout=20)
        return any(facts["payload"] == {"linked": 1} for facts in seen)

    until(was_linked, "the callback")
    sent = bus.send(
        Message(from_agent="tests", to_agent=limited_worker, payload={"forward_to": limited_worker, "fail": "x"})
    )
    settled(app, sent.message_id)
    assert "RateLimitExceeded" in (bus.receipt(sent.message_id).error or "")


@pytest.mark.parametrize("broker", ["ledger"], indirect=True)
def test_refusals_are_recorded_in_few_rows(limited: Limited, probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred refusals within a minute take two rows, with agent, rule and count."""
    clock = [time.time() // 60 * 60 + 1]
    app = limited("1/hour; 1/minute to *")
    monkeypatch.setattr(app.reference_clock, "now", lambda: datetime.fromtimestamp(clock[0], UTC))
    trail, name = MessageAuditTrail(app.ledger), sender_of(app)
    MessageBus(app).send(message(app, probe))
    for _ in range(100):
        for batch in ([message(app, probe)], [message(app, probe), message(app, probe)]):
            with pytest.raises(RateLimitExceeded):
                MessageBus(app).send_many(batch)
    found = trail.refusals(name)
    assert sum(refusal.count for refusal in found) == 300
    assert {refusal.rule for refusal in found} == {"1/hour"}
    assert rows(app, name) == 2
    clock[0] += 60
    for _ in range(100):
        with pytest.raises(RateLimitExceeded):
            MessageBus(app).send(message(app, probe))
    assert [refusal.count for refusal in trail.refusals(name)] == [100, 300]
    assert rows(app, name) == 4
    assert len(trail.query(from_agent=name).records) == 1
    assert name not in [refusal.agent for refusal in trail.refusals("somebody-else")]
    monkeypatch.setattr(refusals_module, "MAX_ROWS", 1)
    app.ledger.refused("yet-another", "1/hour", 5)
    assert [refusal.count for refusal in trail.refusals("yet-another")] == []


def rows(app: AgentApp, agent: str) -> int:
    """Return the number of rows of an agent's refusals."""
    with app.database.begin("count") as connection:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM waooaw_refusals WHERE agent = %(agent)s", {"agent": agent}
        )
        return int(found.scalar_one())


@pytest.mark.parametrize("broker", ["ledger"], indirect=True)
def test_a_limit_that_cannot_be_checked_sends_nothing_unless_fail_open(broker: Broker, limited: Limited) -> None:
    """By default nothing is recorded or published; with ``fail_open`` the message is sent."""
    absent = broker.name()
    nowhere: dict[str, Any] = {"waooaw_redis_url": "redis://127.0.0.1:1/0", "waooaw_agents": [absent]}
    app = limited(**nowhere)
    with pytest.raises(StoreUnavailable, match="rate limit"):
        MessageBus(app).send(message(app, absent))
    assert not MessageAuditTrail(app.ledger).query(from_agent=sender_of(app)).records
    assert queue_length(app, absent) == 0
    app = limited(**nowhere, waooaw_rate_limit_fail_open=True)
    MessageBus(app).send(message(app, absent))
    assert queue_length(app, absent) == 1
