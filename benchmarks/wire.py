"""The size of encoded bodies, the time compared with Kombu, and the memory that a decompression bomb takes.

python -m benchmarks.wire [--rounds 15]

It needs no server. Kombu's producer and this package's encode each body in turn, as JSON and MessagePack,
compressed and not. Times are processor times, the best of the rounds: compare only their ratios within one run.
Sizes do not depend on the computer.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

from kombu import Producer
from kombu.compression import decompress
from kombu.serialization import loads
from rich.console import Console
from rich.table import Table

from benchmarks.report import Goal, print_goals
from waooaw_celery.wire.caps import MIB, Caps
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.formats import decode
from waooaw_celery.wire.packer import Packer
from waooaw_celery.wire.producer import PackingProducer
from waooaw_celery.wire.serializer import MessageSerializer

Body = tuple[list[Any], dict[str, Any], dict[str, Any]]
#: Seconds that one subject runs in a round.
SECONDS = 0.02

_WORDS = (
    *("agent", "answer", "archive", "budget", "check", "client", "compare", "contract", "customer", "data"),
    *("deliver", "document", "draft", "error", "evidence", "figure", "finding", "forward", "include", "index"),
    *("invoice", "list", "market", "message", "number", "offer", "order", "page", "plan", "price", "question"),
    *("record", "reply", "report", "request", "result", "review", "risk", "sales", "section", "send", "source"),
    *("step", "summary", "table", "task", "team", "text"),
)


def corpus() -> dict[str, Body]:
    """Return bodies like those of agents, made of reproducible pseudo-random words and numbers."""
    rng = random.Random(2026)  # noqa: S311 - nothing here is secret

    def words(count: int) -> str:
        return " ".join(rng.choices(_WORDS, k=count))

    def body(payload: Any) -> Body:
        return [payload], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

    tiny = {"task": "summarise", "document": f"s3://bucket/{rng.getrandbits(64):016x}.pdf", "words": 250}
    task = tiny | {
        "instructions": words(125),
        "options": {"language": "en", "style": "bullets", "citations": True},
    }
    chat = [
        {"role": rng.choice(["user", "assistant", "tool"]), "content": words(rng.randint(25, 90))}
        for _ in range(20)
    ]
    records = [
        {
            "id": number,
            "customer": f"C-{rng.randint(10_000, 99_999)}",
            "amount": rng.randint(1, 10**6) / 100,
            "currency": "EUR",
            "paid": rng.random() < 0.8,
            "at": f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
            "tags": rng.sample(_WORDS, 2),
            "score": rng.random(),
        }
        for number in range(350)
    ]
    vector = {"model": "embedding", "values": [rng.uniform(-1, 1) for _ in range(1536)]}
    return {
        "tiny": body(tiny),
        "1 KB task": body(task),
        "8 KB chat": body({"messages": chat}),
        "60 KB records": body(records),
        "1,536 floats": body(vector),
    }


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    console = Console()
    bodies = corpus()
    goals = [*sizes(console, bodies), *costs(console, bodies, rounds), bomb()]
    print_goals(console, "The wire", goals)


def sizes(console: Console, bodies: dict[str, Body]) -> list[Goal]:
    """Compare the sizes of encoded bodies."""
    table = Table("bytes", "json", "msgpack", "protobuf", "json, zlib", "json, zstd", "msgpack, zstd")
    goals = []
    for name, body in bodies.items():
        found = {(one.format, one.codec): one.size for one in MessageSerializer().stats(body)}
        plain = found["json", "none"]
        shown = (
            ("msgpack", "none"),
            ("protobuf", "none"),
            ("json", "zlib"),
            ("json", "zstd"),
            ("msgpack", "zstd"),
        )
        cells = [f"{found[each]:,} ({found[each] / plain:.2f})" for each in shown if each in found]
        table.add_row(name, f"{plain:,}", *cells)
        for serializer in ("json", "msgpack"):
            ours, kombus = (
                len(producer._prepare(body, serializer, None, None, "zlib", {"task": "x"})[0])
                for producer in (_ours(compress_above=0), Producer(None))
            )
            if ours < 0.9 * found[serializer, "none"]:
                goals.append(Goal(f"{name}, {serializer} with zlib: ours / Kombu's", ours / kombus, 1.02, True))
        if name in ("60 KB records", "1,536 floats"):
            goals.append(
                Goal(f"{name}: MessagePack saves", 100 * (1 - found["msgpack", "none"] / plain), 30, unit="%")
            )
        if plain > 7 * 1024:
            goals.append(Goal(f"{name}: zlib saves", 100 * (1 - found["json", "zlib"] / plain), 40, unit="%"))
    console.print(table)
    return goals


def costs(console: Console, bodies: dict[str, Body], rounds: int) -> list[Goal]:
    """Compare the times of this package's producer and decoder with those of Kombu's."""
    table = Table("µs", "Kombu encodes", "ours", "ratio", "Kombu decodes", "ours", "ratio")
    goals = []
    for name, body in bodies.items():
        for serializer in ("json", "msgpack"):
            small = len(str(body)) < 1024  # too small to be compressed
            prepared = _ours()._prepare(body, serializer, None, None, None, headers := {"task": "x"})
            codec = headers.get("compression")
            raw = prepared[0].encode() if isinstance(prepared[0], str) else prepared[0]
            subjects = {
                "Kombu encodes": _encoder(Producer(None), body, serializer, "zlib" if codec else None),
                "ours encodes": _encoder(_ours(), body, serializer, None),
                "Kombu decodes": _kombu_decoder(raw, prepared[1], codec),
                "ours decodes": _decoder(raw, prepared[1], codec),
            }
            times = _best_times(subjects, rounds)
            encoding = times["ours encodes"] / times["Kombu encodes"]
            decoding = times["ours decodes"] / times["Kombu decodes"]
            table.add_row(
                f"{name}, {serializer}{'' if small else ', compressed'}",
                *(f"{times[each]:.1f}" for each in ("Kombu encodes", "ours encodes")),
                f"{encoding:.2f}",
                *(f"{times[each]:.1f}" for each in ("Kombu decodes", "ours decodes")),
                f"{decoding:.2f}",
            )
            goals.append(Goal(f"{name}, {serializer}: our encoding / Kombu's", encoding, 1.05, at_most=True))
    console.print(table)
    return goals


def _ours(compress_above: int = 1024) -> PackingProducer:
    producer = PackingProducer(None)
    producer.packer = Packer(Caps(), compress_above)
    return producer


def _encoder(producer: Any, body: Body, serializer: str, compression: str | None) -> Callable[[], object]:
    # The fewest headers that mark the body of a message: more would cost every body the same.
    return lambda: producer._prepare(body, serializer, None, None, compression, {"task": "x", "waooaw": None})


def _kombu_decoder(raw: bytes, content_type: str, codec: str | None) -> Callable[[], object]:
    accept = {content_type}
    return lambda: loads(decompress(raw, codec) if codec else raw, content_type, "utf-8", accept=accept)


def _decoder(raw: bytes, content_type: str, codec: str | None) -> Callable[[], object]:
    caps = Caps(content_types=(content_type,))
    return lambda: decode(expand(raw, codec, caps) if codec else raw, content_type, "utf-8", caps)


def _best_times(subjects: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the best processor time of each subject, in microseconds."""
    times: dict[str, float] = dict.fromkeys(subjects, float("inf"))
    for number in range(rounds):
        for name in sorted(subjects, reverse=bool(number % 2)):
            work, done, start = subjects[name], 0, time.process_time()
            while time.process_time() - start < SECONDS:
                work()
                done += 1
            times[name] = min(times[name], (time.process_time() - start) / done * 1e6)
    return times


_PEAK = """
import resource, sys
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import expand
body = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    expand(body, "gzip", Caps())
except DecodingFailed:
    pass
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / (1024 if sys.platform == "linux" else 1024**2))
"""


def bomb() -> Goal:
    """Decode 300 MB of zeros, compressed to some hundred KB, in a new process; return its peak memory."""
    compressor = zlib.compressobj(9)
    packed = b"".join([*(compressor.compress(bytes(MIB)) for _ in range(300)), compressor.flush()])
    result = subprocess.run([sys.executable, "-c", _PEAK], input=packed, capture_output=True, check=True)  # noqa: S603
    label = f"memory for a bomb of {len(packed) // 1024} KB (300 MB decompressed)"
    return Goal(label, float(result.stdout), 50, at_most=True, unit="MB")


if __name__ == "__main__":
    main()
