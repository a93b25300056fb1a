"""Writes messages of the ledger to one zip file, with pictures of their conversations and sums of everything."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from waooaw_celery.errors import UnknownMessage
from waooaw_celery.ledger.database.rows import digest
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.diagrams.page import html_page
from waooaw_celery.maintenance.diagrams.workflow_ids import workflow_ids
from waooaw_celery.maintenance.evidence.archive import Archive, new_archive
from waooaw_celery.maintenance.evidence.forms import record_form
from waooaw_celery.maintenance.evidence.manifest import (
    FORMAT,
    MANIFEST,
    MESSAGES,
    README,
    PayloadDigests,
    file_name,
    product,
    readme,
)
from waooaw_celery.maintenance.evidence.selection import Selection, selected_records

#: Most pictures of conversations, unless an export is asked for more.
MAX_PICTURES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What an export wrote.

    Attributes:
        path: the file.
        size: its bytes.
        messages: how many messages it has.
        events: how many events of these.
        conversations: how many conversations these messages belong to.
        pictures: how many of the conversations have a picture.
        payload_digests: how the payloads compare with the digests in the ledger.
        manifest_sha256: the SHA-256 of the manifest, which stands for the whole export: keep it elsewhere.
    """

    path: str
    size: int
    messages: int
    events: int
    conversations: int
    pictures: int
    payload_digests: PayloadDigests
    manifest_sha256: str


def export_messages(
    ledger: Ledger,
    path: str | os.PathLike[str],
    selection: Selection,
    *,
    by: str,
    payloads: bool = True,
    overwrite: bool = False,
    max_pictures: int = MAX_PICTURES,
) -> Export:
    """Write messages to a zip file: the messages, pictures of their conversations, a manifest with sums.

    The messages are read a page at a time. The file has its name only when it is whole.

    Args:
        ledger: the ledger, such as ``app.ledger``.
        path: the file.
        selection: which messages.
        by: who asks, for the manifest.
        payloads: whether to write the payloads.
        overwrite: whether to replace a file of this name.
        max_pictures: most pictures.

    Returns:
        What was written. If a payload differs from the digest in the ledger, the export is written nevertheless,
        and ``payload_digests`` says so.

    Raises:
        FileExistsError: there is a file of this name, and ``overwrite`` is false.
        OSError: the file cannot be written.
        UnknownMessage: the ledger has no such conversation.
        AuditUnavailable: the database does not answer.

    Example:
        >>> export_messages(app.ledger, "case-7.zip", Selection(agent="billing"), by="ada")
    """
    path = Path(path)
    with new_archive(path, overwrite=overwrite) as archive:
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "product": product(),
            "written_at": datetime.now(UTC).isoformat(),
            "written_by": by,
            "selection": selection.to_dict(),
            "payloads": payloads,
        }
        messages = _Messages()
        with archive.file(MESSAGES) as out:
            for record in selected_records(ledger, selection, payloads=payloads):
                form = record_form(record, payload=payloads)
                out.write(json.dumps(form, allow_nan=False, separators=(",", ":")) + "\n")
                messages.count(record, payloads=payloads)
        pictures = _draw(ledger, archive, list(messages.conversations), max_pictures)
        manifest["counts"] = {
            "messages": messages.messages,
            "events": messages.events,
            "conversations": len(messages.conversations),
            "pictures": len(pictures),
            "conversations_without_picture": len(messages.conversations) - len(pictures),
        }
        manifest["payload_digests"] = asdict(messages.digests)
        manifest["pictures"] = pictures
        archive.add(README, readme(manifest))
        manifest["files"] = {name: asdict(each) for name, each in archive.files.items()}
        archive.add(MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return Export(
        path=str(path),
        size=path.stat().st_size,
        messages=messages.messages,
        events=messages.events,
        conversations=len(messages.conversations),
        pictures=len(pictures),
        payload_digests=messages.digests,
        manifest_sha256=archive.files[MANIFEST].sha256,
    )


class _Messages:
    """Counts what is written, without keeping it."""

    def __init__(self) -> None:
        self.messages = self.events = 0
        #: The ids of the conversations, in the order in which they were met: a set with an order.
        self.conversations: dict[str, None] = {}
        self.digests = PayloadDigests()

    def count(self, record: AuditRecord, *, payloads: bool) -> None:
        self.messages += 1
        self.events += len(record.events)
        self.conversations.setdefault(record.conversation_id)
        if record.erased_at is not None:
            self.digests.erased += 1
        elif not payloads:
            self.digests.not_exported += 1
        elif digest(record.payload) == record.payload_digest:
            self.digests.verified += 1
        else:
            self.digests.add_differing(record.receipt.message_id)


def _draw(ledger: Ledger, archive: Archive, conversations: list[str], limit: int) -> dict[str, str]:
    """Write the pictures of the first conversations, and return their files by conversation id."""
    trail = MessageAuditTrail(ledger)
    files: dict[str, str] = {}
    for conversation_id in conversations[:limit]:
        try:
            found = trail.conversation(conversation_id, payloads=False)
        except UnknownMessage:  # it was purged after its messages were read
            continue
        # The id of a conversation may be the correlation id of another one.
        records = [record for record in found if record.conversation_id == conversation_id]
        name = file_name(conversation_id)
        archive.add(name, html_page(records, workflows=workflow_ids(ledger.database, [conversation_id])))
        files[conversation_id] = name
    return files
