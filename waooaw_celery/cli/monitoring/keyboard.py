"""Reads single keys from a terminal, and gives it back as it was."""

from __future__ import annotations

import os
import select
import sys
import time
from types import TracebackType
from typing import Any, Self

#: Keys that end a program: q, Q, and Ctrl-C where the terminal sends it as a character.
END_KEYS = frozenset("qQ\x03")


class Keyboard:
    """The keyboard of the terminal, while the block runs. Without a terminal it has no keys.

    Example:
        >>> with Keyboard() as keyboard:
        ...     ended = keyboard.ends_within(2.0)
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        try:
            import termios
            import tty
        except ImportError:  # Windows: Ctrl-C still works
            return self
        if sys.stdin is not None and sys.stdin.isatty():
            self._file = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, place: TracebackType | None) -> None:
        if self._file is not None:
            import termios

            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def ends_within(self, seconds: float) -> bool:
        """Wait, and return whether a key was pressed that ends the program.

        Args:
            seconds: longest time to wait.
        """
        ends_at = time.monotonic() + seconds
        if self._file is None:
            time.sleep(max(seconds, 0.0))
            return False
        while True:
            ready, _, _ = select.select([self._file], [], [], max(ends_at - time.monotonic(), 0.0))
            if not ready:
                return False
            pressed = os.read(self._file, 64)
            if not pressed or END_KEYS & set(pressed.decode(errors="replace")):
                return True
