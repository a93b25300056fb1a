"""Faults while many workflows run: workers are killed, and servers are restarted at the same time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from faults.cluster import Cluster
from faults.stacks import Agents
from waooaw_celery.agents import Workflows

#: Workflows for each round.
WORKFLOWS = 50
#: Settings of the workers: a dead process is replaced soon.
SETTINGS: dict[str, Any] = {"waooaw_workflow_lease_seconds": 2.0, "waooaw_workflow_poll_seconds": 0.5}
#: Seconds within which all workflows must end after the last fault, for each round.
END_SECONDS = 60.0


def workers_killed(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """One of two workers is killed at a random time in each round."""
    _run(cluster, rounds, rng, _kill)


def database_restarts(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The ledger's database is stopped, a worker is killed meanwhile, and the database starts again."""

    def restart(cluster: Cluster, rng: random.Random) -> None:
        cluster.postgres.stop()
        time.sleep(rng.uniform(0, 1))
        cluster.kill(rng.choice(cluster.workers))
        time.sleep(rng.uniform(0, 1))
        cluster.postgres.start()
        cluster.start(**SETTINGS)

    _run(cluster, rounds, rng, restart)


def broker_loses_data(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The broker restarts without its messages, and a worker is killed at the same time."""

    def lose(cluster: Cluster, rng: random.Random) -> None:
        cluster.broker.kill()
        cluster.kill(rng.choice(cluster.workers))
        cluster.broker.start()
        cluster.start(**SETTINGS)

    _run(cluster, rounds, rng, lose)


def _kill(cluster: Cluster, rng: random.Random) -> None:
    cluster.kill(rng.choice(cluster.workers))
    cluster.start(**SETTINGS)


def _run(
    cluster: Cluster, rounds: int, rng: random.Random, fault: Callable[[Cluster, random.Random], None]
) -> None:
    """Start workflows in each round, and cause a fault; then let them end, and check them."""
    assert isinstance(cluster.stack, Agents)
    workflows = Workflows(cluster.stack.app)
    expected: dict[str, str] = {}
    with cluster.system():  # the recovery publishes the answers of workers that died before they could
        for _ in range(2):
            cluster.start(**SETTINGS)
        for _ in range(rounds):
            ids = []
            for _ in range(WORKFLOWS):
                fails = rng.random() < 0.3
                started = workflows.start(f"{cluster.stack.name}.job", {"fails": fails})
                ids.append(started.workflow_id)
                expected[started.workflow_id] = "compensated" if fails else "completed"
            time.sleep(rng.uniform(0, 1))
            fault(cluster, rng)
            for id_ in ids:
                workflows.signal(id_, "go", id_)
        try:
            cluster.until(lambda: not _running(cluster), "the end of all workflows", END_SECONDS * rounds)
        except AssertionError as error:
            raise AssertionError(f"{_running(cluster)[:10]}: {error}") from error
    _check(cluster, expected)


def _running(cluster: Cluster) -> list[tuple[Any, ...]]:
    return cluster.stack.ask("""
        SELECT workflow_id, status, waits_for, inputs, owner, wake_at - now(), takeovers FROM waooaw_workflows
        WHERE status NOT IN ('completed', 'compensated', 'failed', 'cancelled', 'timed out', 'stuck')
    """)


def _check(cluster: Cluster, expected: dict[str, str]) -> None:
    """Check each workflow, its steps and its messages against what the function returned."""
    ask = cluster.stack.ask
    for id_, status, error in ask("SELECT workflow_id, status, error FROM waooaw_workflows"):
        cluster.expect(status == expected.get(id_), f"workflow {id_} is {status}: {error}")
    not_ended = ask("SELECT workflow_id, path, status FROM waooaw_workflow_steps WHERE ended_at IS NULL")
    undone = [row for row in not_ended if row[2] != "registered" or expected[row[0]] == "compensated"]
    cluster.expect(not undone, f"steps without an outcome: {undone[:3]}")
    waiting = ask("SELECT count(*) FROM waooaw_workflow_inputs")
    cluster.expect(waiting == [(0,)], f"{waiting} inputs were never taken")
    order = """
        SELECT a.workflow_id FROM waooaw_workflow_steps a JOIN waooaw_workflow_steps b USING (workflow_id)
        WHERE a.kind = 'compensation' AND b.kind = 'compensation'
        AND a.number < b.number AND a.ended_at < b.ended_at
    """
    cluster.expect(not ask(order), "what was done was not undone last first")
    # One that the ledger refused was never published: its step goes on under another id.
    several = """
        SELECT m.message_id FROM waooaw_messages m WHERE m.handler = 'double' AND NOT EXISTS (
            SELECT FROM waooaw_workflow_steps s WHERE s.request_id = m.message_id
        ) AND (SELECT count(*) FILTER (WHERE e.event = 'failed' AND e.attempt = 0) = 0 OR count(*) > 1
               FROM waooaw_message_events e WHERE e.message_id = m.message_id)
    """
    cluster.expect(not ask(several), f"requests were sent under two ids: {ask(several)[:3]}")
    cluster.accept_other_messages()
