"""Circuit breakers and real requests: what counts, who is refused, and where a request goes instead."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from process_pool import spawn
from support import PROBE_FOLDER, Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, RequestResponseHandler, RetryPolicy, aio
from waooaw_celery.agents import CircuitOpen, InvalidMessage, NoAgentAvailable, RemoteError, RequestTimeout
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.testing.embedded import end, end_all

#: A breaker that opens after three failures, and stays open for the whole test.
LIMITS: dict[str, Any] = {"waooaw_breaker_failures": 3, "waooaw_breaker_open_seconds": 600}


@pytest.fixture
def make(broker: Broker) -> Iterator[Callable[..., AgentApp]]:
    """Return a factory of applications with a breaker that opens soon."""
    apps: list[AgentApp] = []

    def _make(**settings: Any) -> AgentApp:
        apps.append(broker.app(**(LIMITS | settings)))
        return apps[-1]

    yield _make
    for app in apps:
        app.close()


@pytest.fixture
def silent(broker: Broker) -> str:
    """Name of an agent without a worker."""
    return broker.name()


@pytest.fixture(autouse=True)
def closed_breakers(request: pytest.FixtureRequest, app: AgentApp) -> Iterator[None]:
    """Close the breakers of agents that other tests use too."""
    yield
    for breaker in app.breakers.states():
        app.breakers.close_by_hand(breaker.agent)


def state(app: AgentApp, agent: str) -> str:
    """Return the stored state of an agent's breaker."""
    return next((each.state for each in app.breakers.states() if each.agent == agent), "closed")


def failures(app: AgentApp, agent: str) -> int:
    """Return the failures that are stored for an agent."""
    return sum(each.failures for each in app.breakers.states() if each.agent == agent)


class Callers:
    """Processes that request one agent again and again.

    Attributes:
        marks: the file with their outcomes.
    """

    def __init__(self, broker: Broker, agent: str, folder: Path, number: int, **settings: Any) -> None:
        self.marks = folder / "marks"
        self.marks.touch()
        config = {
            "waooaw_sender": "caller",
            "waooaw_agents": [agent],
            "broker_url": broker.url,
            "result_backend": broker.redis_url,
            "waooaw_database_url": broker.database_url,
            "waooaw_spool_folder": str(broker.spool_folder),
        }
        command = [sys.executable, "breaker_caller.py", json.dumps(config | settings), agent, "whoami", "0.3"]
        self.processes = [
            spawn([*command, str(self.marks)], log=folder / f"caller-{each}.log", cwd=PROBE_FOLDER)
            for each in range(number)
        ]

    def lines(self) -> list[tuple[str, str, float, float]]:
        """Return the process, the outcome, and when the request began and ended, in the order of the ends."""
        whole = self.marks.read_text().rpartition("\n")[0]
        fields = [line.split() for line in whole.splitlines()]
        return sorted(
            ((pid, outcome, float(began), float(ended)) for pid, outcome, began, ended in fields),
            key=lambda line: line[3],
        )

    def all_have(self, outcome: str, after: float = 0.0) -> bool:
        """Return whether each process had an outcome after a time."""
        found = {pid for pid, each, _, ended in self.lines() if each == outcome and ended > after}
        return len(found) == len(self.processes)


def test_a_breaker_opens_in_three_processes_and_closes_by_itself(
    broker: Broker, app: AgentApp, silent: str, tmp_path: Path
) -> None:
    """At most twenty requests fail before all three refuse. Then one probe is sent at a time."""
    callers = Callers(broker, silent, tmp_path, 3, waooaw_breaker_open_seconds=1.0)
    try:
        until(lambda: callers.all_have("CircuitOpen"), "the open breaker in three processes")
        refused: set[str] = set()
        failed = 0
        for pid, outcome, _, _ in callers.lines():
            refused |= {pid} if outcome == "CircuitOpen" else set()
            failed += outcome == "RequestTimeout"
            if len(refused) == 3:
                break
        assert 10 <= failed <= 20
        opened_at = time.time()
        until(
            lambda: sum(each[1] == "RequestTimeout" and each[2] > opened_at for each in callers.lines()) >= 3,
            "three probes",
        )
        probes = [each for each in callers.lines() if each[1] == "RequestTimeout" and each[2] > opened_at]
        for one, other in pairwise(probes):
            assert one[3] + 0.9 < other[2], "two probes in one pause"
        process = broker.start(silent, app)
        try:
            started_at = time.time()
            until(lambda: callers.all_have("ok", started_at), "the closed breaker in three processes")
        finally:
            end(process)
    finally:
        end_all(callers.processes)


def test_no_message_is_sent_while_it_is_open(make: Callable[..., AgentApp], silent: str) -> None:
    """The refusal takes no time, and leaves no receipt. ``breaker=False`` goes past it, and is not counted."""
    app = make(waooaw_agents=[silent])
    requests = RequestResponseHandler(app)
    for _ in range(3):
        with pytest.raises(RequestTimeout):
            requests.request(silent, "work", timeout=0.2, breaker=False)
    assert state(app, silent) == "closed"

    def is_refused() -> bool:
        try:
            requests.request(silent, "work", timeout=0.2)
        except RequestTimeout:
            return False
        except CircuitOpen:
            return True
        raise AssertionError

    until(is_refused, "the open breaker")
    known = {each.message_id for each in app.receipts.recent()}
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(CircuitOpen):
            requests.request(silent, "work", timeout=5)
    assert time.monotonic() - began < 5
    with pytest.raises(CircuitOpen):
        requests.request_later(silent, "work", from_agent=silent, on_reply="seen")
    with pytest.raises(CircuitOpen):
        requests.stream(silent, "work", timeout=5)
    with pytest.raises(CircuitOpen):
        requests.broadcast_request([silent], "work", timeout=5)
    assert {each.message_id for each in app.receipts.recent()} <= known
    with pytest.raises(RequestTimeout):
        requests.request(silent, "work", timeout=0.05, breaker=False)


def test_each_attempt_counts(make: Callable[..., AgentApp], silent: str) -> None:
    """A request that is sent three times opens a breaker of three; the fourth attempt is refused at once."""
    app = make(waooaw_agents=[silent])
    policy = RetryPolicy(attempts=4, first_delay=0.0, jitter=False, on=(RequestTimeout,))
    began = time.monotonic()
    with pytest.raises(CircuitOpen):
        RequestResponseHandler(app).request(silent, "work", timeout=6, retry=policy)
    assert time.monotonic() - began < 6
    assert state(app, silent) == "open"


def test_streams_and_coroutines_count(make: Callable[..., AgentApp], silent: str) -> None:
    """A stream of which no part arrives, and requests that are awaited."""
    app = make(waooaw_agents=[silent])
    with pytest.raises(RequestTimeout), RequestResponseHandler(app).stream(silent, "work", timeout=1) as stream:
        list(stream)
    assert failures(app, silent) == 1

    async def ask() -> list[Any]:
        requests = aio.RequestResponseHandler(app)
        with pytest.raises(RequestTimeout):
            async for _ in requests.stream(silent, "work", timeout=1):
                pass
        calls = [requests.send_request(silent, "work", timeout=0.5) for _ in range(50)]
        return await asyncio.gather(*calls, return_exceptions=True)

    for outcome in asyncio.run(ask()):
        # A busy computer sends some of them too late.
        assert isinstance(outcome, CircuitOpen | RequestTimeout) or isinstance(outcome.error, RequestTimeout)
    until(lambda: state(app, silent) == "open", "the report of the coroutines")


def test_errors_of_a_handler_do_not_count(make: Callable[..., AgentApp], probe: str) -> None:
    """They are answers: they even close a breaker whose probe they are."""
    app = make(waooaw_breaker_open_seconds=0.2)
    requests = RequestResponseHandler(app)
    for _ in range(5):
        with pytest.raises(RemoteError):
            requests.request(probe, "fail", {"text": "broken"}, timeout=20)
    assert state(app, probe) == "closed"
    for _ in range(5):
        app.breakers.failed(probe)
    assert state(app, probe) == "open"
    until(lambda: state(app, probe) == "half open", "the end of the pause")
    with pytest.raises(RemoteError):
        requests.request(probe, "fail", {"text": "broken"}, timeout=20)
    assert state(app, probe) == "closed"


def test_the_death_of_a_worker_and_its_time_limits_count(make: Callable[..., AgentApp], other: str) -> None:
    """WorkerLostError, TimeLimitExceeded: the agent did not answer."""
    app = make()
    requests = RequestResponseHandler(app)
    for method in ("kill", "hang"):
        with pytest.raises(RemoteError):
            requests.request(other, method, timeout=30)
    assert failures(app, other) == 2


def test_errors_of_the_caller_do_not_count(make: Callable[..., AgentApp], probe: str) -> None:
    """Invalid arguments, unknown methods, rate limits: nothing was sent."""
    app = make(waooaw_rate_limit="1/hour", waooaw_sender="limited-sender")
    app.limiter.reset("limited-sender")
    requests = RequestResponseHandler(app)
    requests.request(probe, "echo", {"value": 1}, timeout=20)
    for method, params in (("echo", {"value": {1}}), ("nothing", {}), ("echo", {"value": 1})):
        for _ in range(2):
            with pytest.raises(Exception, match=r"is a set|no method|rate limit"):
                requests.request(probe, method, params, timeout=20)
    assert state(app, probe) == "closed"
    assert failures(app, probe) == 0


def is_value_error(error: BaseException) -> bool:
    """Return whether a handler raised a ValueError."""
    return isinstance(error, RemoteError) and error.type == "ValueError"


@pytest.mark.parametrize("rule", [is_value_error, f"{__name__}:is_value_error"])
def test_the_application_decides_what_counts(
    make: Callable[..., AgentApp], probe: str, silent: str, rule: Any
) -> None:
    """A function, or its path: with this one, a handler's ValueError counts, and a timeout does not."""
    app = make(waooaw_breaker_is_failure=rule, waooaw_agents=[silent])
    requests = RequestResponseHandler(app)
    for _ in range(3):
        with pytest.raises(RequestTimeout):
            requests.request(silent, "work", timeout=0.05)
        with pytest.raises(RemoteError):
            requests.request(probe, "fail", {"text": "broken"}, timeout=20)
    assert state(app, silent) == "closed"
    assert state(app, probe) == "open"


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("no_such_module:rule", "cannot be imported"),
        ("json:no_such_name", "cannot be imported"),
        (5, "a function"),
    ],
)
def test_a_wrong_rule_is_refused_at_the_start(make: Callable[..., AgentApp], rule: Any, error: str) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigurationError, match=f"waooaw_breaker_is_failure.*{error}"):
        make(waooaw_breaker_is_failure=rule).check()


def test_a_reply_closes_the_breaker_whose_probe_it_answers(
    make: Callable[..., AgentApp], probe: str, other: str
) -> None:
    """Nobody waits for the answer of ``request_later``; the worker that gets the reply ends the probe."""
    app = make(waooaw_breaker_open_seconds=0.2)
    for _ in range(3):
        app.breakers.failed(other)
    until(lambda: state(app, other) == "half open", "the end of the pause")
    RequestResponseHandler(app).request_later(
        other, "echo", {"value": 1}, from_agent=probe, on_reply="replied", timeout=60
    )
    until(lambda: state(app, other) == "closed", "the closed breaker")


@pytest.fixture
def pair(broker: Broker, app: AgentApp, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Names of two agents with the capability ``summarise``, of which the first is slow while a file is there."""
    names = broker.name(), broker.name()
    processes = []
    for name in names:
        declares = {"slow_file": str(tmp_path / name), "agent": {"tags": [names[0]]}}
        env = {"PROBE_DECLARES": json.dumps(declares)}
        processes.append(broker.start(name, app, module="capability_probe", env=env))
    yield names
    end_all(processes)


def address_to(app: AgentApp, pair: tuple[str, str], agent: str) -> str:
    """Return an address by capability for which an agent of a pair is chosen first."""
    for key in count():
        address = f"capability:summarise?tags={pair[0]}&policy=sticky&key={key}"
        if app.selector.choose(address).agent == agent:
            return address
    raise AssertionError


def shorten(app: AgentApp, to: str, **options: Any) -> str:
    """Request the capability, and return who answered."""
    result: Any = RequestResponseHandler(app).request(to, params={"text": {"body": "a"}}, **options)
    return str(result["by"])


def test_routing_skips_agents_whose_breaker_is_open(make: Callable[..., AgentApp], pair: tuple[str, str]) -> None:
    """If all are open, the error says so. A message waits in a queue, so it is sent all the same."""
    app = make()
    to = f"capability:summarise?tags={pair[0]}&policy=round_robin"
    assert Counter(shorten(app, to, timeout=20) for _ in range(4)) == {pair[0]: 2, pair[1]: 2}
    app.breakers.open_by_hand(pair[0], by="ada")
    assert {shorten(app, to, timeout=20) for _ in range(6)} == {pair[1]}
    assert pair[0] in {shorten(app, to, timeout=20, breaker=False) for _ in range(2)}
    sent = [MessageBus(app).send_to("tests", to, {"file": "/dev/null"}) for _ in range(4)]
    assert {receipt.to_agent for receipt in sent} == {pair[1]}
    app.breakers.open_by_hand(pair[1], by="ada")
    with pytest.raises(NoAgentAvailable) as raised:
        shorten(app, to, timeout=20)
    assert {raised.value.considered[name] for name in pair} == {"its circuit breaker is open"}
    receipt = MessageBus(app).send_to("tests", to, {"file": "/dev/null"})
    assert receipt.to_agent in pair


def test_a_breaker_that_has_just_opened_elsewhere_is_noticed(
    make: Callable[..., AgentApp], pair: tuple[str, str]
) -> None:
    """Another process is the probe, which this one learns when it tries to be: it asks the other agent."""
    app, elsewhere = make(waooaw_breaker_open_seconds=0.3), make(waooaw_breaker_open_seconds=0.3)
    to = address_to(app, pair, pair[0])
    for _ in range(3):
        app.breakers.failed(pair[0])
    until(lambda: state(app, pair[0]) == "half open", "the end of the pause")
    until(lambda: elsewhere.breakers.admit(pair[0], "probe", 60.0), "the probe of the other process")
    assert shorten(app, to, timeout=20) == pair[1]


def test_another_agent_is_tried_when_the_chosen_one_fails(
    make: Callable[..., AgentApp], pair: tuple[str, str], tmp_path: Path
) -> None:
    """Within the same timeout, as a message of its own; also awaited."""
    app = make()
    to = address_to(app, pair, pair[0])
    (tmp_path / pair[0]).touch()
    began = time.monotonic()
    with pytest.raises(RequestTimeout):
        shorten(app, to, timeout=1.0)
    assert shorten(app, to, timeout=3.0, alternatives=1) == pair[1]
    assert time.monotonic() - began < 4 + 5
    receipts = sorted(app.receipts.recent(), key=lambda each: each.sent_at)
    first, second = [each for each in receipts if each.handler == "shorten"][-2:]
    assert (first.to_agent, second.to_agent) == pair
    assert first.message_id != second.message_id

    async def ask() -> Any:
        params = {"text": {"body": "a"}}
        return await aio.RequestResponseHandler(app).request(to, params=params, timeout=3.0, alternatives=1)

    assert asyncio.run(ask())["by"] == pair[1]
    until(lambda: state(app, pair[0]) == "open", "the report of the third failure")
    assert shorten(app, to, timeout=20, alternatives=1) == pair[1]


def test_the_error_of_the_last_agent_is_raised(
    make: Callable[..., AgentApp], pair: tuple[str, str], tmp_path: Path
) -> None:
    """If no other agent is left, or all have failed."""
    app = make(waooaw_breaker_failures=100)
    for name in pair:
        (tmp_path / name).touch()
    to = address_to(app, pair, pair[0])
    with pytest.raises(RequestTimeout, match=pair[1]):
        shorten(app, to, timeout=1.2, alternatives=5)
    with pytest.raises(InvalidMessage, match="alternatives needs a capability"):
        shorten(app, pair[0], alternatives=1)
    with pytest.raises(InvalidMessage, match="either retry= or alternatives="):
        shorten(app, to, alternatives=1, retry=1)
    for wrong in (-1, True, 1.5, 1000):
        with pytest.raises(InvalidMessage, match="a whole number from 0 to 100"):
            shorten(app, to, alternatives=wrong)


def test_messages_and_tasks_are_not_refused(make: Callable[..., AgentApp], silent: str) -> None:
    """They wait in the agent's queue."""
    app = make(waooaw_agents=[silent])
    app.breakers.open_by_hand(silent, by="ada")
    MessageBus(app).send(Message(from_agent="tests", to_agent=silent, payload={}))
    app.send_task(f"{silent}.command", [{}])
