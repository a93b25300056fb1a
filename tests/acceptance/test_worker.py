"""A real worker, driven by pytest-celery: it answers, records receipts, survives kill -9 and shuts down."""

from __future__ import annotations

from process_cluster import AgentSetup
from support import until

from waooaw_celery import Message, MessageBus, MessageStatus, RequestResponseHandler


def _order(order: str, **fields: float) -> Message:
    return Message(from_agent="tests", to_agent="greeter", payload={"order": order, **fields})


def _wait_for(status: MessageStatus, message_id: str, bus: MessageBus) -> None:
    until(lambda: bus.receipt(message_id).status is status, f"{message_id} is {status}")


def test_worker_runs_tasks_and_answers_remote_control(celery_setup: AgentSetup) -> None:
    """A started worker runs ordinary tasks, answers remote control, and logs that it is ready."""
    assert celery_setup.ready(ping=True, control=True, docker=False)
    node = celery_setup.worker.hostname()
    # By node name, because ready(control=True) also succeeds if no worker answers.
    assert celery_setup.app.control.ping(destination=[node], timeout=30) == [{node: {"ok": "pong"}}]
    celery_setup.worker.assert_log_exists(f"{node} ready.")
    celery_setup.worker.assert_log_exists("greeter.greet")


def test_request_is_answered(celery_setup: AgentSetup) -> None:
    """A request returns the result of the method in the worker."""
    handler = RequestResponseHandler(celery_setup.app)
    assert handler.request("greeter", "greet", {"name": "Ada"}, timeout=30) == "Hello, Ada!"


def test_celery_signature_has_a_receipt(celery_setup: AgentSetup) -> None:
    """A handler called by Celery's own API returns its result, and the receipt becomes HANDLED."""
    result = celery_setup.app.signature("greeter.greet", args=("Ada",)).delay()
    assert result.get(timeout=30) == "Hello, Ada!"
    bus = MessageBus(celery_setup.app)
    _wait_for(MessageStatus.HANDLED, result.id, bus)
    receipt = bus.receipt(result.id)
    assert (receipt.from_agent, receipt.to_agent, receipt.handler) == ("tests", "greeter", "greet")
    assert (receipt.attempts, receipt.error) == (1, None)


def test_message_to_a_killed_worker_is_handled_after_its_restart(celery_setup: AgentSetup) -> None:
    """A message that is sent after a kill -9 of the worker is handled once by the restarted worker."""
    bus = MessageBus(celery_setup.app)
    first = bus.send(_order("before"))
    _wait_for(MessageStatus.HANDLED, first.message_id, bus)
    celery_setup.worker.kill("SIGKILL")
    assert celery_setup.worker.container.status == "exited"
    assert celery_setup.worker.container.wait() == -9

    late = bus.send(_order("late"))
    assert late.status is MessageStatus.SENT
    celery_setup.worker.restart()
    _wait_for(MessageStatus.HANDLED, late.message_id, bus)

    assert bus.receipt(late.message_id).attempts == 1
    assert RequestResponseHandler(celery_setup.app).request("greeter", "seen", timeout=30) == ["late"]


def test_sigterm_finishes_the_message_and_ends_the_worker(celery_setup: AgentSetup) -> None:
    """After SIGTERM a worker finishes its message, is no longer alive and exits with 0 within 15 s."""
    bus = MessageBus(celery_setup.app)
    receipt = bus.send(_order("last", seconds=3.0))
    node = celery_setup.worker.hostname()
    inspect = celery_setup.app.control.inspect(destination=[node], timeout=5)
    until(lambda: (inspect.active() or {}).get(node), "the handler to begin")

    celery_setup.worker.kill("SIGTERM")

    assert celery_setup.worker.container.wait(timeout=15) == 0
    assert bus.receipt(receipt.message_id).status is MessageStatus.HANDLED
    assert celery_setup.app.registry.get("greeter").workers == ()
