"""The manifest of an export: what was asked, what is in it, and the sum of each file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import metadata
from typing import Any, Final

#: The format of the manifest; a later one has another number.
FORMAT: Final = 1
MESSAGES, MANIFEST, README = "messages.jsonl", "manifest.json", "README.txt"
#: Most ids of messages with a wrong digest that the manifest lists.
MAX_LISTED = 1000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


@dataclass
class PayloadDigests:
    """How the payloads of an export compare with the digests that the ledger recorded when they were sent.

    Attributes:
        verified: how many payloads have the recorded digest.
        erased: how many were erased: the digest remains, the payload does not.
        not_exported: how many were left out of the export, so that nothing was compared.
        differing: how many have another digest: the ledger was changed afterwards.
        differing_ids: the ids of the first ones of these.
    """

    verified: int = 0
    erased: int = 0
    not_exported: int = 0
    differing: int = 0
    differing_ids: list[str] = field(default_factory=list)

    def add_differing(self, message_id: str) -> None:
        """Count a payload with another digest."""
        self.differing += 1
        if len(self.differing_ids) < MAX_LISTED:
            self.differing_ids.append(message_id)


def file_name(conversation_id: str) -> str:
    """Return the name of the picture of a conversation. An id may be any text: one that is no name is hashed."""
    if _PLAIN_NAME.fullmatch(conversation_id):
        return f"conversations/{conversation_id}.html"
    return f"conversations/sha256-{sha256(conversation_id.encode('utf-8', 'replace')).hexdigest()}.html"


def product() -> dict[str, Any]:
    """Return the name and the version of this package."""
    try:
        version: str | None = metadata.version("waooaw-celery")
    except metadata.PackageNotFoundError:  # it runs from its sources
        version = None
    return {"name": "waooaw-celery", "version": version}


def readme(manifest: dict[str, Any]) -> str:
    """Return the text that explains an export to somebody who does not know this package.

    Args:
        manifest: the manifest, without the sums of the files.
    """
    asked = ", ".join(f"{name} {value}" for name, value in manifest["selection"].items() if value is not None)
    counts, digests = manifest["counts"], manifest["payload_digests"]
    pictures = f"{counts['pictures']:,} of {counts['conversations']:,} conversations"
    payloads = (
        "with its payload"
        if manifest["payloads"]
        else "without its payload, which was left out; its SHA-256 (payload_digest) is there"
    )
    differing = (
        "No payload differs from it."
        if not digests["differing"]
        else f"{digests['differing']:,} PAYLOADS DIFFER FROM IT: the ledger was changed after they were sent. "
        "manifest.json names them."
    )
    compared = (
        f"{digests['verified']:,} verified, {digests['erased']:,} erased since, "
        f"{digests['not_exported']:,} not exported"
    )
    return f"""EXPORT OF MESSAGES BETWEEN AGENTS

Asked for:    {asked}
Written at:   {manifest["written_at"]}
Written by:   {manifest["written_by"]}
Written with: {manifest["product"]["name"]} {manifest["product"]["version"] or "(not installed)"}

What is in it

messages.jsonl   {counts["messages"]:,} messages with {counts["events"]:,} events. Each line is one message as
                 JSON, {payloads}.
conversations/   A page for a browser for each conversation: who sent what to whom, and when. It has
                 all messages of the conversation, also those that were not asked for, and no payloads.
                 There are pages for {pictures}.
manifest.json    What was asked, the numbers, and the SHA-256 and the size of every other file.

The ledger records the SHA-256 of each payload when the message is sent. The export has compared them:
{compared}. {differing}

How to check it

With this program:     waooaw export --check FILE.zip
Without this program:  unzip the file, compute the SHA-256 of each file (for example with sha256sum),
                       and compare it with "sha256" of that file in manifest.json.

The sums show whether a file was changed after the export. Whoever can change a file can also write a new
manifest. So keep the SHA-256 of manifest.json, which the export has printed, in another place: it stands
for the whole export.
"""
