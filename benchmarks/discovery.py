"""Measures what it costs to choose an agent by capability, and to check arguments.

python3 dev.py bench discovery [--agents 200]

A send by name is measured beside it: what it pays for discovery is one look whether the name has a colon.
"""

from __future__ import annotations

import argparse
import json
import socket
import time
from collections.abc import Callable

from benchmarks.turns import measure
from waooaw_celery import create_app
from waooaw_celery.agents import Policy, Registry
from waooaw_celery.discovery.contracts.check import ArgumentCheck
from waooaw_celery.discovery.contracts.contract import method_contract
from waooaw_celery.testing.embedded import valkey

#: What is done between two looks at the clock.
REPEATS = 100


def get_status(task_id: str, verbose: bool = False, tags: list[str] | None = None) -> dict[str, str]:
    """Stand for a method."""
    raise NotImplementedError


def main() -> None:
    """Print the microseconds of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with valkey() as url:
        app = create_app("benchmark", broker_url=url, result_backend=url, waooaw_sender="tests")
        registry = Registry(app)
        made = [
            registry.register(
                f"agent-{number}", capabilities=["count"], handlers=["command"], ttl_seconds=600, keep_alive=False
            )
            for number in range(arguments.agents)
        ]
        app.directory.refresh()
        subjects = {
            f"choose, {policy}": _choosing(app.selector.choose, f"capability:count?policy={policy}&key=k")
            for policy in Policy
        }
        contract = method_contract(get_status)
        check = ArgumentCheck("agent-1.get_status", (contract or {})["parameters"])
        subjects["check arguments"] = _repeated(lambda: check.check({"task_id": "1", "tags": ["a", "b"]}))
        subjects["look whether a name is a capability"] = _repeated(lambda: ":" in "agent-1")
        rates = measure(subjects, arguments.rounds)
        began = time.perf_counter()
        app.directory.refresh()
        refresh = time.perf_counter() - began
        for each in made:
            each.deregister()
        app.close()
    print(
        f"{arguments.agents} agents with the capability, on {socket.gethostname()}; median of {arguments.rounds}"
    )
    for name, rate in rates.items():
        print(f"  {name:40} {1e6 / rate:8.2f} µs")
    print(f"  {'read all agents from Valkey':40} {refresh * 1e6:8.0f} µs, every 0.6 s while they are used")
    print(json.dumps({name: round(1e6 / rate, 3) for name, rate in rates.items()}))


def _choosing(choose: Callable[..., object], address: str) -> Callable[[], int]:
    return _repeated(lambda: choose(address, handler="command"))


def _repeated(call: Callable[[], object]) -> Callable[[], int]:
    def run() -> int:
        for _ in range(REPEATS):
            call()
        return REPEATS

    return run


if __name__ == "__main__":
    main()
