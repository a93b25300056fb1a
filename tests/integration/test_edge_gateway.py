"""The gateway of the edges: calls from outside with real workers, and what the ledger tells of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from edge_world import EdgeWorld, edge_world
from support import until

from waooaw_celery.discovery.registry import Registry
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.gateway import Gateway, task_id_of
from waooaw_celery.edges.gateway.task import Call, TaskState
from waooaw_celery.errors import (
    InvalidArguments,
    InvalidMessage,
    NotPermitted,
    NoWorker,
    UnknownMessage,
    UnknownMethod,
)
from waooaw_celery.testing.embedded import valkey


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeWorld]:
    folder = tmp_path_factory.mktemp("edge")
    with valkey() as url, edge_world(url, f"sqlite:///{folder / 'ledger.db'}", folder) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(world: EdgeWorld) -> Gateway:
    return Gateway(world.app)


def call_of(world: EdgeWorld, method: str, arguments: dict[str, Any], **fields: Any) -> Call:
    given = {
        "principal": world.principal,
        "protocol": "test",
        "task_id": world.app.result_collector.new_id(),
        "timeout": 30.0,
        **fields,
    }
    return Call(agent=world.agent, method=method, arguments=arguments, **given)


def test_a_call_is_a_request_in_the_name_of_the_principal(world: EdgeWorld, gateway: Gateway) -> None:
    """The ledger has the message with the agent and the identity of the principal, and the task's id."""
    call = call_of(world, "forecast", {"city": "Turin"})
    task = asyncio.run(gateway.run(call))
    assert (task.state, task.result) == (TaskState.COMPLETED, {"city": "Turin", "degrees": 21})
    record = world.trail.receipt(call.task_id)
    assert (record.receipt.from_agent, record.identity) == ("portal", "test:portal")
    assert record.payload == {"city": "Turin"}


def test_a_task_is_read_from_the_ledger_by_any_process(world: EdgeWorld, gateway: Gateway) -> None:
    """Another gateway, without any memory of the call, tells the same."""
    call = call_of(world, "forecast", {"city": "Pisa"})
    told = asyncio.run(gateway.run(call))
    read = asyncio.run(Gateway(world.app).wait(world.principal, call.task_id, 10.0))
    assert (read.state, read.result, read.arguments) == (told.state, told.result, {"city": "Pisa"})
    assert read.conversation_id == told.conversation_id == call.task_id


def test_a_call_without_waiting_goes_on(world: EdgeWorld, gateway: Gateway) -> None:
    """It returns at once, and the task ends by itself."""

    async def start() -> None:
        call = call_of(world, "slow", {"seconds": 0.5})
        task = await gateway.start(call)
        assert not task.state.final
        ended = await gateway.wait(world.principal, call.task_id, 20.0)
        assert (ended.state, ended.result) == (TaskState.COMPLETED, "done")

    asyncio.run(start())


def test_a_failure_tells_the_error_of_the_handler(world: EdgeWorld, gateway: Gateway) -> None:
    """At once, and from the ledger."""
    call = call_of(world, "fail", {"text": "no such city"})
    told = asyncio.run(gateway.run(call))
    read = asyncio.run(gateway.wait(world.principal, call.task_id, 10.0))
    for task in (told, read):
        assert task.state is TaskState.FAILED
        assert task.error is not None
        assert (task.error.type, task.error.message) == ("ValueError", "no such city")


def test_a_workflow_waits_for_input(world: EdgeWorld, gateway: Gateway) -> None:
    """It is a task of the same kind, and a signal lets it go on."""

    async def review() -> None:
        call = call_of(world, "review", {"document": "plan"}, conversation_id=str(uuid4()))
        task = await gateway.run(call, wait=20.0)
        assert (task.state, task.waits_for) == (TaskState.INPUT_REQUIRED, "approval")
        assert task.progress == {"stage": "waiting for approval"}
        assert task.conversation_id == call.conversation_id
        await gateway.signal(world.principal, call.task_id, "approval", "yes", signal_id=str(uuid4()))

        async def ended() -> Any:
            while not (found := await gateway.task(world.principal, call.task_id)).state.final:
                await asyncio.sleep(0.02)
            return found

        found = await asyncio.wait_for(ended(), 20.0)
        assert (found.state, found.result) == (TaskState.COMPLETED, {"document": "plan", "decision": "yes"})
        assert world.trail.receipt(call.task_id).identity == "test:portal"

    asyncio.run(review())


def test_the_same_id_twice_is_one_call(world: EdgeWorld, gateway: Gateway) -> None:
    """Also if both arrive at once; the effect happens once, and both are answered."""
    city = f"city-{uuid4().hex}"
    call = call_of(world, "forecast", {"city": city}, task_id=task_id_of(world.principal, "order 7"))

    async def twice() -> list[Any]:
        return await asyncio.gather(*(gateway.run(call) for _ in range(5)), return_exceptions=True)

    tasks = asyncio.run(twice())
    assert [getattr(task, "result", task) for task in tasks] == [{"city": city, "degrees": 21}] * 5
    assert world.happened().count(f"forecast {city}") == 1


def test_another_principal_sees_no_task(world: EdgeWorld, gateway: Gateway) -> None:
    """It reads as if there were none."""
    call = call_of(world, "echo", {"text": "secret"})
    asyncio.run(gateway.run(call))
    stranger = Principal(name="stranger", from_agent="stranger")
    with pytest.raises(UnknownMessage, match="there is no task"):
        asyncio.run(gateway.task(stranger, call.task_id))
    with pytest.raises(UnknownMessage, match="there is no task"):
        asyncio.run(gateway.cancel(stranger, call.task_id))
    with pytest.raises(NotPermitted, match="belongs to another call"):
        asyncio.run(gateway.run(replace(call, principal=stranger, task_id=str(call.task_id))))


def test_a_principal_calls_only_what_it_may(world: EdgeWorld, gateway: Gateway) -> None:
    """The patterns of its entry decide."""
    guest = replace(world.principal, may_call=(f"{world.agent}.echo",))
    assert asyncio.run(gateway.run(call_of(world, "echo", {"text": "hi"}, principal=guest))).result == "hi"
    with pytest.raises(NotPermitted, match=r"portal may not call .*forecast"):
        asyncio.run(gateway.run(call_of(world, "forecast", {"city": "Rome"}, principal=guest)))


def test_bad_calls_are_refused_before_they_are_sent(world: EdgeWorld, gateway: Gateway) -> None:
    """The error says what is wrong, and the ledger has no message."""
    wrong = call_of(world, "forecast", {"town": "Rome"})
    with pytest.raises(InvalidArguments, match="city"):
        asyncio.run(gateway.run(wrong))
    with pytest.raises(UnknownMethod, match=r"it has .*forecast"):
        asyncio.run(gateway.run(call_of(world, "nothing", {})))
    with pytest.raises(UnknownMessage):
        world.trail.receipt(wrong.task_id)


def test_a_running_task_can_be_cancelled(world: EdgeWorld, gateway: Gateway) -> None:
    """Its coroutine is stopped, and the task is cancelled."""

    async def cancel() -> None:
        call = call_of(world, "slow", {"seconds": 60})
        await gateway.start(call)
        async for task in gateway.changes(world.principal, call.task_id, 20.0):
            if task.state is TaskState.WORKING:
                break
        await gateway.cancel(world.principal, call.task_id)
        assert (await gateway.wait(world.principal, call.task_id, 10.0)).state is TaskState.CANCELLED

    asyncio.run(cancel())


def test_a_call_waits_for_an_agent_whose_workers_are_stopped(tmp_path: Path) -> None:
    """Its queue keeps the call. An edge that has never seen a worker of it says that one must be started."""
    with valkey() as url, edge_world(url, f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path) as world:
        gateway = Gateway(world.app)
        call = call_of(world, "echo", {"text": "hi"}, principal=world.principal)
        assert asyncio.run(gateway.run(call)).result == "hi"
        world.app.control.shutdown()
        until(lambda: not Registry(world.app).get(world.agent).workers, "the end of the worker")
        until(lambda: gateway.catalogue.known(world.agent) is None, "the next read of the registry")

        async def call_again() -> Any:
            later = call_of(world, "echo", {"text": "later"}, principal=world.principal)
            assert (await gateway.start(later)).state is TaskState.SUBMITTED
            with pytest.raises(NoWorker, match="start one, and try again"):
                await Gateway(world.app).start(call_of(world, "echo", {"text": "x"}, principal=world.principal))
            env = {"PROBE_EFFECTS": str(world.effects)}
            with world.broker.running(world.agent, world.app, module="edge_probe", env=env):
                return await gateway.wait(world.principal, later.task_id, 20.0)

        assert asyncio.run(call_again()).result == "later"


def test_a_stream_gives_its_parts(world: EdgeWorld, gateway: Gateway) -> None:
    """In order, and the ledger has the task."""

    async def read() -> list[Any]:
        call = call_of(world, "write", {"topic": "tides", "words": 4})
        async with gateway.stream(call) as parts:
            found = [part async for part in parts]
        assert (await gateway.wait(world.principal, call.task_id, 10.0)).state is TaskState.COMPLETED
        return found

    assert asyncio.run(read()) == [f"tides-{number} " for number in range(4)]


def test_the_same_call_again_leaves_a_stream_its_answer(world: EdgeWorld, gateway: Gateway) -> None:
    """It waits for the task, and no second stream of it is opened."""
    arguments = {"topic": "tides", "words": 5, "pause": 0.1}
    call = call_of(world, "write", arguments, task_id=task_id_of(world.principal, uuid4().hex))

    async def read() -> tuple[list[Any], Any]:
        async with asyncio.timeout(20), gateway.stream(call) as parts:
            again = asyncio.ensure_future(gateway.run(call))
            with pytest.raises(InvalidMessage, match="is being made already"):
                async with gateway.stream(call):
                    pass
            return [part async for part in parts], (await again).state

    parts, state = asyncio.run(read())
    assert parts == [f"tides-{number} " for number in range(5)]
    assert state is TaskState.COMPLETED


def test_another_call_does_not_get_the_answer_of_one_that_runs(world: EdgeWorld, gateway: Gateway) -> None:
    """If both have one id, the second is refused, as after the end of the first."""
    call = call_of(world, "slow", {"seconds": 0.5}, task_id=task_id_of(world.principal, uuid4().hex))

    async def both() -> list[Any]:
        other = replace(call, method="echo", arguments={"text": "hi"})
        return list(await asyncio.gather(gateway.run(call), gateway.run(other), return_exceptions=True))

    first, second = asyncio.run(both())
    assert first.result == "done"
    assert isinstance(second, NotPermitted)


def test_a_wait_that_ends_before_the_call_is_sent_finds_the_task(world: EdgeWorld, gateway: Gateway) -> None:
    """However short it was: the call is on its way, so it is not told that there is none."""
    call = call_of(world, "echo", {"text": "hi"})

    async def run() -> Any:
        await gateway.run(call, wait=0.000_001)
        return await gateway.wait(world.principal, call.task_id, 20.0)

    assert asyncio.run(run()).result == "hi"


def test_a_call_ends_though_another_edge_got_its_only_answer(world: EdgeWorld) -> None:
    """In batched mode two edges may send one message at once, and it is answered once: the ledger tells."""
    app = world.broker.app(waooaw_audit_mode="batched")
    call = call_of(world, "slow", {"seconds": 0.5}, task_id=task_id_of(world.principal, uuid4().hex))

    async def run() -> Any:
        asked = asyncio.ensure_future(Gateway(app).run(call))
        while not app.result_collector._pending.get(call.task_id):  # nothing else shows it
            await asyncio.sleep(0.01)
        app.result_collector._pending.drop(call.task_id)  # the answer goes elsewhere
        async with asyncio.timeout(15):
            return await asked

    try:
        task = asyncio.run(run())
    finally:
        app.close()
    assert (task.state, task.result) == (TaskState.COMPLETED, "done")


def test_a_result_that_is_not_recorded_is_not_told_as_none(world: EdgeWorld, gateway: Gateway) -> None:
    """The task has ended well, and its error says that the result is not known."""
    name = world.broker.name()
    env = {"PROBE_EFFECTS": str(world.effects)}
    with world.broker.running(name, world.app, module="edge_probe", env=env, waooaw_record_answers=False):
        call = replace(call_of(world, "echo", {"text": "hi"}), agent=name)
        assert asyncio.run(gateway.run(call)).result == "hi"
        task = asyncio.run(gateway.wait(world.principal, call.task_id, 10.0))
    assert task.state is TaskState.COMPLETED
    assert task.error is not None
    assert task.error.type == "ResultNotRecorded"


def test_a_repeat_in_batched_mode_is_not_sent_again(world: EdgeWorld) -> None:
    """Also one that has read the ledger before it was told, and goes on after the first was answered."""
    app = world.broker.app(waooaw_audit_mode="batched")
    city = f"city-{uuid4().hex}"
    call = call_of(world, "forecast", {"city": city}, task_id=task_id_of(world.principal, city))

    async def repeat() -> list[Any]:
        gateway = Gateway(app)
        first = await gateway.run(call)
        again = await gateway._requests.ask(call)  # where such a repeat goes on
        return [first.result, again.result]

    try:
        results = asyncio.run(repeat())
    finally:
        app.close()
    assert results == [{"city": city, "degrees": 21}] * 2
    assert world.happened().count(f"forecast {city}") == 1
