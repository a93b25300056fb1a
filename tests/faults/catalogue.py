"""The catalogue of faults: what each does, on which brokers, what is allowed meanwhile; and how one is run."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from postgres_server import Server as Postgres
from postgres_server import lone_server as lone_postgres
from selection import ALL

from faults import key_faults, message_faults, mixed_faults, server_faults, worker_faults, workflow_faults
from faults.account import Account
from faults.cluster import Cluster
from faults.servers import Server, lone_rabbitmq, lone_valkey

#: Seconds that a call may take when the servers answer or refuse.
DEADLINE_SECONDS = 2.0
VALKEY, RABBITMQ = "valkey", "rabbitmq"
BOTH = (VALKEY, RABBITMQ)


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        number: its number in the report.
        name: its name in the report.
        run: causes it in a cluster, the given number of times.
        rounds: rounds in the short run.
        max_rounds: maximum of rounds in the long run; None: no maximum.
        rounds_factor: rounds for each round that the long run asks for.
        brokers: the brokers on which it is caused.
        deadline: seconds that a call may take meanwhile.
        duplicates: messages per round that may be handled more than once; None: any number.
        lines: whether connections to the broker go through proxies.
        durable: whether the broker persists its messages.
        plain: whether it is also caused with plain Celery.
        max_plain_rounds: maximum of rounds with plain Celery.
        patience: seconds within which all messages must end after it.
        fast: whether it is part of the short run.
        gate: the brokers on which it is part of the quick tests, and not only of the whole suite.
    """

    number: str
    name: str
    run: Callable[[Cluster, int, random.Random], None]
    rounds: int = 2
    max_rounds: int | None = None
    rounds_factor: int = 1
    brokers: tuple[str, ...] = BOTH
    deadline: float = DEADLINE_SECONDS
    duplicates: int | None = 0
    lines: bool = False
    durable: bool = True
    plain: bool = False
    max_plain_rounds: int = 10
    patience: float = 60.0
    fast: bool = True
    gate: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return its name in a list of tests."""
        return f"{self.number} {self.name}"

    @property
    def kind(self) -> str:
        """Return what is faulty: ``workers``, ``servers``, ``messages``, ``workflows``, ``keys`` or ``mixed``."""
        return f"{self.run.__module__.removeprefix('faults.').removesuffix('_faults')}s"


FAULTS = (
    Fault(
        "T1",
        "worker killed under load",
        worker_faults.kill_under_load,
        3,
        rounds_factor=10,
        duplicates=2,
        plain=True,
        gate=BOTH,
    ),
    Fault("T1b", "the same, with once=True", worker_faults.kill_once, 2, rounds_factor=2, duplicates=None),
    Fault(
        "T2",
        "worker frozen, then killed",
        worker_faults.kill_frozen,
        3,
        rounds_factor=5,
        duplicates=2,
        plain=True,
        gate=(VALKEY,),
    ),
    Fault("T3", "pool process killed", worker_faults.kill_child, 2, plain=True),
    Fault(
        "T4",
        "messages that kill their process",
        worker_faults.deadly_messages,
        1,
        max_rounds=10,
        plain=True,
        gate=(VALKEY,),
    ),
    Fault(
        "T4b",
        "a message that kills its worker",
        worker_faults.kill_parent,
        1,
        max_rounds=5,
        duplicates=2,
    ),
    Fault("T5", "warm shutdown of a worker, with a backlog", worker_faults.end_in_order, 2, plain=True),
    Fault("T6", "cold shutdown of a worker", worker_faults.end_cold, 2, duplicates=2),
    Fault(
        "T7",
        "broker killed, with a log on disk",
        server_faults.broker_killed,
        1,
        deadline=5.0,
        duplicates=None,
        plain=True,
    ),
    Fault(
        "T7b", "broker killed, nothing on disk", server_faults.broker_loses_data, brokers=(VALKEY,), durable=False
    ),
    Fault("T8", "broker frozen", server_faults.broker_frozen, 1, deadline=5.0, duplicates=None),
    Fault("T9", "connections cut", server_faults.connections_cut, 2, lines=True, duplicates=None, plain=True),
    Fault(
        "T9c",
        "connections cut, pool processes killed",
        server_faults.connections_cut_and_child_killed,
        2,
        brokers=(VALKEY,),
        lines=True,
        duplicates=None,
    ),
    Fault(
        "T9b", "the worker's connection goes dead", server_faults.connection_dead, 1, lines=True, duplicates=None
    ),
    Fault("T10", "answer to the sender lost", server_faults.reply_lost, 3, lines=True, duplicates=1, gate=BOTH),
    Fault(
        "T11",
        "broker full",
        server_faults.broker_full,
        1,
        max_rounds=10,
        deadline=5.0,
        duplicates=None,
        plain=True,
    ),
    Fault("T13", "to an undeclared agent", message_faults.unroutable, 2, max_rounds=5),
    Fault("T13b", "queue deleted", message_faults.queue_deleted, 1, max_rounds=10, brokers=(RABBITMQ,)),
    Fault("T14", "malformed messages", message_faults.malformed, 1, max_rounds=3, plain=True),
    Fault("T16", "unserializable values, hostile texts", message_faults.unserializable, 1, max_rounds=3),
    Fault("T19", "database killed", server_faults.database_killed, 1, duplicates=0, plain=True, gate=BOTH),
    Fault("T20", "database frozen", server_faults.database_frozen, 1, deadline=6.0, duplicates=0, plain=True),
    Fault("T22", "an end that Celery reports twice", worker_faults.hard_limit, 1, max_rounds=5),
    Fault(
        "T24",
        "workers' clocks an hour ahead and behind",
        worker_faults.skewed_clock,
        2,
        max_rounds=20,
        brokers=(VALKEY,),
        plain=True,
    ),
    Fault("T25", "handlers longer than the lease", worker_faults.long_handler, 2, max_rounds=10, plain=True),
    Fault("T26", "expired", message_faults.expiry, 1, max_rounds=20),
    Fault(
        "T29", "the same message twice", message_faults.duplicated, 1, max_rounds=20, duplicates=None, plain=True
    ),
    Fault("T30", "dead letters sent again", message_faults.retry_dead_letters, 1, max_rounds=20),
    Fault("T31", "envelopes of other versions", message_faults.other_versions, 1, max_rounds=20),
    Fault(
        "W1", "workflows run, workers killed", workflow_faults.workers_killed, 2, duplicates=None, gate=(VALKEY,)
    ),
    Fault(
        "W2",
        "workflows run, the database restarts and a worker is killed",
        workflow_faults.database_restarts,
        1,
        max_rounds=5,
        deadline=6.0,
        duplicates=None,
        gate=(VALKEY,),
    ),
    Fault(
        "W3",
        "workflows run, the broker loses its data and a worker is killed",
        workflow_faults.broker_loses_data,
        1,
        max_rounds=5,
        brokers=(VALKEY,),
        durable=False,
        deadline=6.0,
        duplicates=None,
    ),
    Fault(
        "K1",
        "order by key, workers killed",
        key_faults.kill_with_keys,
        2,
        max_rounds=20,
        duplicates=4,
        patience=120.0,
        gate=(VALKEY,),
    ),
    Fault(
        "K2",
        "order by key, all faults of workers, and the database crashes",
        key_faults.all_with_keys,
        4,
        max_rounds=20,
        deadline=6.0,
        duplicates=4,
        patience=120.0,
    ),
    Fault(
        "T32",
        "faults of all kinds in turn",
        mixed_faults.chaos,
        10,
        rounds_factor=2,
        deadline=6.0,
        duplicates=None,
        fast=False,
    ),
)

#: A broker and a database, which faults use one after the other.
Servers: TypeAlias = tuple[Server, Postgres]


@contextmanager
def servers(broker: str, *, durable: bool = True) -> Iterator[Servers]:
    """Run a broker and a database while the block runs."""
    with ExitStack() as stack:
        server = stack.enter_context(lone_valkey(durable=durable) if broker == VALKEY else lone_rabbitmq())
        yield server, stack.enter_context(lone_postgres())


def run_fault(
    fault: Fault, is_product: bool, on: Servers, rounds: int, seed: int, folder: Path | None = None
) -> Account:
    """Run a fault in its own cluster, and return the account.

    Args:
        fault: the fault.
        is_product: whether the workers run agents, or plain Celery.
        on: the servers.
        rounds: how many times it is caused.
        seed: seed of the random numbers.
        folder: folder for logs and effects; None: a temporary one.
    """
    with ExitStack() as exits:
        if folder is None:
            folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="waooaw-cluster-")))
        cluster = Cluster(is_product, *on, folder, lines=fault.lines)
        exits.callback(cluster.close)
        try:
            fault.run(cluster, rounds, random.Random(seed))  # noqa: S311 - no secret
        except AssertionError as error:
            cluster.expect(False, f"stuck: {str(error)[:1500]}")
            _repair(on)
            if not cluster.workers:
                return cluster.account()
        cluster.probe()
        if cluster.is_product or not cluster.broken:
            cluster.drain(fault.patience if cluster.is_product else None)
        return cluster.account()


def violations(fault: Fault, account: Account, rounds: int) -> list[str]:
    """Return one sentence for each violated invariant."""
    allowed = None if fault.duplicates is None else fault.duplicates * rounds
    return account.violations(fault.deadline, allowed)


def chosen(broker: str, *kinds: str, durable: bool = True) -> list[Fault]:
    """Return the faults that the tests cause on a broker: the quick ones, or all with WAOOAW_TEST_ALL=1.

    Args:
        broker: the broker.
        kinds: what is faulty: ``workers``, ``servers``, ``messages``.
        durable: whether the broker persists its messages.
    """
    return [
        fault
        for fault in FAULTS
        if fault.durable == durable
        and broker in fault.brokers
        and fault.kind in kinds
        and (broker in fault.gate or (fault.fast and ALL))
    ]


def check(fault: Fault, on: Servers, folder: Path) -> None:
    """Run a fault with agents, and assert that every invariant holds."""
    account = run_fault(fault, True, on, fault.rounds, 1, folder)
    found = violations(fault, account, fault.rounds)
    assert not found, "\n".join(found)


def _repair(on: Servers) -> None:
    """Restore servers after a fault that did not finish."""
    broker, postgres = on
    if broker.running():
        broker.thaw()
        broker.relieve()
    else:
        broker.start()
    postgres.thaw()
    postgres.start()
