"""Checks an export without any server: whether its files are those that the manifest names."""

from __future__ import annotations

import json
import lzma
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database.rows import digest
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.maintenance.evidence.manifest import FORMAT, MANIFEST, MESSAGES

#: The largest manifest, and the longest line of the messages, in bytes. A file from elsewhere may be hostile.
MAX_MANIFEST, MAX_LINE = 64 * 1024**2, 256 * 1024**2
#: Most differences that are reported.
MAX_DIFFERENCES = 100
_CHUNK = 1024**2
#: What Python raises for a damaged or a hostile zip file, among others: OSError and ValueError for a place before
#: its beginning, NotImplementedError for an unknown compression, RuntimeError for an encrypted file.
_UNREADABLE = (
    *(BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError),
    *(zlib.error, lzma.LZMAError, struct.error),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCheck:
    """What a check of an export found.

    Attributes:
        path: the file.
        manifest_sha256: the SHA-256 of the manifest, to compare with what the export printed; None without one.
        files: how many files were compared with their sums.
        messages: how many messages were read.
        payloads: how many payloads have the digest that their record names.
        differences: what differs, a sentence each; empty: nothing does.
    """

    path: str
    manifest_sha256: str | None
    files: int
    messages: int
    payloads: int
    differences: list[str]


def check_export(path: str | os.PathLike[str]) -> ExportCheck:
    """Compare the files of an export with the sums in its manifest, and its payloads with their digests.

    Args:
        path: the zip file.

    Raises:
        OSError: the file cannot be read.

    Example:
        >>> check_export("case-7.zip").differences
        []
    """
    path = Path(path)
    check = _Check()
    with path.open("rb") as file:
        try:
            with ZipFile(file) as zip_file:
                check.run(zip_file)
        except _UNREADABLE as error:
            check.differences.append(f"it cannot be read as a zip file: {error}")
    return ExportCheck(
        path=str(path),
        manifest_sha256=check.manifest_sha256,
        files=check.files,
        messages=check.messages,
        payloads=check.payloads,
        differences=check.differences[:MAX_DIFFERENCES],
    )


class _Check:
    def __init__(self) -> None:
        self.manifest_sha256: str | None = None
        self.files = self.messages = self.payloads = 0
        self.differences: list[str] = []

    def run(self, zip_file: ZipFile) -> None:
        names = Counter(zip_file.namelist())
        self.differences += [f"{name} is in it {count} times" for name, count in names.items() if count > 1]
        manifest = self._manifest(zip_file, names)
        if manifest is None:
            return
        files = manifest["files"]
        self.differences += [f"{name} is missing" for name in files if name not in names]
        self.differences += [f"{name} is not in the manifest" for name in names if name not in (*files, MANIFEST)]
        for name, expected in files.items():
            if name in names:
                self._compare(zip_file, name, expected)
        if MESSAGES in names:
            self._read_messages(zip_file, manifest)

    def _manifest(self, zip_file: ZipFile, names: Counter[str]) -> dict[str, Any] | None:
        if MANIFEST not in names:
            self.differences.append(f"{MANIFEST} is missing: it is no export")
            return None
        with zip_file.open(MANIFEST) as file:
            data = file.read(MAX_MANIFEST + 1)
        self.manifest_sha256 = sha256(data).hexdigest()
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError) as error:
            self.differences.append(f"{MANIFEST} is not valid JSON: {error}")
            return None
        if not _is_manifest(manifest):
            self.differences.append(f"{MANIFEST} is not the manifest of an export of format {FORMAT}")
            return None
        found: dict[str, Any] = manifest
        return found

    def _compare(self, zip_file: ZipFile, name: str, expected: dict[str, Any]) -> None:
        self.files += 1
        size, sum_ = 0, sha256()
        with zip_file.open(name) as file:
            # No more than one byte too many is read: a small zip file may hold a huge one.
            while size <= expected["size"] and (chunk := file.read(min(_CHUNK, expected["size"] + 1 - size))):
                size += len(chunk)
                sum_.update(chunk)
        if size != expected["size"]:
            more = "more than " if size > expected["size"] else ""
            shown = expected["size"] if more else size
            self.differences.append(f"{name} has {more}{shown} bytes, not {expected['size']}")
        elif sum_.hexdigest() != expected["sha256"]:
            self.differences.append(f"{name} has the SHA-256 {sum_.hexdigest()}, not {expected['sha256']}")

    def _read_messages(self, zip_file: ZipFile, manifest: dict[str, Any]) -> None:
        size = manifest["files"].get(MESSAGES, {}).get("size", 0)
        for number, line in _lines(zip_file, size):
            self.messages += 1
            if len(self.differences) >= MAX_DIFFERENCES:
                return
            try:
                if manifest["payloads"]:
                    self._check_payload(number, AuditRecord.from_json(line))
                else:
                    AuditRecord.from_dict({"payload": None, **json.loads(line)})
            except (InvalidMessage, ValueError, TypeError) as error:
                self.differences.append(f"line {number} of {MESSAGES} is not a message: {error}")
        count = manifest["counts"]["messages"]
        if self.messages != count:
            self.differences.append(f"{MESSAGES} has {self.messages} messages, not {count}")

    def _check_payload(self, number: int, record: AuditRecord) -> None:
        if record.erased_at is not None:
            return
        if digest(record.payload) == record.payload_digest:
            self.payloads += 1
        else:
            what = f"the payload of {record.receipt.message_id} (line {number} of {MESSAGES})"
            self.differences.append(f"{what} has not the digest that the ledger recorded")


def _lines(zip_file: ZipFile, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of the messages, and no more bytes than the manifest says."""
    number = 0
    with zip_file.open(MESSAGES) as file:
        while size > 0 and (line := file.readline(min(MAX_LINE, size))):
            size -= len(line)
            number += 1
            yield number, line


def _is_manifest(manifest: Any) -> bool:
    """Whether a JSON value has what a check reads of a manifest, in the types that it needs."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return False
    files, counts = manifest.get("files"), manifest.get("counts")
    return (
        isinstance(manifest.get("payloads"), bool)
        and isinstance(counts, dict)
        and isinstance(counts.get("messages"), int)
        and isinstance(files, dict)
        and all(
            isinstance(each, dict) and isinstance(each.get("size"), int) and isinstance(each.get("sha256"), str)
            for each in files.values()
        )
    )
