"""The writer of the ledger and its spool: bounded, shared by threads and processes, and nothing lost."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import Broker, note, until

from waooaw_celery import Message
from waooaw_celery.embedded import spawn
from waooaw_celery.errors import AuditUnavailable, ConfigurationError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.rows import LedgerRow, event_row, keyed_event_row, message_row, sent_row
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.write import buffer as waiting
from waooaw_celery.ledger.write import spool_drain as shipping
from waooaw_celery.ledger.write.spool.spool import Spool
from waooaw_celery.ledger.write.spool_drain import STRAY_SECONDS
from waooaw_celery.messages.message import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.settings import AuditMode

DAYS_90 = RetentionPolicy.DAYS_90

#: What a program of a test begins with: its arguments are the ledger's URL, a folder for the spool, and its own.
_PROGRAM = """
import os, sys, time
from waooaw_celery import Message
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.messages.message import RetentionPolicy
from waooaw_celery.settings import AuditMode
ledger = Ledger(Database(database_url(sys.argv[1])), RetentionPolicy.DAYS_90, AuditMode.BATCHED, sys.argv[2])
def say():
    message = Message(from_agent="boss", to_agent=sys.argv[3])
    ledger.pending([(message, "command")])()
    return message.message_id
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of an empty SQLite: without tables it is as good as away."""
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the spool is."""
    return tmp_path / "spool"


@pytest.fixture
def ledger(url: str, folder: Path) -> Iterator[Ledger]:
    """A ledger in batched mode."""
    with opened(url, folder) as ledger:
        yield ledger


@contextmanager
def opened(url: str, folder: Path, mode: AuditMode = AuditMode.BATCHED) -> Iterator[Ledger]:
    ledger = Ledger(Database(database_url(url)), DAYS_90, mode, str(folder))
    yield ledger
    ledger.close()


def told() -> Message:
    """Return a message as the door makes it: it says how long it is kept."""
    return Message(from_agent="boss", to_agent="worker-1", retention=DAYS_90)


def program(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", _PROGRAM + code, *map(str, arguments)]


def ids_to(ledger: Ledger, agent: str) -> list[str]:
    """Return the ids of the messages that an agent was sent."""
    return [r.message_id for r in ledger.recent(limit=100_000) if r.to_agent == agent]


def shipped(ledger: Ledger, refused: int = 0) -> None:
    ledger.start()
    until(lambda: ledger.spool.counts() == (0, refused), "an empty spool")


def test_what_is_spooled_survives_its_process(url: str, folder: Path, ledger: Ledger) -> None:
    """A process ends while the database is away; the next one ships what it left, in the order it was said."""
    done = subprocess.run(
        program("for _ in range(50): print(say())", url, folder, "left"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = done.stdout.split()
    assert ledger.spool.counts() == (50, 0)
    schema.upgrade(ledger.database)
    shipped(ledger)
    assert ids_to(ledger, "left") == said


def test_processes_that_spool_and_ship_at_once_lose_and_double_nothing(
    url: str, folder: Path, ledger: Ledger, tmp_path: Path
) -> None:
    """Four processes make the spool and fill it together; then they ship the same entries together."""
    code = """
for _ in range(100): say()
print("said", flush=True)
while ledger.spool.counts() != (0, 0): time.sleep(0.01)
"""
    logs = [tmp_path / f"log-{number}" for number in range(4)]
    processes = [spawn(program(code, url, folder, "shared"), log=log) for log in logs]
    until(lambda: all("said" in log.read_text() for log in logs), "four hundred messages")
    until(lambda: ledger.spool.counts() == (400, 0), "four hundred spooled messages")
    schema.upgrade(ledger.database)
    for process in processes:
        assert process.wait(60) == 0
    assert len(ids_to(ledger, "shared")) == 400
    assert not any("not recorded" in log.read_text() for log in logs)


def test_an_entry_that_no_database_takes_blocks_no_others(folder: Path, postgres_url: str) -> None:
    """It is put aside with the reason, and what came before and after it is shipped."""
    with opened(postgres_url, folder) as ledger:
        schema.upgrade(ledger.database)
        before, after = told(), told()
        good = [message_row(message, "command", DAYS_90) for message in (before, after)]
        fact = MessageFact(
            message_id=before.message_id, event=MessageEvent.HANDLED, message=before, attempt=10**30
        )
        hopeless = [event_row(fact, DAYS_90), LedgerRow("message", "x", '{"message_id": "x"}')]
        ledger.spool.append([good[0], *hopeless, good[1]])
        shipped(ledger, refused=2)
        assert ledger.get(before.message_id).status == ledger.get(after.message_id).status == "pending"
        with closing(sqlite3.connect(ledger.spool.path)) as connection:
            reasons = [reason for (reason,) in connection.execute("SELECT refused FROM spool ORDER BY id")]
        assert all("could not write to the ledger" in reason for reason in reasons)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_facts_that_no_driver_can_hand_over_are_put_aside(
    kind: str, url: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Ids and numbers that another program made up neither stop the writer nor other facts."""
    with opened(url if kind == "sqlite" else request.getfixturevalue("postgres_url"), folder) as ledger:
        schema.upgrade(ledger.database)
        message = told()
        ledger.pending([(message, "command")])()
        for id_ in ("\x00", "\ud800", "'; DROP TABLE waooaw_messages; --", "x" * 5000):
            ledger.note(MessageFact(message_id=id_, event=MessageEvent.FAILED, error="\x00 \ud800"))
        note(ledger, message, MessageEvent.DELIVERED, attempt=10**30)
        note(ledger, message, MessageEvent.HANDLED)
        ledger.flush()
        assert ledger.get(message.message_id).status == "handled"
        until(lambda: ledger.spool.counts() == (4, 1), "one entry put aside, and four that wait")


def test_a_fact_waits_for_its_message_and_not_for_ever(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fact without keys is written when its message is there; one whose message never comes is put aside."""
    monkeypatch.setattr(shipping, "SPOOL_SECONDS", 0.1)
    schema.upgrade(ledger.database)
    message = told()
    old = datetime.now(UTC) - timedelta(seconds=STRAY_SECONDS + 1)
    ledger.note(MessageFact(message_id=message.message_id, event=MessageEvent.FAILED, error="early"))
    ledger.note(MessageFact(message_id="never-said", event=MessageEvent.FAILED, at=old))
    ledger.flush()
    until(lambda: ledger.spool.counts() == (1, 1), "the old fact to be put aside")
    ledger.pending([(message, "command")])()
    shipped(ledger, refused=1)
    assert ledger.get(message.message_id).error == "early"


def test_a_wrong_spool_is_refused_at_the_start(valkey_broker: Broker, url: str, tmp_path: Path) -> None:
    """A folder to which others may write, or that is none, is told at once; a wrong file is put aside."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    app = valkey_broker.app(waooaw_database_url=url, waooaw_spool_folder=str(folder))
    schema.upgrade(app.database)
    with pytest.raises(ConfigurationError, match="only this user may write"):
        app.check()
    with pytest.raises(AuditUnavailable, match="only this user may write"):
        app.ledger.spool.append([LedgerRow("fact", "x", "{}")])
    folder.chmod(0o700)
    app.ledger.spool.path.write_bytes(b"no spool" * 1000)
    app.check()
    assert [Path(kept.path).read_bytes() for kept in app.ledger.spool.damaged()] == [b"no spool" * 1000]
    shutil.rmtree(folder)
    folder.write_text("no folder")
    with pytest.raises(ConfigurationError, match="the spool cannot be used"):
        app.check()
    app.close()


def test_a_broken_spool_does_not_stop_the_ledger(url: str, folder: Path) -> None:
    """While the database answers, nobody needs the spool: strict sends go on."""
    with opened(url, folder, AuditMode.STRICT) as ledger:
        schema.upgrade(ledger.database)
        folder.write_text("no folder")
        for _ in range(3):
            message = told()
            assert ledger.pending([(message, "command")])() == {message.message_id}
            ledger._the_writer()._drainer.drain()
        assert not ledger._the_writer()._outage.active


def test_that_the_broker_has_a_message_is_said_as_every_fact() -> None:
    """The entry that is made quickly says what the general one says."""
    for retention in (None, RetentionPolicy.FOREVER):
        message = told().evolve(message_id="a.b_c:d-1", retention=retention)
        at = datetime.now(UTC)
        quick = sent_row(message, at, RetentionPolicy.DAYS_30)
        fact = MessageFact(message_id=message.message_id, event=MessageEvent.SENT, at=at)
        kept = (retention or RetentionPolicy.DAYS_30).until(message.sent_at)
        general = keyed_event_row(fact, kept, message.sent_at)
        assert (quick.kind, quick.message_id) == (general.kind, general.message_id)
        assert json.loads(quick.text) == json.loads(general.text)


def test_the_spool_is_its_users_alone(folder: Path, url: str) -> None:
    """Payloads wait there: nobody else may read the file or what SQLite puts beside it."""
    spool = Spool(str(folder), url)
    spool.append([LedgerRow("fact", "x", "{}")])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, spool.path)] == [0o700, 0o600]


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep everybody else from writing to an SQLite."""
    with closing(sqlite3.connect(database_url(url).database or "")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def test_whoever_writes_more_than_fits_waits(url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is busy the queue grows to its bound and no further; then everything is written."""
    monkeypatch.setattr(waiting, "MAX_QUEUED", 1000)
    schema.upgrade(ledger.database)
    writer = ledger._the_writer()
    most = 0

    def say() -> None:
        nonlocal most
        for _ in range(40):
            ledger.pending([(told(), "command") for _ in range(20)])()
            most = max(most, writer._buffer.row_count)

    with ThreadPoolExecutor(3) as threads:
        with locked(url):
            running = [threads.submit(say) for _ in range(3)]
            until(lambda: writer._buffer.row_count == 1000, "a full queue")
            assert not all(future.done() for future in running)  # nobody drops anything, and nobody goes on
        for future in running:
            future.result(60)
    assert most == 1000
    ledger.flush()
    shipped(ledger)  # a slow computer may have had to spool
    assert len(ledger.recent(limit=100_000)) == 2400


def test_large_messages_are_bounded_too(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue holds no more characters than its bound, and a batch few enough for one statement."""
    monkeypatch.setattr(waiting, "MAX_QUEUED_CHARACTERS", 8_000_000)
    schema.upgrade(ledger.database)
    writer = ledger._the_writer()
    large = "x" * 1_000_000
    sizes = []
    for _ in range(20):
        ledger.pending([(told().evolve(payload=large), "command")])()
        sizes.append(writer._buffer.size)
    assert max(sizes) <= 8_000_000
    ledger.flush()
    assert len(ledger.recent()) == 20


def test_threads_share_one_writer(folder: Path, postgres_url: str) -> None:
    """Eight threads write at once: each hears of its own messages, and one of them that the shared one is new."""
    with opened(postgres_url, folder, AuditMode.STRICT) as ledger, ThreadPoolExecutor(8) as threads:
        schema.upgrade(ledger.database)
        same = told()
        begin = threading.Barrier(8)

        def say(_: int) -> tuple[set[str], int]:
            begin.wait()
            mine = {message.message_id: message for message in (told() for _ in range(50))}
            new = {id_ for message in mine.values() for id_ in ledger.pending([(message, "command")])()}
            first = len(ledger.pending([(same, "command")])())
            for message in mine.values():
                note(ledger, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
            assert new == set(mine)
            return new, first

        outcomes = list(threads.map(say, range(8)))
        assert sum(first for _, first in outcomes) == 1
        statuses = {receipt.message_id: receipt.status for receipt in ledger.recent(limit=100_000)}
        assert {statuses[id_] for new, _ in outcomes for id_ in new} == {"handled"}


def test_who_asks_does_not_wait_until_nobody_writes(folder: Path, postgres_url: str) -> None:
    """While others write without a pause, a question waits for what was written before it, and no longer."""
    with opened(postgres_url, folder, AuditMode.STRICT) as ledger, ThreadPoolExecutor(4) as threads:
        schema.upgrade(ledger.database)
        done = threading.Event()

        def say() -> None:
            while not done.is_set():
                ledger.pending([(told(), "command")])()

        running = [threads.submit(say) for _ in range(4)]
        began = time.monotonic()
        for _ in range(20):
            ledger.flush()
        took = time.monotonic() - began
        done.set()
        for future in running:
            future.result()
        assert took < 3


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_child_writes_its_own_and_leaves_its_parents(
    kind: str, url: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """After a fork in the middle of writing both go on: each entry is there once, whoever was to write it."""
    code = """
before = [say() for _ in range(150)]
ledger.flush()  # there is a connection now
before += [say() for _ in range(150)]
child = os.fork()
mine = [say() for _ in range(300)]
ledger.flush()
if child == 0:
    print("child", *mine, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", *before, *mine, flush=True)
"""
    with opened(url if kind == "sqlite" else request.getfixturevalue("postgres_url"), folder) as ledger:
        schema.upgrade(ledger.database)
        name = f"forked-{time.monotonic_ns()}"
        command = program(code, ledger.database.url.render_as_string(hide_password=False), folder, name)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        said = [id_ for line in done.stdout.splitlines() for id_ in line.split()[1:]]
        # On a busy computer one may keep SQLite from the other for longer than it waits: then it spools.
        assert not done.stderr or "database is locked" in done.stderr
        ledger.start()
        until(lambda: ledger.spool.counts() == (0, 0), "an empty spool")
        assert len(said) == 900
        assert sorted(ids_to(ledger, name)) == sorted(said)


@pytest.mark.parametrize("end", ["", "raise ValueError('a bug')"])
def test_a_program_that_ends_has_written_everything(url: str, folder: Path, ledger: Ledger, end: str) -> None:
    """Whatever way it ends by itself: nothing needs to be closed."""
    schema.upgrade(ledger.database)
    code = f"for _ in range(1000): print(say())\n{end}"
    done = subprocess.run(program(code, url, folder, "ended"), capture_output=True, text=True, timeout=60)
    assert ids_to(ledger, "ended") == done.stdout.split()
    assert len(done.stdout.split()) == 1000


def test_a_program_that_is_killed_loses_its_last_moment_only(
    folder: Path, postgres_url: str, tmp_path: Path
) -> None:
    """SIGKILL in batched mode costs what was noted within the last moment before it."""
    with opened(postgres_url, folder) as ledger:
        schema.upgrade(ledger.database)
        name, log = f"killed-{time.monotonic_ns()}", tmp_path / "log"
        code = "while True:\n    print(say(), time.time(), flush=True)\n    time.sleep(0.001)"
        process = spawn(program(code, postgres_url, folder, name), log=log)
        until(lambda: log.read_text().count("\n") > 1000, "a thousand messages")
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        whole, _, _ = log.read_text().rpartition("\n")  # it may have been killed in the midst of a line
        said = [line.split() for line in whole.splitlines()]
        at = {id_: float(moment) for id_, moment in said}
        lost = at.keys() - set(ids_to(ledger, name))
        assert all(at[id_] > max(at.values()) - 0.5 for id_ in lost)
