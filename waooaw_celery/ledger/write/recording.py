"""What the processes of one worker tell each other when facts can be written nowhere."""

from __future__ import annotations

import hashlib
import mmap
import struct
import time

#: Seconds after the last failure for which it counts: whoever has something to write tries again each second.
FAILURE_SECONDS = 3.0
_SLOTS = 4096
_DIGEST = 16  # bytes
_HEADER = 16
#: Slots that are looked at for one message.
_WINDOW = 64


class Recording:
    """Memory that a worker's process shares with the children that it forks afterwards.

    Its calls take no locks, so that a process that is killed holds up no other.
    """

    def __init__(self) -> None:
        # Two moments of the monotonic clock, which is the computer's: the last failure, and any failure at all.
        self._memory = mmap.mmap(-1, _HEADER + _SLOTS * _DIGEST)

    @property
    def fails(self) -> bool:
        """Whether somebody could write down something nowhere, a moment ago."""
        [failed_at] = struct.unpack_from("d", self._memory, 0)
        return bool(failed_at) and time.monotonic() - failed_at < FAILURE_SECONDS

    def fail(self) -> None:
        """Tell that something could be written down nowhere."""
        struct.pack_into("dd", self._memory, 0, time.monotonic(), 1.0)

    def clear(self) -> None:
        """Tell that it can be written down again."""
        struct.pack_into("d", self._memory, 0, 0.0)

    def hold(self, message_id: str) -> bool:
        """Have a message kept unacknowledged, and return whether there is room to note that."""
        struct.pack_into("d", self._memory, 8, 1.0)
        digest = _digest(message_id)
        for at in _places(digest):
            if self._memory[at : at + _DIGEST] in (digest, bytes(_DIGEST)):
                self._memory[at : at + _DIGEST] = digest
                if self._memory[at : at + _DIGEST] == digest:  # another process may take the same place
                    return True
        return False

    def release(self, message_id: str) -> None:
        """Let a message be acknowledged: what became of it is safe."""
        digest = _digest(message_id)
        for at in _places(digest):
            if self._memory[at : at + _DIGEST] == digest:
                self._memory[at : at + _DIGEST] = bytes(_DIGEST)

    def holds(self, message_id: str) -> bool:
        """Whether a message is not to be acknowledged yet."""
        [ever] = struct.unpack_from("d", self._memory, 8)
        if not ever:  # as nearly always
            return False
        digest = _digest(message_id)
        return any(self._memory[at : at + _DIGEST] == digest for at in _places(digest))


def _digest(message_id: str) -> bytes:
    return hashlib.sha256(message_id.encode("utf-8", "surrogatepass")).digest()[:_DIGEST]


def _places(digest: bytes) -> list[int]:
    first = int.from_bytes(digest[:4], "big")
    return [_HEADER + (first + number) % _SLOTS * _DIGEST for number in range(_WINDOW)]
