"""The long form: many kills on both transports, and a table of what became of every message.

python3 dev.py faults [--kills 100] [--stops 50] [--seed N] [--kombu-kills 20] [--kombu-stops 10]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
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
    parser.add_argument("--kombu-kills", type=int, default=20, help="the same on Kombu's transport")
    parser.add_argument("--kombu-stops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    wanted = {"ours": (options.kills, options.stops), "kombu": (options.kombu_kills, options.kombu_stops)}
    table = Table(title=f"Faults, seed {options.seed}")
    for title in ("transport", "fault", "workers", "kills", "published", "accounted", "dead", "lost"):
        table.add_column(title, justify="left" if title in ("transport", "fault", "workers") else "right")
    for title in ("twice", "recovery", "max"):
        table.add_column(title, justify="right")
    began, notes = time.monotonic(), []
    lost: dict[str, int] = {}
    failed = False
    with ProcessPoolExecutor(len(LANES), mp_context=multiprocessing.get_context("spawn")) as processes:
        for transport, counts in wanted.items():
            for fault, count in zip(FAULTS, counts, strict=True):
                running: dict[str, tuple[int, Future[Account]]] = {}
                for number, workers in enumerate(LANES):
                    share = count // len(LANES) + (number < count % len(LANES))
                    if share:
                        job = processes.submit(run, transport, fault, workers, share, options.seed + number)
                        running[workers] = share, job
                for workers, (share, job) in running.items():
                    try:
                        account = job.result()
                    except AssertionError as error:  # it stands still
                        failed = True
                        table.add_row(transport, fault, workers, str(share), "stands still")
                        notes.append(f"{transport}, {fault}, {workers}: {error}")
                        continue
                    table.add_row(transport, fault, workers, str(share), *_cells(account))
                    lost[transport] = lost.get(transport, 0) + len(account.lost)
                    if account.unknown:
                        notes.append(f"{transport}, {fault}, {workers}: {account.unknown} of unknown outcome")
                print(f"{time.monotonic() - began:4.0f} s: {transport}, {fault}: done", file=sys.stderr)
    console = Console(width=max(Console().width, 115))
    console.print(table)
    console.print(
        "accounted: handled, or a dead letter; twice: handled more than once; recovery: median of the seconds"
    )
    console.print("from a worker's death until what it held was handled, and the longest.")
    for line in notes:
        console.print(line)
    console.print(f"It took {time.monotonic() - began:.0f} s. Lost: {lost or 'nothing was run'}.")
    return 1 if failed or lost.get("ours") else 0


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
