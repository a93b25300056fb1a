"""The long form: every fault many times on each broker, plain Celery beside it, and a table of what became of all.

python3 dev.py faults --rounds 20 [--only T1 --only T14] [--broker valkey|rabbitmq] [--seed 7] [--write]

``--write`` puts the whole table into docs/reliability.md. The exit code is 1 when an invariant did not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from faults.account import Account
from faults.catalogue import FAULTS, RABBITMQ, VALKEY, Fault, run_fault, servers, violations
from faults.report import Row, markdown, show, write
from faults.servers import RabbitMQ

#: Rounds of one world, at most: more of them run side by side.
SHARE = 25


@dataclass
class Job:
    """A share of a fault, which a process of its own goes through."""

    fault: Fault
    broker: str
    is_product: bool
    rounds: int
    seed: int


@dataclass
class Total:
    """What became of all shares of a fault."""

    account: Account = field(default_factory=Account)
    rounds: int = 0
    violations: list[str] = field(default_factory=list)


def main() -> int:
    """Run all, print and write the table, and return 1 when an invariant of ours did not hold."""
    parser = argparse.ArgumentParser(prog="dev.py faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="of each fault, unless it says more or fewer")
    parser.add_argument(
        "--only", action="append", metavar="T1", help="a fault by its number, or a part of its name"
    )
    parser.add_argument("--broker", choices=(VALKEY, RABBITMQ))
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--jobs", type=int, default=4, help="worlds side by side")
    parser.add_argument("--no-plain", action="store_true", help="without plain Celery beside it")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args()
    if options.write and (options.only or options.broker or options.no_plain):
        parser.error("--write puts the whole table into the page, and so needs all of it measured")
    jobs = list(_jobs(options))
    if not jobs:
        parser.error(f"no fault is called {', '.join(options.only)}")
    began, totals, first = time.monotonic(), dict[tuple[str, str, bool], Total](), ""
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as processes:
        running: dict[Future[Account], Job] = {processes.submit(_go, job): job for job in jobs}
        for done in as_completed(running):
            job, account = running[done], done.result()
            total = totals.setdefault((job.fault.number, job.broker, job.is_product), Total())
            total.account += account
            total.rounds += job.rounds
            found = violations(job.fault, account, job.rounds)
            total.violations += found
            about = (
                f"{job.fault.number} {job.fault.name}, {job.broker}, {'is_product' if job.is_product else 'plain'}"
            )
            print(f"{time.monotonic() - began:5.0f} s  {about}, {job.rounds} rounds", file=sys.stderr)
            for sentence in found if job.is_product else ():
                first = first or f"{about}, seed {job.seed}"
                print(f"         {sentence}", file=sys.stderr)
    rows = [
        Row(
            fault,
            broker,
            mine.rounds,
            mine.account,
            mine.violations,
            _plain_result(totals, fault, broker),
        )
        for fault in FAULTS
        for broker in (VALKEY, RABBITMQ)
        if (mine := totals.get((fault.number, broker, True))) is not None
    ]
    show(rows)
    if options.write:
        write(markdown(rows, options.seed, time.monotonic() - began))
    if first:
        print(f"An invariant did not hold, first in {first}", file=sys.stderr)
    return int(bool(first))


def _jobs(options: argparse.Namespace) -> Iterator[Job]:
    brokers = [options.broker] if options.broker else [VALKEY, *([RABBITMQ] if RabbitMQ.there else [])]
    for fault in FAULTS:
        if options.only and not any(
            wanted == fault.number or (len(wanted) > 3 and wanted in fault.name) for wanted in options.only
        ):
            continue
        rounds = min(options.rounds * fault.rounds_factor, fault.max_rounds or sys.maxsize)
        for broker in brokers:
            if broker not in fault.brokers:
                continue
            for start in range(0, rounds, SHARE):
                yield Job(fault, broker, True, min(SHARE, rounds - start), options.seed + start)
            if fault.plain and not options.no_plain:
                yield Job(fault, broker, False, min(rounds, fault.max_plain_rounds), options.seed)


def _go(job: Job) -> Account:
    """Go through a share of a fault, on servers of its own."""
    warnings.simplefilter("ignore")
    with servers(job.broker, durable=job.fault.durable) as on:
        return run_fault(job.fault, job.is_product, on, job.rounds, job.seed)


def _plain_result(
    totals: dict[tuple[str, str, bool], Total], fault: Fault, broker: str
) -> tuple[int, Account, list[str]] | None:
    found = totals.get((fault.number, broker, False))
    return None if found is None else (found.rounds, found.account, found.violations)
