"""The thread of heartbeats: it survives every error, and logs an outage once."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from support import until

from waooaw_celery.discovery.declaration import Declaration
from waooaw_celery.discovery.health.outcomes import Outcomes
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.worker.discovery.agent_health import AgentHealth
from waooaw_celery.worker.health import heartbeat
from waooaw_celery.worker.health.heartbeat import Heartbeat

AWAY = StoreUnavailable("the store is away")


class Store:
    """The registry and the subscriptions of a worker.

    Attributes:
        errors: by operation, what it raises.
        heartbeats: how many heartbeats the store accepted.
        rounds: how many heartbeats were tried.
    """

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        self.heartbeats = self.rounds = 0
        self.retired: list[str] = []
        self.renewals: list[bool] = []

    def _check(self, operation: str) -> None:
        if operation in self.errors:
            raise self.errors[operation]

    def declare(self, *_: Any, **options: Any) -> None:
        """Accept a heartbeat, or the subscriptions."""
        if "renew" in options:
            self.renewals.append(options["renew"])
            self._check("subscribe")
        else:
            self.rounds += 1
            self._check("declare")
            self.heartbeats += 1

    def read(self, names: list[str] | None = None) -> Any:
        return SimpleNamespace(subscriptions=()) if names is None else []

    def announce(self, name: str) -> None:
        """Do nothing."""

    def retire(self, name: str, node: str) -> None:
        self._check("retire")
        self.retired.append(name)

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def worker(store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker with heartbeats every 10 ms, and its heartbeat."""
    monkeypatch.setattr(heartbeat, "read_cancellations", lambda *_: store._check("cancellations"))
    app = SimpleNamespace(
        open_registry=lambda: store,
        open_subscriptions=lambda: store,
        settings=SimpleNamespace(heartbeat_seconds=0.01),
        consumed_agents=lambda: ("probe",),
        reference_clock=SimpleNamespace(now=lambda: datetime.now(UTC)),
        capabilities={},
        declarations={"probe": Declaration()},
        outcomes=Outcomes(),
        agents={"probe": "agent.probe"},
        subscribed=(),
        schemas=SimpleNamespace(all=dict),
        receipts=SimpleNamespace(start=lambda: None),
    )
    parent = SimpleNamespace(app=app, hostname="probe@host", pool=None)
    step = Heartbeat(parent)
    step.agent_health = AgentHealth(app, 0.01, 0.03)
    yield SimpleNamespace(start=lambda: step.start(parent), stop=lambda: step.stop(parent))
    step.stop(parent)


def actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the actions of the log lines."""
    return [record.action for record in caplog.records if hasattr(record, "action")]


@pytest.mark.parametrize("operation", ["declare", "subscribe", "cancellations"])
def test_an_outage_is_logged_once_and_so_is_its_end(
    store: Store, worker: Any, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    """Whichever operation fails while the others succeed, the log has two lines."""
    store.errors[operation] = AWAY
    worker.start()
    until(lambda: store.rounds > 5, "some heartbeats")
    assert actions(caplog) == ["presence_failed"]
    store.errors.clear()
    until(lambda: "presence_back" in actions(caplog), "the end of the outage")
    assert actions(caplog) == ["presence_failed", "presence_back"]
    assert "Traceback" not in caplog.text


def test_a_defect_is_logged_with_its_traceback_and_ends_no_heartbeat(
    store: Store, worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker without heartbeats would count as dead while it handles messages."""
    store.errors["subscribe"] = ValueError("a defect")
    worker.start()
    until(lambda: store.heartbeats > 5, "some heartbeats")
    assert actions(caplog) == ["presence_failed"]
    assert "ValueError: a defect" in caplog.text
    assert "Traceback" in caplog.text


def test_subscriptions_are_renewed_until_the_store_has_accepted_them(store: Store, worker: Any) -> None:
    """Only the first complete declaration renews them: an operator may remove one afterwards."""
    store.errors["subscribe"] = AWAY
    worker.start()
    until(lambda: store.rounds > 2, "some heartbeats")
    store.errors.clear()
    rounds = store.rounds
    until(lambda: store.rounds > rounds + 3, "some more")
    worker.stop()
    assert store.renewals[0] is True
    assert store.renewals[-1] is False
    assert sorted(store.renewals, reverse=True) == store.renewals


@pytest.mark.parametrize("error", [None, AWAY, ValueError("a defect")], ids=["works", "outage", "defect"])
def test_a_worker_withdraws_when_it_stops_and_logs_when_it_cannot(
    store: Store, worker: Any, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    """Its agents stay known; the stop does not fail."""
    worker.start()
    until(lambda: store.heartbeats > 0, "a heartbeat")
    if error is not None:
        store.errors["retire"] = error
    worker.stop()
    assert store.retired == ([] if error else ["probe"])
    assert actions(caplog) == (["presence_failed"] if error else [])
