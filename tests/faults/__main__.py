"""The long form: many kills on both transports, and a table of what became of every message.

python3 dev.py faults [--kills 100] [--stops 50] [--mixed 60] [--seed N]

Workers are killed under load; frozen, given messages, and killed; and workers and servers meet all kinds of ends.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from rich.console import Console
from rich.table import Table

from faults.lane import Account
from faults.rounds import FAULTS, LANES, run


def main() -> int:
    """Run all, print the table, and return 1 when ours has lost anything or anything stands still."""
    parser = argparse.ArgumentParser(prog="dev.py faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of workers under load, on ours")
    parser.add_argument("--stops", type=int, default=50, help="of workers that are killed frozen, on ours")
    parser.add_argument("--mixed", type=int, default=60, help="of workers and servers, of all kinds, on ours")
    parser.add_argument("--kombu-kills", type=int, default=20, help="the same on Kombu's transport")
    parser.add_argument("--kombu-stops", type=int, default=10)
    parser.add_argument("--kombu-mixed", type=int, default=12)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    wanted = {
        "ours": (options.kills, options.stops, options.mixed),
        "kombu": (options.kombu_kills, options.kombu_stops, options.kombu_mixed),
    }
    table = Table(title=f"Faults, seed {options.seed}")
    for title in ("transport", "fault", "workers"):
        table.add_column(title)
    for title in ("times", "published", "accounted", "dead", "lost", "twice", "recovery", "max"):
        table.add_column(title, justify="right")
    began, notes, failed = time.monotonic(), [], False
    with ProcessPoolExecutor(len(LANES), mp_context=multiprocessing.get_context("spawn")) as processes:
        for transport, counts in wanted.items():
            total, times = Account(), 0
            for fault, count in zip(FAULTS, counts, strict=True):
                for workers, share, found in side_by_side(processes, transport, fault, count, options.seed):
                    about = f"{transport}, {fault}, {workers}"
                    if isinstance(found, AssertionError):
                        failed |= transport == "ours"
                        table.add_row(transport, fault, workers, str(share), "stuck")
                        notes.append(f"{about}: {str(found)[: None if transport == 'ours' else 120]}")
                        continue
                    table.add_row(transport, fault, workers, str(share), *_cells(found))
                    total += found
                    times += share
                    if found.unknown:
                        notes.append(f"{about}: a publisher was not told the outcome of {found.unknown}")
                print(f"{time.monotonic() - began:4.0f} s: {transport}, {fault}: done", file=sys.stderr)
            failed |= transport == "ours" and bool(total.lost)
            table.add_row(transport, "all", "", str(times), *_cells(total), end_section=True)
            if total.lost:
                notes.append(f"{transport} lost {', '.join(sorted(total.lost))}")
    console = Console()
    console.width = max(console.width, 115)
    console.print(table)
    print(
        "accounted: of the accepted, those that were handled or are dead letters; twice: handled more than once;"
    )
    print("recovery: from a worker's death until what it held was handled, median and longest, in seconds.")
    print("\n".join(notes))
    print(f"It took {time.monotonic() - began:.0f} s.")
    return int(failed)


def side_by_side(
    processes: ProcessPoolExecutor, transport: str, fault: str, count: int, seed: int
) -> Iterator[tuple[str, int, Account | AssertionError]]:
    """Divide a fault among the lanes, and give for each its workers, its share, and what became of it."""
    running: list[tuple[str, int, Future[Account]]] = []
    for number, workers in enumerate(LANES):
        share = count // len(LANES) + (number < count % len(LANES))
        if share:
            running.append(
                (workers, share, processes.submit(run, transport, fault, workers, share, seed + number))
            )
    for workers, share, job in running:
        try:
            yield workers, share, job.result()
        except AssertionError as error:  # it stands still
            yield workers, share, error


def _cells(account: Account) -> list[str]:
    found = sorted(account.recoveries)
    return [
        str(account.published),
        str(account.accepted - len(account.lost)),
        str(len(account.dead)),
        str(len(account.lost)),
        str(account.twice),
        f"{statistics.median(found):.1f}" if found else "",
        f"{found[-1]:.1f}" if found else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
