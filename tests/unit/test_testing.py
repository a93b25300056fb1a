"""The test harness: what happens to messages in it, its clock, its failures and its assertions."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from celery import current_app
from celery.schedules import crontab

from waooaw_celery import Agent, Message, MessageStatus, MessageType, Priority, aio, create_app
from waooaw_celery.agents import (
    Everyone,
    Flow,
    Response,
    RetryPolicy,
    Workflows,
    WorkflowStatus,
    schedule_workflow,
)
from waooaw_celery.errors import (
    CircularRequest,
    ConfigurationError,
    InvalidArguments,
    NotSettled,
    RateLimitExceeded,
    RemoteError,
    RequestTimeout,
    UnknownAgent,
    UnknownMethod,
)
from waooaw_celery.testing import Harness, Killed, harness
from waooaw_celery.testing.simulation import simulation


@pytest.fixture
def agents_app() -> Iterator[Harness]:
    with harness() as found:
        yield found


# --- messages


def test_urgent_messages_are_handled_first_and_equal_ones_in_the_order_of_sending(agents_app: Harness) -> None:
    """Messages wait until the agents run; the most urgent is handled first, and equal ones in order."""
    worker, seen = agents_app.agent("worker"), []
    worker.on(MessageType.COMMAND)(lambda message: seen.append(message.payload))
    for payload, priority in (("n1", "NORMAL"), ("l", "LOW"), ("n2", "NORMAL"), ("u", "URGENT"), ("h", "HIGH")):
        agents_app.send("worker", payload, priority=Priority[priority])
    assert seen == []
    agents_app.run()
    assert seen == ["u", "h", "n1", "n2", "l"]


def test_a_message_to_a_stopped_agent_expires_when_the_clock_passes_its_time(agents_app: Harness) -> None:
    """The messages of a stopped agent wait, and expire by the clock of the test."""
    agents_app.stub("worker", command=None)
    with agents_app.stopped("worker"):
        early = agents_app.send("worker", 1, ttl_seconds=60)
        late = agents_app.send("worker", 2, ttl_seconds=600)
        agents_app.clock.advance(minutes=2)
        assert agents_app.receipt(early).status is MessageStatus.EXPIRED
    agents_app.run()
    assert agents_app.receipt(late).status is MessageStatus.HANDLED
    assert [record.payload for record in agents_app.handled()] == [2]


def test_a_retry_happens_when_its_time_has_come(agents_app: Harness) -> None:
    """A handler that fails is tried again after the pause of its policy, and not before."""
    worker, attempts = agents_app.agent("worker"), []

    @worker.on(MessageType.COMMAND, retries=RetryPolicy(attempts=3, first_delay=60, jitter=False))
    def work(message: Message) -> None:
        attempts.append(datetime.now(UTC))
        if len(attempts) < 2:
            raise ConnectionError("not yet")

    receipt = agents_app.send("worker", 1, ttl_seconds=None)
    agents_app.run()
    agents_app.clock.advance(seconds=30)
    assert len(attempts) == 1
    agents_app.clock.advance(seconds=31)
    assert timedelta(seconds=59) < attempts[1] - attempts[0] < timedelta(seconds=62)
    assert agents_app.receipt(receipt).status is MessageStatus.HANDLED
    assert agents_app.receipt(receipt).attempts == 2


def test_a_message_that_fails_for_good_becomes_a_dead_letter_that_can_be_retried(agents_app: Harness) -> None:
    """A message that is rejected is kept as a dead letter, and its retry is handled."""
    agents_app.stub("worker", command=None)
    agents_app.fail_next("worker.command", ValueError("bad input"))
    agents_app.send("worker", {"id": 1})
    agents_app.run()
    [letter] = agents_app.app.dead_letters.list(agent="worker")
    assert "bad input" in letter.reason
    [outcome] = agents_app.app.dead_letters.retry([letter])
    assert outcome.refused is None
    agents_app.assert_handled(to="worker", where={"id": 1}, times=1)
    assert agents_app.app.dead_letters.list(agent="worker") == []


def test_an_unknown_agent_and_wrong_arguments_are_refused_at_the_sender(agents_app: Harness) -> None:
    """What a sender does wrong is an error where it sends, as with real servers."""
    worker = agents_app.agent("worker")

    @worker.method
    def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(UnknownAgent):
        agents_app.send("nobody", 1)
    with pytest.raises(UnknownMethod):
        agents_app.request("worker", "subtract", {})
    with pytest.raises(InvalidArguments):
        agents_app.request("worker", "add", {"a": "one", "b": 2})
    assert agents_app.request("worker", "add", {"a": 1, "b": 2}) == 3


def test_a_cancelled_message_is_not_handled(agents_app: Harness) -> None:
    """A message that is cancelled while it waits ends as CANCELLED."""
    agents_app.stub("worker", command=None)
    receipt = agents_app.send("worker", 1)
    assert agents_app.bus.cancel(receipt.message_id).status is MessageStatus.CANCELLED
    agents_app.run()
    assert agents_app.handled() == []


def test_a_rate_limit_refuses_what_is_too_much(agents_app: Harness) -> None:
    """A limit that the test sets counts in memory."""
    agents_app.stub("worker", command=None)
    agents_app.app.limiter.set_quota("test", "2/minute")
    agents_app.send("worker", 1)
    agents_app.send("worker", 2)
    with pytest.raises(RateLimitExceeded):
        agents_app.send("worker", 3)


def test_a_batch_is_handled_together(agents_app: Harness) -> None:
    """The handler of a batch gets the messages that wait, and does not wait for more."""
    worker, sizes = agents_app.agent("worker"), []

    @worker.on(MessageType.COMMAND, batch=10, within=0.05)
    def work(batch: list) -> None:
        sizes.append(len(batch))

    for number in range(3):
        agents_app.send("worker", number)
    agents_app.run()
    assert sizes == [3]
    agents_app.assert_handled(to="worker", times=3)


@pytest.mark.parametrize(
    ("on_busy", "expected"), [("wait", ["a1", "b1", "a1", "a2"]), ("drop", ["a1", "b1", "a1"])]
)
def test_a_retry_keeps_its_place_in_its_key(agents_app: Harness, on_busy: str, expected: list[str]) -> None:
    """Later messages of the same key wait for the next attempt, or are dropped; those of others go on."""
    worker, seen = agents_app.agent("worker"), []
    policy = RetryPolicy(attempts=2, first_delay=60, jitter=False)

    @worker.on(MessageType.COMMAND, key="payload.key", on_busy=on_busy, retries=policy)
    def work(message: Message) -> None:
        seen.append(f"{message.payload['key']}{message.payload['number']}")
        if seen == ["a1"]:
            raise ConnectionError("not yet")

    for key, number in (("a", 1), ("a", 2), ("b", 1)):
        agents_app.send("worker", {"key": key, "number": number}, ttl_seconds=None)
    agents_app.run()
    assert seen == ["a1", "b1"]
    agents_app.clock.advance(minutes=2)
    assert seen == expected
    statuses = {record.receipt.status for record in agents_app.sent()}
    cancelled = {MessageStatus.CANCELLED} if on_busy == "drop" else set()
    assert statuses == {MessageStatus.HANDLED} | cancelled


def test_a_payload_by_reference_is_found_by_its_parts() -> None:
    """A large payload that is kept in the ledger's database is compared as any other."""
    app = create_app(waooaw_reference_above=1000)
    with harness(app) as found:
        found.stub("worker", command=lambda message: len(message.payload["text"]))
        found.send("worker", {"id": 1, "text": os.urandom(5000).hex()})
        record = found.assert_handled(to="worker", where={"id": 1}, times=1)
    assert record.reference is not None


# --- requests


def test_agents_ask_each_other_and_a_circle_is_refused(agents_app: Harness) -> None:
    """A handler asks another agent, which answers meanwhile; one that is asked back is a circle."""
    first, second = agents_app.agent("first"), agents_app.agent("second")

    @first.method
    def start() -> list:
        return ["first", *first.request("second", "go_on")]

    @second.method
    def go_on() -> list:
        return ["second"]

    @second.method
    def back() -> list:
        return second.request("first", "start")

    @first.method
    def circle() -> list:
        return first.request("second", "back")

    assert agents_app.request("first", "start") == ["first", "second"]
    with pytest.raises(RemoteError, match=CircularRequest.__name__):
        agents_app.request("first", "circle")


def test_a_request_that_nobody_answers_times_out_at_once(agents_app: Harness) -> None:
    """The time of a timeout passes on the clock of the test, and not for who runs it."""
    agents_app.stub("slow", answer=1)
    began, real = agents_app.clock.now(), time.monotonic()
    with agents_app.stopped("slow"), pytest.raises(RequestTimeout):
        agents_app.request("slow", "answer", timeout=600)
    assert agents_app.clock.now() - began >= timedelta(seconds=600)
    assert time.monotonic() - real < 10


def test_a_lost_answer_is_a_timeout_of_a_request_that_was_handled(agents_app: Harness) -> None:
    """A request whose answer is dropped was handled all the same, and its caller times out."""
    agents_app.stub("crm", create={"id": 7})
    agents_app.drop_answer("crm")
    with pytest.raises(RequestTimeout):
        agents_app.request("crm", "create", {}, timeout=5)
    agents_app.assert_handled(to="crm", times=1)
    assert agents_app.request("crm", "create", {}) == {"id": 7}


def test_a_request_is_answered_although_its_handler_is_tried_again(agents_app: Harness) -> None:
    """While a caller waits, time passes up to the next attempt."""
    worker, attempts = agents_app.agent("worker"), []

    @worker.method(retries=RetryPolicy(attempts=3, first_delay=5, jitter=False))
    def work() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("not yet")
        return len(attempts)

    real = time.monotonic()
    assert agents_app.request("worker", "work", timeout=60) == 3
    assert time.monotonic() - real < 5


def test_the_pause_before_a_request_is_sent_again_passes_at_once(agents_app: Harness) -> None:
    """A caller with a policy asks again after a pause, by the clock of the test."""
    agents_app.stub("crm", create={"id": 7})
    agents_app.drop_answer("crm")
    policy, real, began = RetryPolicy(attempts=2, first_delay=40, jitter=False), time.monotonic(), time.time()
    assert agents_app.request("crm", "create", {}, timeout=100, retry=policy) == {"id": 7}
    assert time.time() - began >= 90
    assert time.monotonic() - real < 10


def test_coroutines_ask_each_other(agents_app: Harness) -> None:
    """A coroutine awaits the answer of another agent's coroutine."""
    first, second = agents_app.agent("first"), agents_app.agent("second")

    @first.method
    async def start() -> list:
        return ["first", *await first.aio.request("second", "go_on")]

    @second.method
    async def go_on() -> list:
        return ["second"]

    assert agents_app.request("first", "start") == ["first", "second"]


def test_an_answer_arrives_in_parts(agents_app: Harness) -> None:
    """A stream yields the parts, and has the result."""
    writer = agents_app.agent("writer")

    @writer.method
    def write(words: int) -> Iterator[str]:
        for number in range(words):
            yield f"word {number}"
        return "done"

    @writer.method
    async def write_later(words: int) -> AsyncIterator[str]:
        for number in range(words):
            yield f"word {number}"

    reader = agents_app.agent("reader")
    with reader.stream("writer", "write", {"words": 2}) as stream:
        assert list(stream) == ["word 0", "word 1"]
    assert stream.result == "done"
    with reader.stream("writer", "write_later", {"words": 2}) as stream:
        assert list(stream) == ["word 0", "word 1"]


def test_a_request_to_a_capability_finds_the_stub(agents_app: Harness) -> None:
    """An agent is found by what it can do, also one that was added a moment ago."""
    for name, answer in (("one", 1), ("two", 2)):
        agent = agents_app.agent(name)
        agent.method(lambda answer=answer: answer, name="count", capability=f"counts-{name}")
        assert agents_app.request(f"capability:counts-{name}", None) == answer


def test_celery_tasks_and_their_results_work(agents_app: Harness) -> None:
    """Ordinary tasks of the application run too, and AsyncResult waits for them."""

    @agents_app.app.task
    def double(number: int) -> int:
        return 2 * number

    agents_app.stub("worker", command=None)
    result = double.delay(21)
    assert result.get(timeout=5) == 42


# --- events and workflows


def test_an_event_reaches_its_subscribers(agents_app: Harness) -> None:
    """An event reaches the subscriptions that match its topic."""
    clerk, seen = agents_app.agent("clerk"), []

    @clerk.subscribe("order.*")
    def note(event: Message) -> None:
        seen.append((event.topic, event.payload))

    agents_app.publish("order.created", {"id": 1})
    agents_app.publish("user.created", {"id": 2})
    agents_app.run()
    assert seen == [("order.created", {"id": 1})]
    agents_app.assert_published("order.*", where={"id": 1}, times=1)
    with pytest.raises(AssertionError, match="should have been published"):
        agents_app.assert_published("order.cancelled")


def test_a_workflow_sleeps_waits_for_a_signal_and_ends(agents_app: Harness) -> None:
    """A workflow asks an agent, sleeps for days that pass at once, waits for a signal, and returns."""
    sales = agents_app.agent("sales")

    @sales.workflow
    async def onboard(flow, name: str) -> dict:
        created = await flow.request("crm", "create", {"name": name})
        await flow.sleep(3 * 86_400)
        signal = await flow.wait_for("approve")
        return {"id": created["id"], "by": signal["by"]}

    agents_app.stub("crm", create={"id": 7})
    workflows = Workflows(agents_app.app)
    workflows.start("sales.onboard", {"name": "Ada"}, workflow_id="w1")
    agents_app.run()
    agents_app.assert_handled(to="crm", times=1)
    assert not workflows.get("w1").status.final
    agents_app.clock.advance(days=4)
    workflows.signal("w1", "approve", {"by": "Grace"})
    assert agents_app.result("w1") == {"id": 7, "by": "Grace"}


def test_the_result_of_a_workflow_that_a_message_starts_can_be_awaited(agents_app: Harness) -> None:
    """``result`` runs the agents first: the message that starts the workflow may still wait."""
    sales = agents_app.agent("sales")

    @sales.workflow
    async def order(flow, number: int) -> int:
        return number

    @sales.on(MessageType.COMMAND)
    def accept(message: Message) -> None:
        Workflows(agents_app.app).start("sales.order", {"number": message.payload}, workflow_id="order-7")

    agents_app.send("sales", 7)
    assert agents_app.result("order-7") == 7


def test_the_result_of_a_workflow_that_sleeps_is_waited_for_without_waiting(agents_app: Harness) -> None:
    """Time passes as far as the workflow needs it, also for a caller that uses Workflows itself."""
    sales = agents_app.agent("sales")

    @sales.workflow
    async def nap(flow) -> str:
        await flow.sleep(20)
        return "awake"

    workflows = Workflows(agents_app.app)
    workflows.start("sales.nap", {}, workflow_id="w1")
    real = time.monotonic()
    assert agents_app.result("w1", timeout=60) == "awake"
    workflows.start("sales.nap", {}, workflow_id="late")
    with pytest.raises(RequestTimeout, match="within 5 s: it is waiting for sleep"):
        agents_app.result("late", timeout=5)
    workflows.start("sales.nap", {}, workflow_id="w2")
    assert workflows.result("w2", timeout=60) == "awake"
    assert time.monotonic() - real < 10


# --- failures on purpose


def test_a_sender_that_is_killed_before_the_publish_loses_no_message(agents_app: Harness) -> None:
    """The message is recorded, is not in the queue, and the recovery publishes it."""
    agents_app.stub("worker", command=None)
    agents_app.kill_between("record", "publish", "worker")
    with pytest.raises(Killed):
        agents_app.send("worker", {"id": 1}, ttl_seconds=None)
    agents_app.run()
    [record] = agents_app.sent(to="worker")
    assert record.receipt.status is MessageStatus.PENDING
    agents_app.clock.advance(minutes=5)
    agents_app.assert_handled(to="worker", where={"id": 1}, times=1)


@pytest.mark.parametrize(
    ("moments", "calls"), [(("deliver", "handle"), 1), (("handle", "record"), 2), (("record", "acknowledge"), 1)]
)
def test_a_worker_that_is_killed_gets_the_message_again(
    agents_app: Harness, moments: tuple[str, str], calls: int
) -> None:
    """Only a handler that has run without a record runs twice."""
    seen = []
    agents_app.stub("worker", command=lambda message: seen.append(message.payload))
    agents_app.kill_between(*moments, "worker")
    receipt = agents_app.send("worker", 1)
    agents_app.run()
    assert seen == [1] * calls
    assert agents_app.receipt(receipt).status is MessageStatus.HANDLED


def test_a_duplicate_is_handled_once(agents_app: Harness) -> None:
    """A message that the broker delivers twice is handled once."""
    seen = []
    agents_app.stub("worker", command=lambda message: seen.append(message.payload))
    agents_app.duplicate("worker")
    agents_app.send("worker", 1)
    agents_app.run()
    assert seen == [1]


def test_a_delayed_message_arrives_later(agents_app: Harness) -> None:
    """A message that the broker holds back is overtaken, and handled when its time has come."""
    seen = []
    agents_app.stub("worker", command=lambda message: seen.append(message.payload))
    agents_app.delay("worker", seconds=5)
    agents_app.send("worker", "first")
    agents_app.send("worker", "second")
    agents_app.run()
    assert seen == ["second"]
    agents_app.clock.advance(seconds=5)
    assert seen == ["second", "first"]


def test_a_process_cannot_be_killed_between_moments_that_do_not_exist(agents_app: Harness) -> None:
    """The error names the moments that exist."""
    with pytest.raises(ConfigurationError, match="'record', 'publish'"):
        agents_app.kill_between("publish", "record", "worker")


# --- transactions, replies, broadcasts, timetables


def test_an_effect_and_its_messages_are_committed_together(agents_app: Harness) -> None:
    """With once=True, what a handler sends in its session is published only if the handler returns."""
    shop = agents_app.agent("shop")
    agents_app.stub("mailer", command=None)

    @shop.on(MessageType.COMMAND, once=True)
    def order(message: Message) -> None:
        shop.send("mailer", message.payload, session=shop.session)
        if message.payload == "broken":
            raise ValueError("broken")

    agents_app.kill_between("handle", "record", "shop")
    agents_app.send("shop", "good")
    agents_app.send("shop", "broken")
    agents_app.run()
    assert [record.payload for record in agents_app.handled(to="mailer")] == ["good"]


def test_an_effect_that_was_committed_does_not_happen_again(agents_app: Harness) -> None:
    """A worker that is killed just after the commit has the message again, and finds its effect."""
    shop, seen = agents_app.agent("shop"), []
    agents_app.stub("mailer", command=None)

    @shop.on(MessageType.COMMAND, once=True)
    def order(message: Message) -> None:
        seen.append(message.payload)
        shop.send("mailer", message.payload, session=shop.session)

    agents_app.kill_between("commit", "record", "shop")
    receipt = agents_app.send("shop", "good", ttl_seconds=None)
    agents_app.run()
    agents_app.clock.advance(minutes=5)
    assert seen == ["good"]
    assert agents_app.receipt(receipt).status is MessageStatus.HANDLED
    agents_app.assert_handled(to="mailer", times=1)


def test_a_reply_and_a_broadcast_reach_their_agents(agents_app: Harness) -> None:
    """A request that nobody waits for is answered with a message, and a broadcast reaches all agents."""
    planner, seen = agents_app.agent("planner"), []

    @planner.reply
    def on_answer(response: Response) -> None:
        seen.append(response.result)

    agents_app.stub("crm", create={"id": 7}, command=None)
    agents_app.stub("mailer", command=None)
    planner.request_later("crm", "create", {}, on_reply=on_answer)
    agents_app.bus.broadcast("planner", Everyone(), {"all": True})
    agents_app.run()
    assert seen == [{"id": 7}]
    assert {record.receipt.to_agent for record in agents_app.handled(where={"all": True})} == {"crm", "mailer"}


def test_a_message_with_a_countdown_is_handled_when_it_is_due(agents_app: Harness) -> None:
    """Celery's countdown counts by the clock of the test."""
    worker, seen = agents_app.agent("worker"), []

    @worker.method
    def work(number: int) -> None:
        seen.append(number)

    agents_app.run()
    work.apply_async(kwargs={"number": 1}, countdown=100, expires=None)
    agents_app.run()
    agents_app.clock.advance(seconds=90)
    assert seen == []
    agents_app.clock.advance(seconds=20)
    assert seen == [1]


def test_a_recurring_workflow_starts_at_each_time(agents_app: Harness) -> None:
    """Beat's timetable is followed while the clock moves."""
    reports = agents_app.agent("reports")

    @reports.workflow
    async def daily(flow: Flow, region: str) -> str:
        return region

    schedule_workflow(agents_app.app, "nightly", "reports.daily", crontab(hour=3, minute=0), {"region": "eu"})
    agents_app.clock.advance(days=3)
    found = Workflows(agents_app.app).list(name="reports.daily")
    assert len(found.workflows) == 3
    schedule_workflow(agents_app.app, "hourly", "reports.daily", 3600.0, {"region": "us"})
    agents_app.clock.advance(hours=2)
    found = Workflows(agents_app.app).list(name="reports.daily")
    assert {each.input["region"] for each in found.workflows} == {"eu", "us"}
    assert all(each.status is WorkflowStatus.COMPLETED for each in found.workflows)


# --- the harness itself


def test_two_applications_share_the_broker_and_the_ledger() -> None:
    """The agents of several modules, each with an application of its own, talk to each other."""
    first_app, second_app = create_app("first"), create_app("second")
    first, second = Agent("first", first_app), Agent("second", second_app)

    @first.method
    def start() -> list:
        return ["first", *first.request("second", "go_on")]

    @second.method
    def go_on() -> list:
        second.send("first", {"from": current_app.main})
        return ["second"]

    @first.on(MessageType.COMMAND)
    def command(message: Message) -> None:
        assert current_app.main == "first"

    with harness(first_app, second_app) as agents_app:
        assert agents_app.request("first", "start") == ["first", "second"]
        agents_app.assert_handled(to="first", where={"from": "second"}, times=1)
        with agents_app.stopped("second"), pytest.raises(RemoteError, match="RequestTimeout"):
            agents_app.request("first", "start", timeout=60)
    with pytest.raises(ConfigurationError, match="twice"), harness(first_app, first_app):
        pass


def test_agents_that_answer_each_other_without_end_are_reported(
    agents_app: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that does not come to rest ends with an error that says so."""
    monkeypatch.setattr(simulation, "MAX_STEPS", 20)
    ping = agents_app.agent("ping")
    ping.on(MessageType.COMMAND)(lambda message: ping.send("ping", message.payload))
    agents_app.send("ping", 1)
    with pytest.raises(NotSettled, match="without end"):
        agents_app.run()


def test_a_stub_replaces_a_real_handler_for_the_time_of_the_test() -> None:
    """A stub of an agent of the application answers in its place, and is gone afterwards."""
    app = create_app()
    crm = Agent("crm", app)

    @crm.method
    def create(name: str) -> int:
        return 1

    with harness(app) as agents_app:
        agents_app.stub("crm", create=lambda name: f"stub {name}")
        assert agents_app.request("crm", "create", {"name": "Ada"}) == "stub Ada"
        with pytest.raises(UnknownMethod):
            agents_app.stub("crm", delete=None)
        agents_app.stub("billing", charge=None)
    assert create(name="Ada") == 1
    assert list(app.agents) == ["crm"]
    assert "billing.charge" not in app.tasks
    with harness(app) as agents_app:
        assert agents_app.request("crm", "create", {"name": "Ada"}) == 1
        assert len(agents_app.sent()) == 1


def test_the_environment_and_the_configuration_are_hidden_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable and no setting leads to a real server while the harness runs."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    app = create_app(result_backend="redis://127.0.0.1:2/0", waooaw_sender="planner")
    with harness(app) as agents_app:
        agents_app.stub("worker", command=None)
        agents_app.send("worker", 1)
        assert agents_app.assert_handled(to="worker").receipt.from_agent == "planner"
    assert os.environ["CELERY_BROKER_URL"] == "redis://127.0.0.1:1/0"
    assert app.conf.result_backend == "redis://127.0.0.1:2/0"
    assert app.conf.get("waooaw_database_url") is None


def test_the_clock_shows_the_real_time_again_afterwards() -> None:
    """A test that moves the clock moves it for itself only."""
    with harness() as agents_app:
        agents_app.clock.advance(days=30)
        assert datetime.now(UTC) - datetime.fromtimestamp(time.time(), UTC) < timedelta(seconds=1)
        moved = time.time()
    assert moved - time.time() > 29 * 86_400
    with harness() as agents_app, pytest.raises(ValueError, match="forward"):
        agents_app.clock.advance(seconds=-1)


def test_the_purge_runs_when_the_clock_passes_its_time(agents_app: Harness) -> None:
    """Records that are older than their retention are gone."""
    agents_app.stub("worker", command=None)
    agents_app.send("worker", 1)
    agents_app.run()
    agents_app.clock.advance(days=30)
    assert len(agents_app.sent()) == 1
    agents_app.clock.advance(days=70)
    assert agents_app.sent() == []


def test_the_operations_can_be_awaited(agents_app: Harness) -> None:
    """A test that is a coroutine awaits the harness, and the classes of aio."""
    agents_app.stub("crm", create={"id": 7}, command=None)

    async def run() -> None:
        assert await agents_app.aio.request("crm", "create", {}) == {"id": 7}
        receipt = await agents_app.aio.send("crm", 1)
        await agents_app.aio.run()
        assert agents_app.receipt(receipt).status is MessageStatus.HANDLED
        assert await aio.RequestResponseHandler(agents_app.app).request("crm", "create", {}) == {"id": 7}

    asyncio.run(run())
