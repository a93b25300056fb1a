"""The export of messages for an auditor, from a ledger in SQLite and in PostgreSQL, and its check."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from sqlalchemy import update
from support import note

from waooaw_celery import Message
from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import MessageRow
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.evidence.checking import check_export
from waooaw_celery.maintenance.evidence.export import Export, export_messages
from waooaw_celery.maintenance.evidence.manifest import file_name
from waooaw_celery.maintenance.evidence.selection import Selection
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    yield ledger
    ledger.close()


class Conversation:
    """Three messages of one conversation between agents that no other test has."""

    def __init__(self, ledger: Ledger, payload: Any = "secret") -> None:
        self.boss, self.worker, self.helper = (f"a{uuid4().hex[:12]}" for _ in range(3))
        self.began_at = datetime.now(UTC) - timedelta(minutes=5)
        root = Message(from_agent=self.boss, to_agent=self.worker, payload={"n": 1, "text": payload})
        self.id = root.message_id
        given: dict[str, Any] = {"conversation_id": self.id, "causation_id": self.id}
        second = Message(from_agent=self.worker, to_agent=self.helper, payload={"n": 2}, **given)
        third = Message(from_agent=self.worker, to_agent=self.boss, payload=None, **given)
        self.messages = [root, second, third]
        ledger.begin_recording([(each, "command") for each in self.messages])()
        for each in self.messages:
            note(ledger, each, MessageEvent.SENT, MessageEvent.DELIVERED, MessageEvent.HANDLED)
        self.ids = [each.message_id for each in self.messages]


def export(ledger: Ledger, path: Path, **options: Any) -> Export:
    """Export what the filters say; the other options are those of ``export_messages``."""
    filters = {name: options.pop(name) for name in ("conversation", "agent", "since", "until") if name in options}
    return export_messages(ledger, path, Selection(**filters), by="ada", **options)


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, bytes]]:
    """Return the messages, the manifest and all files of an export."""
    with ZipFile(path) as zip_file:
        assert zip_file.testzip() is None
        files = {name: zip_file.read(name) for name in zip_file.namelist()}
    lines = files["messages.jsonl"].decode().splitlines()
    return [json.loads(line) for line in lines], json.loads(files["manifest.json"]), files


def rewrite(path: Path, changes: dict[str, bytes | None]) -> None:
    """Replace, add or remove (None) files of an export."""
    _, _, files = read(path)
    with ZipFile(path, "w", ZIP_DEFLATED) as zip_file:
        for name, content in ({**files} | changes).items():
            if content is not None:
                zip_file.writestr(name, content)


def test_an_export_has_messages_pictures_and_sums(ledger: Ledger, tmp_path: Path) -> None:
    """The manifest says what was asked, by whom and when, and has the size and sum of every other file."""
    told, path = Conversation(ledger), tmp_path / "case.zip"
    done = export(ledger, path, conversation=told.ids[2])
    messages, manifest, files = read(path)
    assert [each["receipt"]["message_id"] for each in messages] == told.ids
    assert AuditRecord.from_dict(messages[0]) == MessageAuditTrail(ledger).receipt(told.id)
    assert (done.messages, done.events, done.conversations, done.pictures) == (3, 9, 1, 1)
    assert manifest["counts"] == {
        "messages": 3,
        "events": 9,
        "conversations": 1,
        "pictures": 1,
        "conversations_without_picture": 0,
    }
    assert manifest["written_by"] == "ada"
    assert manifest["selection"] == {"conversation": told.ids[2], "agent": None, "since": None, "until": None}
    assert abs(datetime.now(UTC) - datetime.fromisoformat(manifest["written_at"])) < timedelta(minutes=2)
    assert manifest["product"]["name"] == "waooaw-celery"
    assert manifest["payload_digests"]["verified"] == 3
    assert manifest["pictures"] == {told.id: f"conversations/{told.id}.html"}
    assert set(files) == {"messages.jsonl", "README.txt", "manifest.json", f"conversations/{told.id}.html"}
    assert manifest["files"] == {
        name: {"size": len(content), "sha256": sha256(content).hexdigest()}
        for name, content in files.items()
        if name != "manifest.json"
    }
    assert done.manifest_sha256 == sha256(files["manifest.json"]).hexdigest()
    assert told.worker.encode() in files[f"conversations/{told.id}.html"]
    assert b"secret" not in files[f"conversations/{told.id}.html"]
    assert b"waooaw export --check" in files["README.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".*.part"))
    found = check_export(path)
    assert (found.differences, found.messages, found.payloads, found.files) == ([], 3, 3, 3)
    assert found.manifest_sha256 == done.manifest_sha256


def test_filters_combine(ledger: Ledger, tmp_path: Path) -> None:
    """An agent: what it sent and received, newest first; with a conversation and a period, what matches all."""
    told, other = Conversation(ledger), Conversation(ledger)
    path = tmp_path / "out.zip"

    def ids(**filters: Any) -> list[str]:
        export(ledger, path, overwrite=True, **filters)
        return [each["receipt"]["message_id"] for each in read(path)[0]]

    assert sorted(ids(agent=told.worker)) == sorted(told.ids)
    assert sorted(ids(agent=told.boss)) == sorted([told.ids[0], told.ids[2]])
    assert ids(agent=told.boss, conversation=told.id) == [told.ids[0], told.ids[2]]
    assert ids(agent=told.helper, since=told.began_at) == [told.ids[1]]
    assert ids(agent=told.helper, until=told.began_at) == []
    assert ids(conversation=told.id, until=told.began_at) == []
    assert ids(conversation=told.id, since=told.began_at) == told.ids
    assert {*told.ids, *other.ids} <= set(ids(since=told.began_at))
    assert ids(since=told.began_at, until=told.began_at + timedelta(microseconds=1)) == []


def test_what_cannot_be_exported_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    """No filter, a time without a zone, an unknown conversation: an error, and no file."""
    with pytest.raises(InvalidMessage, match="needs a filter"):
        Selection()
    with pytest.raises(InvalidMessage, match="aware"):
        Selection(since=datetime(2026, 1, 1))
    with pytest.raises(InvalidMessage):
        Selection(agent="No Agent")
    with pytest.raises(UnknownMessage):
        export(ledger, tmp_path / "no.zip", conversation="unknown")
    assert not (tmp_path / "no.zip").exists()
    assert not list(tmp_path.glob(".no*"))


def test_a_file_is_replaced_only_by_order(ledger: Ledger, tmp_path: Path) -> None:
    """A file of this name stays as it is, unless the caller says to replace it."""
    told, path = Conversation(ledger), tmp_path / "case.zip"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        export(ledger, path, conversation=told.id)
    assert path.read_text() == "mine"
    export(ledger, path, conversation=told.id, overwrite=True)
    assert check_export(path).differences == []


def test_payloads_can_be_left_out(ledger: Ledger, tmp_path: Path) -> None:
    """The messages have digests and no payloads, and the manifest says that nothing was compared."""
    told, path = Conversation(ledger), tmp_path / "case.zip"
    export(ledger, path, conversation=told.id, payloads=False)
    messages, manifest, files = read(path)
    assert all("payload" not in each and each["payload_digest"] for each in messages)
    assert not [name for name, content in files.items() if b"secret" in content]
    assert (manifest["payloads"], manifest["payload_digests"]["not_exported"]) == (False, 3)
    found = check_export(path)
    assert (found.differences, found.payloads) == ([], 0)


def test_a_changed_ledger_is_noticed(ledger: Ledger, tmp_path: Path) -> None:
    """A payload that was changed in the database has another digest than was recorded; the export names it."""
    told, path = Conversation(ledger), tmp_path / "case.zip"
    with ledger.database.begin("change a payload") as connection:
        changed = update(MessageRow).where(MessageRow.message_id == told.ids[1]).values(payload={"n": 3})
        assert connection.execute(changed).rowcount == 1
    done = export(ledger, path, conversation=told.id)
    assert (done.payload_digests.verified, done.payload_digests.differing) == (2, 1)
    assert read(path)[1]["payload_digests"]["differing_ids"] == [told.ids[1]]
    assert "1 PAYLOADS DIFFER" in read(path)[2]["README.txt"].decode()
    [difference] = check_export(path).differences
    assert f"the payload of {told.ids[1]}" in difference


def test_pictures_are_limited(ledger: Ledger, tmp_path: Path) -> None:
    """With more conversations than asked pictures, the manifest says how many have none."""
    told, other = Conversation(ledger), Conversation(ledger)
    path = tmp_path / "case.zip"
    done = export(ledger, path, since=told.began_at, max_pictures=1)
    _, manifest, files = read(path)
    assert done.pictures == 1
    assert manifest["counts"]["conversations_without_picture"] == done.conversations - 1 >= 1
    assert len([name for name in files if name.startswith("conversations/")]) == 1
    assert other.id != told.id


def tampered_line(files: dict[str, bytes]) -> dict[str, bytes | None]:
    return {"messages.jsonl": files["messages.jsonl"].replace(b"secret", b"secreT")}


def tampered_with_new_sum(files: dict[str, bytes]) -> dict[str, bytes | None]:
    """A message and its sum in the manifest are changed alike: the digest of the payload still differs."""
    lines = files["messages.jsonl"].replace(b"secret", b"secreT")
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["messages.jsonl"] = {"size": len(lines), "sha256": sha256(lines).hexdigest()}
    return {"messages.jsonl": lines, "manifest.json": json.dumps(manifest).encode()}


def without_last_line(files: dict[str, bytes]) -> dict[str, bytes | None]:
    lines = b"".join(files["messages.jsonl"].splitlines(keepends=True)[:-1])
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["messages.jsonl"] = {"size": len(lines), "sha256": sha256(lines).hexdigest()}
    return {"messages.jsonl": lines, "manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize(
    ("tamper", "difference"),
    [
        (tampered_line, "messages.jsonl has the SHA-256"),
        (tampered_with_new_sum, "has not the digest that the ledger recorded"),
        (without_last_line, "has 2 messages, not 3"),
        (lambda files: {"README.txt": None}, "README.txt is missing"),
        (lambda files: {"README.txt": files["README.txt"] + b"x" * 10**6}, "README.txt has more than"),
        (lambda files: {"README.txt": b""}, "README.txt has 0 bytes"),
        (lambda files: {"conversations/more.html": b"<p>"}, "more.html is not in the manifest"),
        (lambda files: {"manifest.json": None}, "manifest.json is missing"),
        (lambda files: {"manifest.json": b"{"}, "is not valid JSON"),
        (lambda files: {"manifest.json": b"[" * 100_000}, "is not valid JSON"),
        (lambda files: {"manifest.json": b'{"format": 1, "files": {"x": 1}}'}, "is not the manifest"),
        (lambda files: {"messages.jsonl": b"[]\n"}, "line 1 of messages.jsonl is not a message"),
    ],
)
def test_a_tampered_export_is_refused(ledger: Ledger, tmp_path: Path, tamper: Any, difference: str) -> None:
    """Whatever is changed, added or removed, the check names it."""
    told, path = Conversation(ledger), tmp_path / "case.zip"
    export(ledger, path, conversation=told.id)
    rewrite(path, tamper(read(path)[2]))
    assert [each for each in check_export(path).differences if difference in each]


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    """A file that is no zip file, and one that was cut off, differ; a missing one is an error of the system."""
    path = tmp_path / "case.zip"
    path.write_bytes(b"PK\x03\x04 no zip file")
    assert "cannot be read as a zip file" in check_export(path).differences[0]
    with ZipFile(path, "w") as zip_file:
        zip_file.writestr("x", "y")
    assert check_export(path).differences == ["manifest.json is missing: it is no export"]
    with pytest.raises(FileNotFoundError):
        check_export(tmp_path / "none.zip")


def test_a_damaged_byte_is_found(ledger: Ledger, tmp_path: Path) -> None:
    """Whichever byte is flipped, the check raises nothing, and finds a difference if the contents have one."""
    told, path = Conversation(ledger), tmp_path / "case.zip"
    export(ledger, path, conversation=told.id)
    whole, contents = path.read_bytes(), read(path)[2]
    found = 0
    for place in range(0, len(whole), max(len(whole) // 150, 1)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        if check_export(path).differences:
            found += 1
        else:  # the time of a file, or a part of the zip format that nothing reads
            assert read(path)[2] == contents, place
    assert found > 100


def test_a_hostile_id_is_no_path() -> None:
    """The file of a picture is in its folder, whatever the id of the conversation."""
    assert file_name("order-7") == "conversations/order-7.html"
    for id_ in ("../../etc/passwd", "a/b", "..", ".x", "a\\b", "C:x", "x" * 500, "\ud800", ""):
        name = file_name(id_)
        assert name.startswith("conversations/sha256-")
        assert name.count("/") == 1


_EXPORT = """
import sys
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.maintenance.evidence import export
from waooaw_celery.maintenance.evidence.selection import Selection
from waooaw_celery.messages.enums import RetentionPolicy
written = export.html_page

def slowly(*arguments, **options):
    print("drawing", flush=True)
    sys.stdin.readline()
    return written(*arguments, **options)

export.html_page = slowly
ledger = Ledger(Database(database_url(sys.argv[1])), RetentionPolicy.DAYS_90)
export.export_messages(ledger, sys.argv[2], Selection(conversation=sys.argv[3]), by="ada")
"""


def test_a_killed_export_leaves_no_file_of_its_name(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves the name free, and an older file of the name as it was."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    database = Database(database_url(url))
    schema.upgrade(database)
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    told, path = Conversation(ledger), tmp_path / "out" / "case.zip"
    ledger.close()
    path.parent.mkdir()
    command = [sys.executable, "-c", _EXPORT, url, str(path), told.id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"drawing\n"
        assert [each.suffix for each in path.parent.iterdir()] == [".part"]
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert not path.exists()
    database.close()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_messages(database: Database, tmp_path: Path) -> None:
    """Ten times as many messages take hardly more memory: they are read and written a page at a time."""
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    peaks = []
    for count in (300, 3_000):
        agent = f"a{uuid4().hex[:12]}"
        messages = [
            Message(
                from_agent=agent, to_agent="worker", payload={"text": "x" * 5_000}, conversation_id=f"c-{agent}"
            )
            for _ in range(count)
        ]
        for start in range(0, count, 100):
            ledger.begin_recording([(each, "command") for each in messages[start : start + 100]])()
        del messages
        tracemalloc.start()
        done = export(ledger, tmp_path / f"{count}.zip", agent=agent, max_pictures=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.messages == count
    assert peaks[1] < peaks[0] + 8_000_000  # all payloads together have 15 MB
    ledger.close()
