"""The long run: every fault many times on each broker, also with plain Celery, and a table of the results.

python3 dev.py faults --rounds 20 [--only T1 --only T14] [--broker valkey|rabbitmq] [--seed 7] [--write]

``--write`` puts the table into docs/reliability.md. The exit code is 1 if an invariant was violated.
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

#: Maximum of rounds in one cluster: more rounds are split into jobs.
SHARE = 25


@dataclass
class Job:
    """Some rounds of a fault, which one process runs."""

    fault: Fault
    broker: str
    is_product: bool
    rounds: int
    seed: int


@dataclass
class Total:
    """The sum of all jobs of a fault."""

    account: Account = field(default_factory=Account)
    rounds: int = 0
    violations: list[str] = field(default_factory=list)


def main() -> int:
    """Run all jobs, print and write the table, and return 1 if an invariant was violated."""
    parser = argparse.ArgumentParser(prog="dev.py faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each fault; some multiply or limit it")
    parser.add_argument("--only", action="append", metavar="T1", help="number of a fault, or a part of its name")
    parser.add_argument("--broker", choices=(VALKEY, RABBITMQ))
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--jobs", type=int, default=4, help="clusters that run at the same time")
    parser.add_argument("--no-plain", action="store_true", help="without plain Celery")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args()
    if options.write and (options.only or options.broker or options.no_plain):
        parser.error("--write replaces the whole table, and so needs all measurements")
    jobs = list(_jobs(options))
    if not jobs:
        parser.error(f"no fault matches {', '.join(options.only)}")
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
        print(f"An invariant was violated, first in {first}", file=sys.stderr)
    return int(bool(first))


def _jobs(options: argparse.Namespace) -> Iterator[Job]:
    brokers = [options.broker] if options.broker else [VALKEY, *([RABBITMQ] if RabbitMQ.is_installed else [])]
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
    """Run a job on its own servers."""
    warnings.simplefilter("ignore")
    with servers(job.broker, durable=job.fault.durable) as on:
        return run_fault(job.fault, job.is_product, on, job.rounds, job.seed)


def _plain_result(
    totals: dict[tuple[str, str, bool], Total], fault: Fault, broker: str
) -> tuple[int, Account, list[str]] | None:
    found = totals.get((fault.number, broker, False))
    return None if found is None else (found.rounds, found.account, found.violations)
