"""When a worker acknowledges a message whose outcome could not be recorded at first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support import until

from waooaw_celery.worker import intake as module
from waooaw_celery.worker.intake import Intake


class Recording:
    """What the processes of a worker share: the messages whose outcome is not recorded."""

    def __init__(self) -> None:
        self.fails = False
        self.held = {"one"}

    def holds(self, message_id: str) -> bool:
        return message_id in self.held

    def release(self, message_id: str) -> None:
        self.held.discard(message_id)


class Request:
    """A message in a worker."""

    id = "one"

    def __init__(self) -> None:
        self.log: list[str] = []

    def settle(self) -> None:
        self.log.append("acknowledged")

    def reject(self, requeue: bool) -> None:
        self.log.append(f"rejected, requeue={requeue}")


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
def intake(recording: Recording) -> Intake:
    ledger = SimpleNamespace(recording=recording)
    return Intake(SimpleNamespace(components=SimpleNamespace(has_ledger=True), ledger=ledger))


#: Calls at once what it is asked to call soon.
CONSUMER: Any = SimpleNamespace(call_soon=lambda call, *args: call(*args))


def test_a_message_is_acknowledged_when_its_outcome_is_recorded(intake: Intake, recording: Recording) -> None:
    """Neither before that, nor twice."""
    request = Request()
    assert intake.defer(request, request.settle)
    intake.check(CONSUMER)
    assert request.log == []
    recording.release("one")
    intake.check(CONSUMER)
    intake.check(CONSUMER)
    assert request.log == ["acknowledged"]


def test_a_recorded_message_is_not_deferred(intake: Intake, recording: Recording) -> None:
    """The caller acknowledges it at once."""
    recording.release("one")
    request = Request()
    assert not intake.defer(request, request.settle)


def test_a_message_whose_process_died_is_requeued_after_some_time(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time counts from the deferral: the process may still record the outcome until then."""
    request = Request()
    intake.defer(request, request.settle)
    intake.check(CONSUMER)  # also in a worker whose ledger was never away
    assert request.log == []
    monkeypatch.setattr(module, "LOST_SECONDS", 0.2)
    until(lambda: intake.check(CONSUMER) or request.log, "the verdict")
    assert request.log == ["rejected, requeue=True"]
