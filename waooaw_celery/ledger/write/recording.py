"""What the processes of one worker share about failed recording: whether it fails, and which messages to hold."""

from __future__ import annotations

import hashlib
import mmap
import struct
import time

#: Seconds for which a failure counts. A process that has something to write retries every second.
FAILURE_SECONDS = 3.0
_SLOTS = 4096
_DIGEST_BYTES = 16
_HEADER_BYTES = 16
#: Slots that are tried for one message.
_PROBED_SLOTS = 64


class Recording:
    """Memory that a worker's main process shares with the children that it forks afterwards.

    The methods use no locks, so a process that is killed blocks no other.
    """

    def __init__(self) -> None:
        # The header has two numbers: the time of the last failure by the monotonic clock, which all processes of a
        # computer share, and 1.0 once a message was held. Slots follow, each with the digest of a held message.
        self._memory = mmap.mmap(-1, _HEADER_BYTES + _SLOTS * _DIGEST_BYTES)

    @property
    def fails(self) -> bool:
        """Whether a process could not record an event within the last ``FAILURE_SECONDS``."""
        [failed_at] = struct.unpack_from("d", self._memory, 0)
        return bool(failed_at) and time.monotonic() - failed_at < FAILURE_SECONDS

    def fail(self) -> None:
        """Report that neither the ledger nor the spool accepted an event."""
        struct.pack_into("dd", self._memory, 0, time.monotonic(), 1.0)

    def clear(self) -> None:
        """Report that events can be recorded again."""
        struct.pack_into("d", self._memory, 0, 0.0)

    def hold(self, message_id: str) -> bool:
        """Hold the acknowledgement of a message.

        Returns:
            Whether there was a free slot for it.
        """
        struct.pack_into("d", self._memory, 8, 1.0)
        digest = _digest(message_id)
        for offset in _slot_offsets(digest):
            if self._memory[offset : offset + _DIGEST_BYTES] in (digest, bytes(_DIGEST_BYTES)):
                self._memory[offset : offset + _DIGEST_BYTES] = digest
                # Another process may have taken the same slot at the same time.
                if self._memory[offset : offset + _DIGEST_BYTES] == digest:
                    return True
        return False

    def release(self, message_id: str) -> None:
        """Allow the acknowledgement of a message: its events are recorded."""
        digest = _digest(message_id)
        for offset in _slot_offsets(digest):
            if self._memory[offset : offset + _DIGEST_BYTES] == digest:
                self._memory[offset : offset + _DIGEST_BYTES] = bytes(_DIGEST_BYTES)

    def holds(self, message_id: str) -> bool:
        """Whether a message must not be acknowledged yet."""
        [any_held] = struct.unpack_from("d", self._memory, 8)
        if not any_held:  # the usual case
            return False
        digest = _digest(message_id)
        return any(self._memory[offset : offset + _DIGEST_BYTES] == digest for offset in _slot_offsets(digest))


def _digest(message_id: str) -> bytes:
    return hashlib.sha256(message_id.encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]


def _slot_offsets(digest: bytes) -> list[int]:
    first = int.from_bytes(digest[:4], "big")
    return [_HEADER_BYTES + (first + number) % _SLOTS * _DIGEST_BYTES for number in range(_PROBED_SLOTS)]
