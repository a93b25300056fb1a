"""The ledger's writer and its spool are bounded, shared by threads and processes, and lose nothing."""

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
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from spooled_ledger import DAYS_90, new_message, open_ledger
from support import Broker, note, until

from waooaw_celery.errors import AuditUnavailable, ConfigurationError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.ledger.database.rows import LedgerRow, event_row, keyed_event_row, message_row, sent_row
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.write import buffer, spool_drain
from waooaw_celery.ledger.write.spool.spool import Spool
from waooaw_celery.ledger.write.spool_drain import STRAY_SECONDS
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.settings import AuditMode
from waooaw_celery.testing.embedded import running

#: The start of a test program. Its arguments are the ledger's URL, the spool's folder, and those of the test.
_PROGRAM = """
import os, sys, time
from waooaw_celery import Message
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.messages.message import RetentionPolicy
from waooaw_celery.settings import AuditMode
ledger = Ledger(Database(database_url(sys.argv[1])), RetentionPolicy.DAYS_90, AuditMode.BATCHED, sys.argv[2])
def send():
    message = Message(from_agent="boss", to_agent=sys.argv[3])
    ledger.begin_recording([(message, "command")])()
    return message.message_id
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of an empty SQLite. Without tables, the ledger treats it as down."""
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The spool's folder."""
    return tmp_path / "spool"


@pytest.fixture
def ledger(url: str, folder: Path) -> Iterator[Ledger]:
    """A ledger in batched mode."""
    with open_ledger(url, folder) as ledger:
        yield ledger


def program(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", _PROGRAM + code, *map(str, arguments)]


def sent_ids(ledger: Ledger, agent: str) -> list[str]:
    """Return the ids of the messages to an agent, in the order of sending."""
    return [r.message_id for r in ledger.recent(limit=100_000) if r.to_agent == agent]


def wait_until_drained(ledger: Ledger, refused: int = 0) -> None:
    ledger.start()
    until(lambda: ledger.spool.counts() == (0, refused), "an empty spool")


def test_spooled_rows_survive_their_process(url: str, folder: Path, ledger: Ledger) -> None:
    """A process ends while the database is down; the next one drains its rows in the order of sending."""
    done = subprocess.run(
        program("for _ in range(50): print(send())", url, folder, "left"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    sent = done.stdout.split()
    assert ledger.spool.counts() == (50, 0)
    schema.upgrade(ledger.database)
    wait_until_drained(ledger)
    assert sent_ids(ledger, "left") == sent


def test_concurrent_processes_neither_lose_nor_duplicate_rows(
    url: str, folder: Path, ledger: Ledger, tmp_path: Path
) -> None:
    """Four processes create and fill the same spool; then all of them drain it."""
    code = """
for _ in range(100): send()
print("sent", flush=True)
while ledger.spool.counts() != (0, 0): time.sleep(0.01)
"""
    logs = [tmp_path / f"log-{number}" for number in range(4)]
    with ExitStack() as programs:
        command = program(code, url, folder, "shared")
        processes = [programs.enter_context(running(command, log=log)) for log in logs]
        until(lambda: all("sent" in log.read_text() for log in logs), "four hundred messages")
        until(lambda: ledger.spool.counts() == (400, 0), "four hundred spooled messages")
        schema.upgrade(ledger.database)
        for process in processes:
            assert process.wait(60) == 0
    assert len(sent_ids(ledger, "shared")) == 400
    assert not any("not recorded" in log.read_text() for log in logs)


def test_a_row_that_the_database_refuses_does_not_block_others(folder: Path, postgres_url: str) -> None:
    """It is marked as refused with the reason, and the rows before and after it are drained."""
    with open_ledger(postgres_url, folder) as ledger:
        schema.upgrade(ledger.database)
        before, after = new_message(), new_message()
        good = [message_row(message, "command", DAYS_90) for message in (before, after)]
        fact = MessageFact(
            message_id=before.message_id, event=MessageEvent.HANDLED, message=before, attempt=10**30
        )
        unacceptable = [event_row(fact, DAYS_90), LedgerRow("message", "x", '{"message_id": "x"}')]
        ledger.spool.append([good[0], *unacceptable, good[1]])
        wait_until_drained(ledger, refused=2)
        assert ledger.get(before.message_id).status == ledger.get(after.message_id).status == "pending"
        with closing(sqlite3.connect(ledger.spool.path)) as connection:
            reasons = [reason for (reason,) in connection.execute("SELECT refused FROM spool ORDER BY id")]
        assert all("could not write to the ledger" in reason for reason in reasons)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_facts_that_no_driver_can_encode_are_refused(
    kind: str, url: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Invalid ids and numbers of another program stop neither the writer nor other facts."""
    with open_ledger(url if kind == "sqlite" else request.getfixturevalue("postgres_url"), folder) as ledger:
        schema.upgrade(ledger.database)
        message = new_message()
        ledger.begin_recording([(message, "command")])()
        for id_ in ("\x00", "\ud800", "'; DROP TABLE waooaw_messages; --", "x" * 5000):
            ledger.note(MessageFact(message_id=id_, event=MessageEvent.FAILED, error="\x00 \ud800"))
        note(ledger, message, MessageEvent.DELIVERED, attempt=10**30)
        note(ledger, message, MessageEvent.HANDLED)
        ledger.flush()
        assert ledger.get(message.message_id).status == "handled"
        until(lambda: ledger.spool.counts() == (4, 1), "one row refused, and four that wait")


def test_a_stray_fact_waits_for_its_message_for_a_limited_time(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stray fact is written once its message is known. If the message never arrives, the fact is refused."""
    monkeypatch.setattr(spool_drain, "SPOOL_SECONDS", 0.1)
    schema.upgrade(ledger.database)
    message = new_message()
    old = datetime.now(UTC) - timedelta(seconds=STRAY_SECONDS + 1)
    ledger.note(MessageFact(message_id=message.message_id, event=MessageEvent.FAILED, error="early"))
    ledger.note(MessageFact(message_id="never-sent", event=MessageEvent.FAILED, at=old))
    ledger.flush()
    until(lambda: ledger.spool.counts() == (1, 1), "the old fact to be refused")
    ledger.begin_recording([(message, "command")])()
    wait_until_drained(ledger, refused=1)
    assert ledger.get(message.message_id).error == "early"


def test_an_unsafe_spool_is_refused_at_start(valkey_broker: Broker, url: str, tmp_path: Path) -> None:
    """A folder that others may write to, or a file in its place, is an error. A wrong file is moved aside."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    app = valkey_broker.app(waooaw_database_url=url, waooaw_spool_folder=str(folder))
    schema.upgrade(app.database)
    with pytest.raises(ConfigurationError, match="only this user may write"):
        app.check()
    with pytest.raises(AuditUnavailable, match="only this user may write"):
        Spool(str(folder), url).append([LedgerRow("fact", "x", "{}")])
    folder.chmod(0o700)
    app.ledger.spool.path.write_bytes(b"no spool" * 1000)
    app.check()
    assert [Path(file.path).read_bytes() for file in app.ledger.spool.damaged()] == [b"no spool" * 1000]
    shutil.rmtree(folder)
    folder.write_text("no folder")
    with pytest.raises(ConfigurationError, match="the spool cannot be used"):
        app.check()
    app.close()


def test_a_broken_spool_does_not_stop_strict_sends(url: str, folder: Path) -> None:
    """While the database is up, no send needs the spool."""
    with open_ledger(url, folder, AuditMode.STRICT) as ledger:
        schema.upgrade(ledger.database)
        folder.write_text("no folder")
        for _ in range(3):
            message = new_message()
            assert ledger.begin_recording([(message, "command")])() == {message.message_id}
            ledger._get_writer()._drainer.drain()
        assert not ledger._get_writer()._outage.active


def test_the_fast_row_of_sent_equals_the_general_one() -> None:
    """``sent_row`` and ``keyed_event_row`` return the same row."""
    for retention in (None, RetentionPolicy.FOREVER):
        message = new_message().evolve(message_id="a.b_c:d-1", retention=retention)
        at = datetime.now(UTC)
        fast = sent_row(message, at, RetentionPolicy.DAYS_30)
        fact = MessageFact(message_id=message.message_id, event=MessageEvent.SENT, at=at)
        retain_until = (retention or RetentionPolicy.DAYS_30).until(message.sent_at)
        general = keyed_event_row(fact, retain_until, message.sent_at)
        assert (fast.kind, fast.message_id) == (general.kind, general.message_id)
        assert json.loads(fast.text) == json.loads(general.text)


def test_only_the_user_can_read_the_spool(folder: Path, url: str) -> None:
    """The spool contains payloads, so other users may read neither the file nor its folder."""
    spool = Spool(str(folder), url)
    spool.append([LedgerRow("fact", "x", "{}")])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, spool.path)] == [0o700, 0o600]


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Hold the write lock of an SQLite during the block."""
    with closing(sqlite3.connect(database_url(url).database or "")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def test_callers_wait_while_the_buffer_is_full(url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is locked, the buffer grows to its bound; afterwards everything is written."""
    monkeypatch.setattr(buffer, "MAX_QUEUED", 1000)
    schema.upgrade(ledger.database)
    writer = ledger._get_writer()
    most = 0

    def send() -> None:
        nonlocal most
        for _ in range(40):
            ledger.begin_recording([(new_message(), "command") for _ in range(20)])()
            most = max(most, writer._buffer.row_count)

    with ThreadPoolExecutor(3) as threads:
        with locked(url):
            senders = [threads.submit(send) for _ in range(3)]
            until(lambda: writer._buffer.row_count == 1000, "a full buffer")
            assert not all(future.done() for future in senders)  # callers wait, and drop nothing
        for future in senders:
            future.result(60)
    assert most == 1000
    ledger.flush()
    wait_until_drained(ledger)  # a slow computer may have spooled some
    assert len(ledger.recent(limit=100_000)) == 2400


def test_the_buffer_bounds_characters_too(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer holds at most its bound of characters, and a batch fits into one statement."""
    monkeypatch.setattr(buffer, "MAX_QUEUED_CHARACTERS", 8_000_000)
    schema.upgrade(ledger.database)
    writer = ledger._get_writer()
    large = "x" * 1_000_000
    sizes = []
    for _ in range(20):
        ledger.begin_recording([(new_message().evolve(payload=large), "command")])()
        sizes.append(writer._buffer.size)
    assert max(sizes) <= 8_000_000
    ledger.flush()
    assert len(ledger.recent()) == 20


def test_threads_share_one_writer(folder: Path, postgres_url: str) -> None:
    """Eight threads write at once: each gets the ids of its own messages, and one gets that of the shared one."""
    with open_ledger(postgres_url, folder, AuditMode.STRICT) as ledger, ThreadPoolExecutor(8) as threads:
        schema.upgrade(ledger.database)
        shared = new_message()
        begin = threading.Barrier(8)

        def send(_: int) -> tuple[set[str], int]:
            begin.wait()
            mine = {message.message_id: message for message in (new_message() for _ in range(50))}
            new = {id_ for message in mine.values() for id_ in ledger.begin_recording([(message, "command")])()}
            first = len(ledger.begin_recording([(shared, "command")])())
            for message in mine.values():
                note(ledger, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
            assert new == set(mine)
            return new, first

        outcomes = list(threads.map(send, range(8)))
        assert sum(first for _, first in outcomes) == 1
        statuses = {receipt.message_id: receipt.status for receipt in ledger.recent(limit=100_000)}
        assert {statuses[id_] for new, _ in outcomes for id_ in new} == {"handled"}


def test_flush_does_not_wait_for_later_writes(folder: Path, postgres_url: str) -> None:
    """While other threads write without a pause, a flush waits only for the rows before it."""
    with open_ledger(postgres_url, folder, AuditMode.STRICT) as ledger, ThreadPoolExecutor(4) as threads:
        schema.upgrade(ledger.database)
        done = threading.Event()

        def send() -> None:
            while not done.is_set():
                ledger.begin_recording([(new_message(), "command")])()

        writers = [threads.submit(send) for _ in range(4)]
        try:
            began = time.monotonic()
            for _ in range(20):
                ledger.flush()
            took = time.monotonic() - began
        finally:
            done.set()
        for writer in writers:
            writer.result()
        # A flush that waits for later rows may take 15 s.
        assert took < 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_forked_child_writes_only_its_own_rows(
    kind: str, url: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """After a fork during writes, parent and child continue: each row is in the ledger once."""
    code = """
before = [send() for _ in range(150)]
ledger.flush()  # opens a connection
before += [send() for _ in range(150)]
child = os.fork()
mine = [send() for _ in range(300)]
ledger.flush()
if child == 0:
    print("child", *mine, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", *before, *mine, flush=True)
"""
    with open_ledger(url if kind == "sqlite" else request.getfixturevalue("postgres_url"), folder) as ledger:
        schema.upgrade(ledger.database)
        name = f"forked-{time.monotonic_ns()}"
        command = program(code, ledger.database.url.render_as_string(hide_password=False), folder, name)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        sent = [id_ for line in done.stdout.splitlines() for id_ in line.split()[1:]]
        # On a busy computer, one may hold SQLite's lock for longer than the other waits. Then the other spools.
        assert not done.stderr or "database is locked" in done.stderr
        ledger.start()
        until(lambda: ledger.spool.counts() == (0, 0), "an empty spool")
        assert len(sent) == 900
        assert sorted(sent_ids(ledger, name)) == sorted(sent)


@pytest.mark.parametrize("end", ["", "raise ValueError('a bug')"])
def test_a_program_writes_everything_before_it_exits(url: str, folder: Path, ledger: Ledger, end: str) -> None:
    """It need not close anything, and may end with an exception."""
    schema.upgrade(ledger.database)
    code = f"for _ in range(1000): print(send())\n{end}"
    done = subprocess.run(program(code, url, folder, "ended"), capture_output=True, text=True, timeout=60)
    assert sent_ids(ledger, "ended") == done.stdout.split()
    assert len(done.stdout.split()) == 1000


def test_a_killed_program_loses_only_its_last_messages(folder: Path, postgres_url: str, tmp_path: Path) -> None:
    """In batched mode, rows are written while the program runs. SIGKILL loses none but the last ones."""
    with open_ledger(postgres_url, folder) as ledger:
        schema.upgrade(ledger.database)
        name, log = f"killed-{time.monotonic_ns()}", tmp_path / "log"
        code = "while True:\n    print(send(), flush=True)\n    time.sleep(0.001)"
        with running(program(code, postgres_url, folder, name), log=log) as process:
            until(lambda: len(sent_ids(ledger, name)) > 1000, "a thousand recorded messages")
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        whole, _, _ = log.read_text().rpartition("\n")  # the last line may be incomplete
        sent, recorded = whole.splitlines(), set(sent_ids(ledger, name))
        lost = [id_ for id_ in sent if id_ not in recorded]
        assert lost == sent[len(sent) - len(lost) :]
        assert len(lost) < 1000
