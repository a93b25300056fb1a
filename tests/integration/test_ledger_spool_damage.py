"""A spool that is damaged or out of reach does not keep rows from the ledger."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import mkdtemp

import pytest
from postgres_server import Server
from process_pool import waooaw
from spooled_ledger import DAYS_90, new_message, open_ledger
from sqlalchemy import select
from support import Broker, settled, until

from waooaw_celery import Message, MessageBus, MessageStatus
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import MessageEventRow
from waooaw_celery.ledger.database.rows import LedgerRow, message_row
from waooaw_celery.ledger.write.spool import damage
from waooaw_celery.ledger.write.spool.file_lock import FileLock
from waooaw_celery.ledger.write.spool.spool import Spool, SpoolUnavailable
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.settings import AuditMode
from waooaw_celery.testing.embedded import running

PAGE = 4096
#: Rows in a spool before it is damaged: about twenty pages.
ROW_COUNT = 400

Damage = Callable[[Path], None]


def write_random_bytes(path: Path, start: int = 0, stop: int | None = None) -> None:
    """Overwrite a part of a file with random bytes."""
    size = path.stat().st_size
    stop = size if stop is None else min(stop, size)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(max(stop - start, 1)))


def random_bytes(path: Path) -> None:
    write_random_bytes(path)


def truncated(path: Path) -> None:
    os.truncate(path, 500)


def truncated_in_the_middle(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def first_page(path: Path) -> None:
    write_random_bytes(path, 0, PAGE)


def middle_page(path: Path) -> None:
    write_random_bytes(path, 7 * PAGE, 8 * PAGE)


def two_pages(path: Path) -> None:
    write_random_bytes(path, 6 * PAGE, 7 * PAGE)
    write_random_bytes(path, 12 * PAGE, 13 * PAGE)


def another_table(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE spool (something TEXT)")


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


#: Ways to damage a file, each with the least number of its ROW_COUNT rows that can be salvaged afterwards.
DAMAGES: dict[Damage, int] = {
    random_bytes: 0,
    truncated: 0,
    truncated_in_the_middle: ROW_COUNT // 4,
    first_page: ROW_COUNT,
    middle_page: ROW_COUNT * 9 // 10,
    two_pages: ROW_COUNT * 8 // 10,
    another_table: 0,
    replaced_by_a_folder: 0,
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of an empty SQLite. Without tables, the ledger treats it as down."""
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "action", "") for record in caplog.records]


@pytest.mark.parametrize("damage_file", DAMAGES, ids=lambda damage_file: damage_file.__name__)
def test_a_damaged_file_is_moved_aside_and_salvaged(
    damage_file: Damage, url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is renamed, and a new file receives new rows and the readable rows of the old one."""
    spool = Spool(str(folder), url)
    old = [message_row(new_message(), "command", DAYS_90) for _ in range(ROW_COUNT)]
    spool.append(old)
    damage_file(spool.path)
    damaged_bytes = spool.path.read_bytes() if spool.path.is_file() else None
    new = message_row(new_message(), "command", DAYS_90)
    spool.append([new])
    spool.first(10_000, 10**9)  # damage in the middle is detected when it is read
    spool.salvage()
    waiting = [row for _, row in spool.first(10_000, 10**9)]
    assert new in waiting
    assert set(waiting) <= {*old, new}
    assert len(set(waiting)) - 1 >= DAMAGES[damage_file]
    [damaged_file] = spool.damaged()
    assert damaged_file.salvaged
    if damaged_bytes is not None and damage_file not in (
        middle_page,
        two_pages,
        another_table,
    ):  # SQLite writes to these before it detects the damage
        assert Path(damaged_file.path).read_bytes() == damaged_bytes
    assert actions(caplog) == ["spool_damaged", "spool_salvaged"]
    assert damaged_file.path in caplog.text
    env = {"CELERY_BROKER_URL": "redis://", "WAOOAW_DATABASE_URL": url, "WAOOAW_SPOOL_FOLDER": str(folder)}
    shown = waooaw("spool", env=env).stdout
    assert Path(damaged_file.path).name in "".join(shown.split()), shown


def test_invalid_rows_of_a_damaged_file_are_refused(url: str, folder: Path) -> None:
    """Rows that SQLite can read but that are not rows of the ledger are refused, and block no others."""
    with open_ledger(url, folder, AuditMode.STRICT) as ledger:
        good, lost = new_message(), new_message()
        ledger.spool.append([message_row(message, "command", DAYS_90) for message in (good, lost)])
        with closing(sqlite3.connect(ledger.spool.path)) as connection, connection:
            bad = [("\x07\x00?", "x", "{}"), ("fact", "x", "\x13"), ("fact", b"\xff", "{}"), ("fact", "x", 5)]
            connection.executemany("INSERT INTO spool (kind, message_id, text) VALUES (?, ?, ?)", bad)
            connection.execute(
                "UPDATE spool SET text = CAST(x'7bff' AS TEXT) WHERE message_id = ?", (lost.message_id,)
            )
        schema.upgrade(ledger.database)
        ledger.start()
        until(lambda: ledger.spool.counts() == (0, 5), "five refused rows")
        assert ledger.get(good.message_id).status == "pending"


def test_too_many_damaged_files_are_an_error(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that damages every file does not fill the folder. The error tells the user what to do."""
    monkeypatch.setattr(damage, "MAX_KEPT", 2)
    spool = Spool(str(folder), url)
    spool.append([LedgerRow("fact", "x", "{}")])
    for _ in range(2):
        random_bytes(spool.path)
        spool.append([LedgerRow("fact", "x", "{}")])
    random_bytes(spool.path)
    with pytest.raises(SpoolUnavailable, match="remove them"):
        spool.append([LedgerRow("fact", "x", "{}")])
    shutil.rmtree(folder)
    spool.append([LedgerRow("fact", "x", "{}")])
    assert spool.counts() == (1, 0)


def folder_removed(path: Path) -> None:
    shutil.rmtree(path.parent)


def folder_replaced(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("no folder")


@pytest.mark.parametrize(
    "damage_file", [*DAMAGES, folder_removed, folder_replaced], ids=lambda damage_file: damage_file.__name__
)
def test_a_broken_spool_does_not_keep_the_ledger_down(
    damage_file: Damage, url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The database is retried although the spool cannot be used, and later facts are in the ledger."""
    with open_ledger(url, folder, AuditMode.STRICT) as ledger:
        ledger.note(
            MessageFact(message_id="x", event=MessageEvent.FAILED)
        )  # the database is down, so the fact is spooled
        damage_file(ledger.spool.path)
        schema.upgrade(ledger.database)
        until(lambda: "ledger_up" in actions(caplog), "the end of the outage in the log")
        message = new_message()
        assert ledger.begin_recording([(message, "command")])() == {message.message_id}
        ledger.note(MessageFact(message_id=message.message_id, event=MessageEvent.HANDLED, message=message))
        assert ledger.get(message.message_id).status == "handled"
        assert actions(caplog).count("ledger_up") == 1
        assert actions(caplog).count("spool_failed") <= 1


#: A program that sends messages while the database is down. With the argument `nobody`, root gives up its rights.
_PROGRAM = """
import logging, os, sys, time
from waooaw_celery import Message
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.database.models import MessageEventRow
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.messages.message import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.settings import AuditMode
import sqlalchemy.dialects.sqlite, json
logging.basicConfig(level=logging.WARNING)
if os.getuid() == 0 and sys.argv[3:] == ["nobody"]:
    os.setgid(65534)
    os.setuid(65534)
ledger = Ledger(Database(database_url(sys.argv[1])), RetentionPolicy.DAYS_90, AuditMode.STRICT, sys.argv[2])
def send():
    message = Message(from_agent="boss", to_agent="worker-1", retention=RetentionPolicy.DAYS_90)
    ledger.note(MessageFact(message_id=message.message_id, event=MessageEvent.FAILED, message=message))
    return message.message_id
"""


def program(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", _PROGRAM + code, *map(str, arguments)]


def test_an_outage_ends_without_rights_on_the_spool(tmp_path: Path) -> None:
    """A process that may no longer read its spool's folder writes to the ledger once the database is up."""
    base = Path(mkdtemp(prefix="waooaw-rights-"))
    try:
        folder, url, log = base / "spool", f"sqlite:///{base / 'ledger.sqlite'}", tmp_path / "log"
        folder.mkdir(mode=0o700)
        if os.getuid() == 0:
            for path in (base, folder):
                os.chown(path, 65534, 65534)
        code = """
send()
print("spooled", flush=True)
refused = False
while True:
    try:
        send()
    except AuditUnavailable:
        refused = True
        print("refused", flush=True)
    else:
        if refused:
            break
    time.sleep(0.05)
"""
        with running(program(code, url, folder, "nobody"), log=log, cwd=tmp_path) as process:
            until(lambda: "spooled" in log.read_text(), "a spooled fact")
            folder.chmod(0)
            until(lambda: "refused" in log.read_text(), "a refused fact")
            database = Database(database_url(url))
            schema.upgrade(database)
            database.close()
            if os.getuid() == 0:
                for path in base.glob("ledger*"):
                    os.chown(path, 65534, 65534)
            until(lambda: process.poll() is not None, "a written fact and the end of the program")
        assert process.returncode == 0, log.read_text()
        assert "the ledger's database answers again" in log.read_text()
    finally:
        (base / "spool").chmod(0o700)
        shutil.rmtree(base)


@pytest.mark.slow
def test_processes_that_share_a_damaged_spool_lose_no_later_rows(url: str, folder: Path, tmp_path: Path) -> None:
    """Three processes write while the file is damaged: one moves it aside, and all continue in the new one."""
    code = """
print("started", flush=True)
number = 0
while not os.path.exists(sys.argv[3]):
    sent = send()
    number += 1
    print(sent, flush=True)
"""
    stop = tmp_path / "stop"
    logs = [tmp_path / f"log-{number}" for number in range(3)]
    spool = Spool(str(folder), url)
    with ExitStack() as programs:
        processes = [programs.enter_context(running(program(code, url, folder, stop), log=log)) for log in logs]
        until(lambda: all(log.exists() and log.read_text().count("\n") > 20 for log in logs), "sixty facts")
        for number in (1, 2):
            with FileLock(spool.path.with_suffix(".lock"), 10).held(exclusive=True):  # no process has it open
                write_random_bytes(spool.path, 0, PAGE)
            until(lambda number=number: len(spool.damaged()) >= number, "a file that was moved aside")
            lengths = [log.read_text().count("\n") for log in logs]
            until(
                lambda lengths=lengths: all(
                    log.read_text().count("\n") > length + 10 for log, length in zip(logs, lengths, strict=True)
                ),
                "facts in the new file",
            )
        stop.touch()
        for process in processes:
            assert process.wait(60) == 0
    with open_ledger(url, folder, AuditMode.STRICT) as ledger:
        schema.upgrade(ledger.database)
        ledger.start()
        until(lambda: all(file.salvaged for file in spool.damaged()), "salvaged files")
        until(lambda: spool.counts() == (0, 0), "an empty spool")
        with ledger.database.begin("read the events") as connection:
            written = set(connection.scalars(select(MessageEventRow.message_id)))
    sent = {line for log in logs for line in log.read_text().split() if len(line) == 36}
    assert len(sent) > 100
    assert sent <= written
    assert not any("not recorded" in log.read_text() for log in logs)


@pytest.mark.parametrize("size", ["200k", "600k"])
@pytest.mark.parametrize("others", [False, True], ids=["spool only", "other files too"])
def test_a_spool_on_a_full_disk_is_drained(url: str, folder: Path, size: str, others: bool) -> None:
    """The spool fills its disk, so SQLite cannot remove rows. It is drained once the database is up."""
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    try:
        with open_ledger(url, folder, AuditMode.STRICT) as ledger:
            sent = []
            with suppress(SpoolUnavailable):
                while True:
                    message = new_message()
                    ledger.spool.append([message_row(message, "command", DAYS_90)])
                    sent.append(message.message_id)
            if others:
                with (folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
                    while True:
                        file.write(b"x" * 512)
            with pytest.raises(SpoolUnavailable):
                ledger.spool.check_room()
            schema.upgrade(ledger.database)
            ledger.start()
            until(lambda: ledger.spool.counts() == (0, 0), "an empty spool")
            assert {receipt.message_id for receipt in ledger.recent(limit=100_000)} == set(sent)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "damage_file"),
    [("solo", random_bytes), ("prefork", truncated), ("threads", random_bytes)],
    ids=["solo", "prefork", "threads"],
)
def test_a_worker_survives_a_damaged_spool(
    damage_file: Damage, pool: str, server: Server, redis_url: str, tmp_path: Path
) -> None:
    """The database stops, the spool is damaged, the database starts: later facts are in the ledger."""
    broker = Broker(redis_url, redis_url, tmp_path, server.url)
    name = broker.name()
    with closing(broker.app()) as app:
        schema.upgrade(app.database)
        bus = MessageBus(app)
        messages = [Message(from_agent="tests", to_agent=name, payload={"sleep": 0.2}) for _ in range(12)]
        with broker.running(name, app, "-P", pool):
            ids = [bus.send(message).message_id for message in messages]
            app.receipts.flush()
            server.stop()
            try:
                until(lambda: app.ledger.spool.counts()[0] >= 2, "facts in the spool")
                damage_file(app.ledger.spool.path)
                until(lambda: app.ledger.spool.damaged(), "the damaged file to be moved aside")
                until(lambda: app.ledger.spool.counts()[0] >= 2, "facts in the new spool")
            except BaseException:
                server.start()
                raise
        try:
            app.ledger.spool.path.write_bytes(b"\x00\x01" * 3000)
        finally:
            server.start()
        with broker.running(name, app, "-P", pool):
            with closing(broker.app()) as sender:
                sender.check()
                ids.append(MessageBus(sender).send(Message(from_agent="tests", to_agent=name)).message_id)
            assert settled(app, ids[-1]) is MessageStatus.HANDLED
            until(lambda: app.ledger.spool.counts()[0] == 0, "an empty spool")
    log = (broker.folder / f"{name}.log").read_text()
    assert "is damaged" in log
    assert "not recorded" not in log
