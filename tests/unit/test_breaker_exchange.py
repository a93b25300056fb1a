"""What a process asks the store of circuit breakers, and what it does while the store is away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from support import until

from waooaw_celery.agents import (
    BackendUnavailable,
    BrokerUnavailable,
    Cancelled,
    CircuitOpen,
    Expired,
    InvalidArguments,
    RateLimitExceeded,
    RemoteError,
    RequestTimeout,
    StreamBroken,
    UnknownMethod,
)
from waooaw_celery.errors import ConfigurationError, StoreUnavailable
from waooaw_celery.store.resilience import breaker_rules as rules
from waooaw_celery.store.resilience import cached_read
from waooaw_celery.store.resilience.breaker_rules import BreakerLimits, BreakerRecord
from waooaw_celery.store.resilience.breaker_store import BreakerStore, Stored
from waooaw_celery.store.resilience.breakers import Breakers
from waooaw_celery.store.resilience.failures import failure_rule, is_target_failure, works


class MemoryStore(BreakerStore):
    """Breakers in memory, whose store can be switched off.

    Attributes:
        records: the records.
        operations: what was asked: ``read``, ``report``, …
        is_available: whether it answers.
        gate: a report waits for it.
    """

    def __init__(self, **limits: Any) -> None:
        super().__init__(BreakerLimits(**({"failures": 3, "open_seconds": 600.0} | limits)))
        self.records: dict[str, BreakerRecord] = {}
        self.operations: list[str] = []
        self.is_available = True
        self.gate = threading.Event()
        self.gate.set()

    def _asked(self, operation: str) -> None:
        self.operations.append(operation)
        if not self.is_available:
            raise StoreUnavailable("the store is away")

    def read(self) -> tuple[float, Mapping[str, BreakerRecord]]:
        self._asked("read")
        return time.time(), {name: BreakerRecord.from_dict(each.to_dict()) for name, each in self.records.items()}

    def change(self, operation: str, agent: str, **given: Any) -> Stored:
        assert self.gate.wait(30)
        self._asked(operation)
        now = time.time()
        record: BreakerRecord | None = self.records.pop(agent, None) or BreakerRecord()
        done = True
        if operation == "report":
            record = rules.report(record or BreakerRecord(), given["counted"], self.limits, now)
        elif operation == "open":
            record = rules.open_by_hand(given["by"], given["reason"], given["seconds"], now)
        elif operation == "probe":
            done = rules.take_probe(record or BreakerRecord(), given["request"], given["lease"], now)
        elif operation == "probed":
            record = rules.end_probe(record or BreakerRecord(), given["request"], given["works"], self.limits, now)
        else:
            record = None
        if record is not None:
            self.records[agent] = record
        return Stored(now, record, done)

    def close(self) -> None: ...


def test_a_closed_breaker_asks_the_store_once_a_second() -> None:
    """A thousand requests that are answered cost one read."""
    store = MemoryStore()
    breakers = Breakers(store)
    for number in range(1000):
        assert not breakers.admit("writer", str(number), 5.0)
        breakers.succeeded("writer")
    assert store.operations.count("read") <= 2
    assert "report" not in store.operations


def test_without_breakers_nothing_is_asked() -> None:
    """``waooaw_breaker_failures`` is 0."""
    store = MemoryStore(failures=0)
    breakers = Breakers(store)
    for number in range(10):
        assert not breakers.admit("writer", str(number), 5.0)
        breakers.failed("writer")
        breakers.succeeded("writer")
        breakers.note_reply("writer", str(number), True)
    assert breakers.refusing() == {}
    assert store.operations == []
    with pytest.raises(ConfigurationError, match="waooaw_breaker_failures is 0"):
        breakers.open_by_hand("writer", by="ada")


def test_answers_travel_with_the_next_failure() -> None:
    """So four answers and three failures leave it closed, with four reports for seven requests at most."""
    store = MemoryStore()
    breakers = Breakers(store)
    for _ in range(4):
        breakers.succeeded("writer")
    for _ in range(3):
        breakers.failed("writer")
    assert store.operations.count("report") == 3
    assert store.records["writer"].opened_at is None


def test_the_failures_of_many_coroutines_are_reported_together() -> None:
    """The event loop waits for no report."""
    store = MemoryStore(failures=1000)
    breakers = Breakers(store)
    store.gate.clear()

    async def fail() -> None:
        for _ in range(500):
            breakers.failed("writer")

    began = time.monotonic()
    asyncio.run(fail())
    assert time.monotonic() - began < 20
    store.gate.set()
    until(lambda: "writer" in store.records and store.records["writer"].failures() == 500, "the reports")
    assert store.operations.count("report") < 50


def test_requests_go_on_while_the_store_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked once, one line is logged, and what was counted is reported when it is back."""
    store = MemoryStore()
    store.is_available = False
    breakers = Breakers(store)
    for number in range(100):
        assert not breakers.admit("writer", str(number), 5.0)
        breakers.failed("writer")
    assert store.operations == ["read"]
    assert [record.__dict__["action"] for record in caplog.records] == ["shared_state_not_read"]
    store.is_available = True
    breakers._exchange._known._read_again_at = 0.0
    until(lambda: breakers.refusing() != {}, "the report")
    with pytest.raises(CircuitOpen):
        breakers.admit("writer", "request", 5.0)


def test_an_open_breaker_stays_as_it_was_known_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its pause, the process sends a probe by itself, one at a time, and goes by its outcome."""
    monkeypatch.setattr(cached_read, "FAILURE_SECONDS", 600.0)
    store = MemoryStore(open_seconds=0.3)
    breakers = Breakers(store)
    for _ in range(3):
        breakers.failed("writer")
    store.is_available = False
    with pytest.raises(CircuitOpen):
        breakers.admit("writer", "early", 5.0)

    def is_probe() -> bool:
        try:
            return breakers.admit("writer", "probe", 5.0)
        except CircuitOpen:
            return False

    until(is_probe, "the probe")
    assert not is_probe()
    breakers.end_probe("writer", "probe", False)
    with pytest.raises(CircuitOpen):
        breakers.admit("writer", "early", 5.0)
    until(is_probe, "the second probe")
    breakers.end_probe("writer", "probe", True)
    assert not breakers.admit("writer", "late", 5.0)


ERRORS = [
    (RequestTimeout("no"), False),
    (Expired("no"), False),
    (BackendUnavailable("no"), False),
    (StreamBroken("no"), False),
    (UnknownMethod("no"), False),
    (RemoteError("writer", "WorkerLostError", "no"), False),
    (RemoteError("writer", "TimeLimitExceeded", "no"), False),
    (RemoteError("writer", "DeliveryLimitExceeded", "no"), False),
    (RemoteError("writer", "ValueError", "no"), True),
    (RemoteError("writer", "RequestTimeout", "no"), True),
    (InvalidArguments("no"), True),
    (None, True),
    (Cancelled("no"), None),
    (BrokerUnavailable("no"), None),
    (RateLimitExceeded("boss", "1/hour", 1.0), None),
    (KeyboardInterrupt(), None),
]


@pytest.mark.parametrize(("error", "expected"), ERRORS, ids=lambda each: repr(each)[:60])
def test_what_the_outcome_of_a_request_says(error: BaseException | None, expected: bool | None) -> None:
    """A failure of the agent, an answer of it, or nothing about it."""
    assert works(error, is_target_failure) is expected


def test_a_rule_that_fails_is_logged_and_the_default_decides(caplog: pytest.LogCaptureFixture) -> None:
    """An error in the application's function breaks no request."""

    def broken(error: BaseException) -> bool:
        raise ZeroDivisionError

    rule = failure_rule(broken)
    assert rule(RequestTimeout("no"))
    assert not rule(RemoteError("writer", "ValueError", "no"))
    assert {record.__dict__["action"] for record in caplog.records} == {"breaker_rule_failed"}


@pytest.mark.parametrize("seconds", [0, -1, True, "soon", float("nan")])
def test_a_breaker_is_opened_for_a_positive_time(seconds: Any) -> None:
    """The error says what is expected."""
    with pytest.raises(ConfigurationError, match="seconds must be a positive number"):
        Breakers(MemoryStore()).open_by_hand("writer", by="ada", seconds=seconds)
