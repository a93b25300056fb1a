"""Agents are found by what they can do, and messages go to those that are healthy."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import WAIT_SECONDS, Broker, settled, until

from waooaw_celery import Agent, AgentApp, MessageAuditTrail, MessageBus, MessageStatus
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.agents import AgentStatus, CapabilityAddress, Everyone, Health, Registry, aio
from waooaw_celery.errors import InvalidArguments, InvalidMessage, NoAgentAvailable, UnknownAgent
from waooaw_celery.testing.embedded import end_all

#: Seconds between two heartbeats of the agents of these tests.
BEAT = 0.5


class Agents:
    """Agents with the capability ``summarise`` and a tag that only those of one test have.

    Attributes:
        tag: the tag.
        address: what selects them.
        processes: their workers, by node.
    """

    def __init__(self, broker: Broker, app: AgentApp) -> None:
        self._broker, self._app = broker, app
        self.tag = f"t{uuid4().hex[:8]}"
        self.address = f"capability:summarise?tags={self.tag}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str | None = None, *, node: str | None = None, options: Sequence[str] = (), **declares: Any
    ) -> str:
        """Start a worker of an agent, and return the name of the agent."""
        name = name or self._broker.name()
        agent = {"tags": [self.tag], **declares.pop("agent", {})}
        self.processes[node or name] = self._broker.start(
            name,
            self._app,
            *options,
            module="capability_probe",
            node=node,
            env={"PROBE_DECLARES": json.dumps({"agent": agent, **declares})},
            waooaw_heartbeat_seconds=BEAT,
        )
        return name

    def log(self, node: str) -> str:
        """Return the log of a worker."""
        return (self._broker.folder / f"{node}.log").read_text()


@pytest.fixture
def agents(broker: Broker, app: AgentApp) -> Iterator[Agents]:
    """The agents of one test."""
    found = Agents(broker, app)
    yield found
    end_all(found.processes.values())


@pytest.fixture
def registry(app: AgentApp) -> Registry:
    """The registry of the test's application."""
    return Registry(app)


def health(registry: Registry, name: str) -> Health:
    """Return the health of an agent."""
    return registry.get(name).health


def test_an_agent_is_found_by_what_its_worker_declares(agents: Agents, registry: Registry) -> None:
    """Capability, version, tags, status and health select it; what does not match does not."""
    name = agents.start(agent={"version": "3.0", "metadata": {"model": "small"}, "weight": 2, "max_in_flight": 7})
    info = registry.get(name)
    assert [str(each) for each in info.capabilities] == ["summarise@2.1", "tell@3.0"]
    assert info.capabilities[0].method == "shorten"
    assert (info.metadata, info.weight, info.max_in_flight) == ({"model": "small"}, 2.0, 7)
    assert (info.status, info.health, info.versions) == (AgentStatus.ONLINE, Health.HEALTHY, ("3.0",))
    [contract] = info.contract("shorten")
    assert contract["parameters"]["properties"]["text"]["required"] == ["body"]

    def names(**conditions: Any) -> list[str]:
        return [each.name for each in registry.find(tags=[agents.tag], **conditions)]

    for matching in (
        {"capability": "summarise"},
        {"capability": "summarise", "version": ">=2,<3"},
        {"capability": "summarise", "version": "2"},
        {"status": "online"},
        {"status": [AgentStatus.ONLINE, AgentStatus.BUSY], "healthy": True},
    ):
        assert names(**matching) == [name], matching
    for other in (
        {"capability": "translate"},
        {"capability": "summarise", "version": ">=2.2"},
        {"status": "draining"},
        {"healthy": False},
    ):
        assert names(**other) == [], other
    assert registry.find(tags=[agents.tag, "no-such"]) == []
    assert registry.counts()["capability"]["summarise"] >= 1
    with pytest.raises(InvalidMessage, match="the capability too"):
        registry.find(version=">=2")
    with pytest.raises(UnknownAgent):
        registry.get("nobody-has-this-name")


def test_messages_and_requests_go_to_an_agent_with_the_capability(
    agents: Agents, app: AgentApp, tmp_path: Path
) -> None:
    """``send``, ``request`` and ``stream`` choose one; the ledger keeps the capability and the choice."""
    names = {agents.start(), agents.start()}
    client = Agent("tests", app)
    text = {"body": "long"}
    answers = Counter(
        client.request(f"{agents.address}&policy=round_robin", params={"text": text})["by"] for _ in range(6)
    )
    assert answers == dict.fromkeys(names, 3)
    file = tmp_path / "handled"
    receipts = [
        client.send(f"capability:summarise@>=2?tags={agents.tag}&policy=round_robin", {"file": str(file)})
        for _ in range(4)
    ]
    assert {settled(app, each.message_id) for each in receipts} == {MessageStatus.HANDLED}
    assert Counter(file.read_text().split()) == dict.fromkeys(names, 2)
    assert Counter(each.to_agent for each in receipts) == dict.fromkeys(names, 2)
    with client.stream(f"capability:tell?tags={agents.tag}", params={"count": 3}) as stream:
        assert list(stream) == [0, 1, 2]
    if app.settings.database_url is not None:
        record = MessageAuditTrail(app.ledger).receipt(receipts[0].message_id)
        assert record.capability == "summarise@>=2"
        assert record.receipt.to_agent == receipts[0].to_agent


@pytest.mark.slow
def test_coroutines_route_by_capability_too(agents: Agents, app: AgentApp) -> None:
    """``aio.RequestResponseHandler`` and ``aio.Registry`` have the same operations."""
    name = agents.start()

    async def ask() -> tuple[Any, list[str]]:
        address = CapabilityAddress("summarise", version="~=2.0", tags=(agents.tag,))
        found = await aio.Registry(app).find(capability="summarise", tags=[agents.tag])
        answer = await aio.RequestResponseHandler(app).request(address, params={"text": {"body": "a"}})
        return answer, [each.name for each in found]

    assert asyncio.run(ask()) == ({"by": name, "words": 10}, [name])


def test_the_error_says_who_was_considered_and_why_not(agents: Agents, app: AgentApp) -> None:
    """Each agent with the capability is named with its reason; an unknown capability names none."""
    first, second = agents.start(), agents.start(version="1.5")
    Registry(app).set_status(first, "maintenance", by="ada", reason="new model")
    with pytest.raises(NoAgentAvailable) as caught:
        Requests(app).request(f"capability:summarise@>=2?tags={agents.tag}", params={"text": {"body": "a"}})
    considered = caught.value.considered
    assert "maintenance (ada set it to maintenance" in considered[first]
    assert "new model" in considered[first]
    assert considered[second] == "it has 1.5, not >=2"
    with pytest.raises(NoAgentAvailable, match="no known agent declares it"):
        Requests(app).request("capability:no-such", params={})
    with pytest.raises(InvalidMessage, match="unknown option"):
        Requests(app).request("capability:summarise?tag=eu", params={})
    Registry(app).set_status(first, "online")
    assert Requests(app).request(agents.address + "&policy=round_robin", "shorten", {"text": {"body": "a"}})


def test_a_request_with_wrong_arguments_is_refused_before_it_is_queued(agents: Agents, app: AgentApp) -> None:
    """The error names the path; nothing is sent. With ``arrival``, the agent refuses it with the same error."""
    name = agents.start()
    requests = Requests(app)
    for params, path in (
        ({"text": {"body": 5}}, r"\$\.text\.body"),
        ({"text": {"pages": 2}}, r"\$\.text: 'body' is a required property"),
        ({}, r"missing a required argument: 'text'"),
        ({"text": {"body": "a"}, "words": "ten"}, r"\$\.words"),
        ({"text": {"body": "a"}, "colour": 1}, r"colour"),
    ):
        with pytest.raises(InvalidArguments, match=path) as caught:
            requests.send_request(name, "shorten", params)  # it returns the errors of what was sent
        assert str(caught.value).startswith(f"{name}.shorten takes (text, words=…): ")
    assert requests.request(name, "shorten", {"text": {"body": "a"}, "words": 3}) == {"by": name, "words": 3}


@pytest.mark.slow
def test_arguments_are_checked_where_they_arrive(agents: Agents, broker: Broker) -> None:
    """Also those of ``.delay``, by position, and those of a sender that does not check."""
    name = agents.start()
    sender = broker.app(waooaw_check_arguments="arrival")
    with pytest.raises(InvalidArguments, match=r"\$\.text\.body: 5 is not of type 'string'"):
        Requests(sender).request(name, "shorten", {"text": {"body": 5}})
    task = sender.send_task(f"{name}.shorten", ({"body": "a"}, "ten"))
    assert settled(sender, task.id) is MessageStatus.FAILED
    assert "words" in str(MessageBus(sender).receipt(task.id).error)
    sender.close()


def test_a_failing_check_ends_the_routing_and_a_passing_one_brings_it_back(
    agents: Agents, app: AgentApp, registry: Registry, tmp_path: Path
) -> None:
    """Heartbeats alone say nothing about health: a check that fails counts although they go on."""
    file = tmp_path / "ready"
    file.touch()
    checked, other = agents.start(check_file=str(file)), agents.start()
    until(lambda: health(registry, checked) is Health.HEALTHY, "the first check")
    file.unlink()
    until(lambda: health(registry, checked) is Health.UNHEALTHY, "the failed check", 5)
    assert "check file_is_there: it returned False" in registry.get(checked).reasons[0]
    beats = registry.get(checked).last_seen
    until(lambda: registry.get(checked).last_seen != beats, "a heartbeat")
    assert health(registry, checked) is Health.UNHEALTHY
    text = {"text": {"body": "a"}}
    assert {Requests(app).request(agents.address, params=text)["by"] for _ in range(20)} == {other}
    file.touch()
    until(lambda: health(registry, checked) is Health.HEALTHY, "the recovery", 5)
    address = f"{agents.address}&policy=round_robin"
    assert {Requests(app).request(address, params=text)["by"] for _ in range(4)} == {checked, other}
    history = [each.health for each in registry.get(checked).workers[0].facts.history]  # type: ignore[union-attr]
    assert history[-3:] == [Health.HEALTHY, Health.UNHEALTHY, Health.HEALTHY]


@pytest.mark.slow
def test_a_check_that_blocks_makes_the_agent_unhealthy(agents: Agents, registry: Registry) -> None:
    """It delays neither heartbeats nor other agents."""
    name = agents.start(blocked_check=True)
    until(lambda: health(registry, name) is Health.UNHEALTHY, "the timeout", 5)
    assert "did not return within 0.3 s" in registry.get(name).reasons[0]


@pytest.mark.slow
def test_an_agent_whose_messages_fail_becomes_unhealthy(
    agents: Agents, app: AgentApp, registry: Registry, tmp_path: Path
) -> None:
    """Half of the messages of the last minute must fail, of ten at least."""
    file = tmp_path / "fail"
    name = agents.start(fail_file=str(file))
    requests, text = Requests(app), {"text": {"body": "a"}}
    for _ in range(8):
        requests.request(name, "shorten", text)
    file.touch()
    for _ in range(8):
        assert not requests.send_request(name, "shorten", text).ok
    until(lambda: health(registry, name) is Health.UNHEALTHY, "the assessment", 5)
    assert registry.get(name).reasons[0].endswith("8 of 16 messages of the last minute failed")
    with pytest.raises(NoAgentAvailable, match="messages of the last minute failed"):
        requests.request(agents.address, params=text)
    facts = registry.get(name).workers[0].facts
    assert facts is not None
    assert (facts.handled, facts.failed) == (16, 8)
    assert facts.seconds is not None
    assert 0 < facts.seconds[0] <= facts.seconds[1] < 5


def test_a_drained_agent_ends_what_it_has_and_stops(
    agents: Agents, app: AgentApp, registry: Registry, tmp_path: Path
) -> None:
    """What waits in its queue is handled by a worker that starts later, and gets messages by capability again."""
    name = agents.start()
    gate, file = tmp_path / "gate", tmp_path / "handled"
    client = Agent("tests", app)
    running = client.send(name, {"file": str(file), "gate": str(gate)})
    until(file.exists, "the first message")
    registry.set_status(name, "draining", by="ada")
    until(lambda: "takes no new message" in agents.log(name), "the order", 5)
    until(lambda: registry.get(name).status is AgentStatus.DRAINING, "the status", 5)
    with pytest.raises(NoAgentAvailable, match="draining"):
        client.send(agents.address, {"file": str(file)})
    until(lambda: not _consumes(app, name), "the end of consuming", 5)
    waiting = client.send(name, {"file": str(file)})
    assert agents.processes[name].poll() is None
    gate.touch()
    assert agents.processes[name].wait(WAIT_SECONDS) == 0
    assert settled(app, running.message_id) is MessageStatus.HANDLED
    assert MessageBus(app).receipt(waiting.message_id).status is MessageStatus.SENT
    until(lambda: registry.get(name).status is AgentStatus.OFFLINE, "the withdrawal", 5)
    agents.start(name)
    assert settled(app, waiting.message_id) is MessageStatus.HANDLED
    assert registry.get(name).status is AgentStatus.ONLINE
    assert client.send(agents.address, {"file": str(file)}).to_agent == name


def _consumes(app: AgentApp, name: str) -> bool:
    answers = app.control.inspect(timeout=1.0).active_queues() or {}
    return any(queue["name"] == f"agent.{name}" for node in answers for queue in answers[node])


@pytest.mark.slow
def test_a_drained_agent_can_be_resumed_before_it_has_stopped(
    agents: Agents, app: AgentApp, registry: Registry, tmp_path: Path
) -> None:
    """Its worker consumes again."""
    name = agents.start()
    gate, file = tmp_path / "gate", tmp_path / "handled"
    client = Agent("tests", app)
    client.send(name, {"file": str(file), "gate": str(gate)})
    until(file.exists, "the first message")
    registry.set_status(name, "draining")
    until(lambda: registry.get(name).status is AgentStatus.DRAINING, "the status", 5)
    registry.set_status(name, "online")
    gate.touch()
    sent = client.send(name, {"file": str(file)})
    assert settled(app, sent.message_id) is MessageStatus.HANDLED
    assert agents.processes[name].poll() is None


@pytest.mark.slow
def test_a_change_is_watched_within_a_second(agents: Agents, registry: Registry) -> None:
    """A new status, and the end of a worker, come with what was known before and after."""
    name = agents.start()

    async def watch() -> list[tuple[str, Any, Any]]:
        seen = []
        changes = registry.watch()
        pending = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        until_ready = asyncio.get_running_loop().time() + 0.5
        while asyncio.get_running_loop().time() < until_ready:
            await asyncio.sleep(0.05)
        began = time.monotonic()
        await asyncio.to_thread(registry.set_status, name, "maintenance")
        while not seen:
            change = await asyncio.wait_for(pending, 5)
            if change.agent == name and change.kind == "status":
                seen.append(
                    (change.kind, change.before and change.before.status, change.after and change.after.status)
                )
                assert time.monotonic() - began < 1.5
            else:
                pending = asyncio.ensure_future(anext(changes))
        await changes.aclose()  # type: ignore[attr-defined]
        return seen

    assert asyncio.run(watch()) == [("status", AgentStatus.ONLINE, AgentStatus.MAINTENANCE)]


@pytest.mark.slow
def test_a_snapshot_is_at_most_a_second_old(agents: Agents, app: AgentApp, registry: Registry) -> None:
    """Without a sleep, asking again and again shows a worker's end within its time to live and a second."""
    name = agents.start()
    process = agents.processes[name]
    assert registry.get(name).status is AgentStatus.ONLINE
    began = time.monotonic()
    process.kill()
    process.wait(WAIT_SECONDS)
    until(lambda: registry.get(name).status is AgentStatus.OFFLINE, "its time to live", 10)
    assert time.monotonic() - began < 3 * BEAT + 1.5
    assert time.monotonic() - app.directory.snapshot().read_at <= 1.0


@pytest.mark.slow
def test_an_agent_that_is_no_celery_worker_is_registered(
    app: AgentApp, broker: Broker, registry: Registry, until_status: Callable[[str, AgentStatus], None]
) -> None:
    """It gets messages by capability until it is deregistered; a second process keeps it ONLINE."""
    name = broker.name()
    tag = f"t{uuid4().hex[:8]}"
    options: dict[str, Any] = {"handlers": ["command"], "capabilities": ["print"], "tags": [tag], "ttl_seconds": 3}
    first = registry.register(name, instance="one", version="1.2", **options)
    with registry.register(name, instance="two", version="1.2", **options):
        assert [str(each) for each in registry.get(name).capabilities] == ["print@1.2"]
        assert len(registry.get(name).workers) == 2
        first.deregister()
        until(lambda: len(registry.get(name).workers) == 1, "the withdrawal", 5)
        sent = MessageBus(app).send_to("tests", f"capability:print@1?tags={tag}", {"page": 1})
        assert sent.to_agent == name
        with pytest.raises(InvalidMessage, match="is alive"):
            registry.deregister(name)
    until_status(name, AgentStatus.OFFLINE)
    assert registry.deregister(name)
    assert name not in [each.name for each in registry.list()]


@pytest.fixture
def until_status(registry: Registry) -> Callable[[str, AgentStatus], None]:
    """Return a function that waits until an agent has a status."""
    return lambda name, status: until(lambda: registry.get(name).status is status, f"{name} {status}", 10)


@pytest.mark.slow
def test_a_busy_agent_gets_no_message_while_another_is_free(
    agents: Agents, app: AgentApp, registry: Registry, tmp_path: Path
) -> None:
    """``max_in_flight`` counts the messages that run."""
    busy, free = agents.start(agent={"max_in_flight": 1}), agents.start()
    client, gate, file = Agent("tests", app), tmp_path / "gate", tmp_path / "handled"
    client.send(busy, {"file": str(file), "gate": str(gate)})
    until(lambda: registry.get(busy).status is AgentStatus.BUSY, "the heartbeat", 5)
    chosen = {client.send(agents.address, {"file": str(file)}).to_agent for _ in range(10)}
    gate.touch()
    assert chosen == {free}


@pytest.mark.slow
def test_traffic_moves_between_two_versions_by_their_weights(
    agents: Agents, app: AgentApp, registry: Registry, tmp_path: Path
) -> None:
    """Blue and green are two agents with one capability. A weight outlasts a new status, and heartbeats."""
    blue, green = agents.start(agent={"weight": 0}), agents.start(agent={"weight": 3})
    client, file = Agent("tests", app), str(tmp_path / "handled")
    address = f"{agents.address}&policy=weighted"

    def shares() -> Counter[str]:
        return Counter(client.send(address, {"file": file}).to_agent for _ in range(100))

    assert shares() == {green: 100}
    assert {client.send(agents.address, {"file": file}).to_agent for _ in range(20)} == {green}
    with pytest.raises(UnknownAgent):
        registry.set_weights({blue: 1, "nobody-has-this-name": 1})
    assert registry.get(blue).weight == 0
    registry.set_weights({blue: 1, green: 1})
    assert 25 <= shares()[blue] <= 75
    registry.set_status(green, "maintenance")
    assert shares() == {blue: 100}
    registry.set_status(green, "online")
    assert [each.weight for each in registry.set_weights({green: 0})] == [0.0]
    beats = registry.get(green).last_seen
    until(lambda: registry.get(green).last_seen != beats, "a heartbeat")
    assert shares() == {blue: 100}
    registry.set_weights({green: None})
    assert registry.get(green).weight == 3.0


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_the_outcomes_of_every_pool_count(agents: Agents, app: AgentApp, registry: Registry, pool: str) -> None:
    """Methods and messages that were handled, and how long they took. Wrong arguments are no failures."""
    name = agents.start(seconds=0.01, options=["-P", pool])
    requests = Requests(app)
    for _ in range(3):
        requests.request(name, "shorten", {"text": {"body": "a"}})
    sent = [Agent("tests", app).send(name, {"file": "/dev/null"}), app.send_task(f"{name}.shorten", (5,))]
    assert [settled(app, getattr(each, "message_id", None) or each.id) for each in sent] == [
        MessageStatus.HANDLED,
        MessageStatus.FAILED,
    ]

    def facts() -> tuple[int, int]:
        [worker] = registry.get(name).workers
        return (worker.facts.handled, worker.facts.failed) if worker.facts else (0, 0)

    until(lambda: facts() == (5, 0), "the outcomes", 10)
    found = registry.get(name).workers[0].facts
    assert found is not None
    assert found.seconds is not None
    assert found.seconds[1] >= 0.01
    assert found.waited is not None
    assert found.waited < WAIT_SECONDS


@pytest.mark.slow
def test_a_broadcast_selects_agents_by_the_capabilities_of_their_methods(agents: Agents, app: AgentApp) -> None:
    """``Everyone(capability=...)`` and an address by capability name the same agents."""
    name = agents.start()
    receipts = MessageBus(app).broadcast("tests", Everyone(capability="summarise"), {"file": "/dev/null"})
    assert name in receipts
