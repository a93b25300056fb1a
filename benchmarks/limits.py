"""The cost of a rate limit: the script on the server, a decision in memory, the memory of an agent, and a send.

python -m benchmarks.limits [--rounds 5]

It compares the script with a bare INCR on the same server in the same run: one command after the other from one
process, and, if redis-benchmark is installed, fifty connections at once. In each round every subject runs for half
a second, in reversed order each time; the medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from importlib.resources import files
from typing import Any

from rich.console import Console

from benchmarks.payload import PAYLOAD
from benchmarks.report import Goal, print_goals, report
from benchmarks.turns import measure
from waooaw_celery import Message, MessageBus, RateLimiter, RateLimitExceeded, create_app
from waooaw_celery.limits.grammar import parse_quota
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.redis import RedisStorage
from waooaw_celery.limits.rules import Quota, demands_by_scope
from waooaw_celery.messages.enums import Priority
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.testing.embedded import free_port, valkey

#: Realistic rules, with limits that are never reached, and with limits that are.
PASSES = "100000000/second; 1000000000/hour burst 100000000"
REFUSES = "10/hour burst 5; 100/day"
#: The quotas whose memory is measured.
QUOTAS = ("10/second; 100/hour", "10/second; 100/minute; 1000/hour; 10000/day")


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    console = Console()
    port = free_port()
    with valkey(port=port) as url, ExitStack() as stack:
        client = stack.enter_context(closing(connect(store_url(url))))
        alone, crowded = measure(subjects(client), rounds), crowd(client, port)
        cost = server_cost(client)
        sizes = {quota: memory(client, quota) for quota in QUOTAS}
        sending = measure(sends(url, stack), rounds)
    for title, rates in (("One after the other", alone), ("Fifty connections", crowded)):
        if rates:
            names = ("admits", "refuses")
            goals = [Goal(f"script that {name} / INCR", rates[name] / rates["INCR"], 0.4) for name in names]
            report(title, rates, "INCR", goals)
    for name, microseconds in cost.items():
        console.print(f"Server processor time of {name}: {microseconds:.1f} µs")
    for quota, size in sizes.items():
        console.print(f"MEMORY USAGE of an agent at the limit of {quota}: {size} bytes")
    print_goals(
        console,
        "Memory and one process",
        [
            *(Goal(f"bytes, {quota}", size, 1024, at_most=True, unit="B") for quota, size in sizes.items()),
            Goal("in memory, median", in_memory(PASSES), 10, at_most=True, unit="µs"),
            Goal("in memory, refused, median", in_memory(REFUSES), 10, at_most=True, unit="µs"),
        ],
    )
    report("Sending, no ledger", sending, "send, no limit", [])


def subjects(client: Any) -> dict[str, Callable[[], int]]:
    """Return the subjects that send single commands, one after the other, like the process of an agent."""
    limiters = {
        "admits": RateLimiter(RedisStorage(client), PASSES),
        "refuses": RateLimiter(RedisStorage(client), REFUSES),
    }

    def decide(name: str) -> int:
        with suppress(RateLimitExceeded):
            limiters[name].acquire(name)
        return 1

    return {
        "INCR": lambda: int(bool(client.incr("counter"))),
        "admits": lambda: decide("admits"),
        "refuses": lambda: decide("refuses"),
    }


def crowd(client: Any, port: int) -> dict[str, float]:
    """Return commands per second of fifty connections at once, or nothing if redis-benchmark is not installed."""
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        return {}
    storage, commands = RedisStorage(client), {"INCR": ["INCR", "counter"]}
    digest = client.script_load(files("waooaw_celery.limits").joinpath("lua", "decide.lua").read_text())
    for name, quota in (("admits", PASSES), ("refuses", REFUSES)):
        storage.set_quota(f"crowd-{name}", parse_quota(quota))
        wanted = demands_by_scope([("receiver", None, Priority.NORMAL, 1)])
        keys, args = storage.script_arguments("charge", f"crowd-{name}", wanted, Quota(), 0)
        # The rules come from the quota set at run time, so that all arguments are text.
        commands[name] = [
            "EVALSHA",
            digest,
            str(len(keys)),
            *keys,
            *(arg.decode() if isinstance(arg, bytes) else str(arg) for arg in args),
        ]
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(3):
        for name, command in commands.items():
            options = ["-p", str(port), "-c", "50", "-n", "100000", "--csv"]
            done = subprocess.run(  # noqa: S603 - our own command
                [program, *options, *command], capture_output=True, text=True, check=True
            )
            rates[name].append(float(done.stdout.strip().splitlines()[-1].split('","')[1]))
    return {name: statistics.median(found) for name, found in rates.items()}


def server_cost(client: Any) -> dict[str, float]:
    """Return the processor time of one command, in microseconds, from the server's statistics."""
    stats = client.info("commandstats")
    return {name: stats[f"cmdstat_{name}"]["usec_per_call"] for name in ("incr", "evalsha")}


def memory(client: Any, quota: str) -> int:
    """Return the bytes of an agent's counter when all windows are full of messages sent at many times."""
    now = [1_700_000_000_000_000]
    limiter = RateLimiter(RedisStorage(client, lambda: now[0]), quota)
    name = f"an-agent-whose-name-is-{len(quota)}-long"
    rules = sorted(limiter.quota(name).rules, key=lambda rule: -rule.period)
    for rule, shorter in zip(rules, [*rules[1:], None], strict=True):
        left = rule.limit - (shorter.limit if shorter else 0)
        now[0] += max(rule.period // 5, 1) * 1_000_000  # leave the next shorter window
        for _ in range(-(-left // 10)):
            now[0] += round(rule.period * 0.8 * 1_000_000 / -(-left // 10))
            limiter.acquire(name, min(10, left))
    [key] = client.keys(f"waooaw:limit:*{name}*")
    return int(client.memory_usage(key))


def in_memory(quota: str) -> float:
    """Return the median time of a decision in memory, in microseconds."""
    limiter, times = RateLimiter(MemoryStorage(), quota), []
    for _ in range(20_000):
        began = time.perf_counter_ns()
        with suppress(RateLimitExceeded):
            limiter.acquire("agent")
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1000


def sends(url: str, stack: ExitStack) -> dict[str, Callable[[], int]]:
    """Return the subjects that send with and without a limit."""

    def send(name: str, **settings: Any) -> Callable[[], int]:
        app = stack.enter_context(closing(create_app(broker_url=url, result_backend=url, **settings)))
        app.registry.declare("receiver", ["command"], "receiver@bench", lifetime=3600)
        bus = MessageBus(app)
        return lambda: len([bus.send(Message(from_agent=name, to_agent="receiver", payload=PAYLOAD))])

    return {"send, no limit": send("free"), "send, limited": send("limited", waooaw_rate_limit=PASSES)}


if __name__ == "__main__":
    main()
