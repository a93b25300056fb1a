"""Escapes text that comes from a message, so that it cannot forge a line or command a terminal."""

from __future__ import annotations

import unicodedata

#: What begins every further line of a text with several lines, so that none looks like a line of its own.
INDENT = "    "


def escaped(text: str) -> str:
    r"""Return a text as one line, with everything that does not print written as an escape, such as ``\n``.

    That covers line breaks, the escape sequences of terminals, marks that change the direction of writing, and
    unpaired surrogates. Printable text of any language stays as it is.

    Args:
        text: any text.

    Example:
        >>> escaped("done\n[ERROR] forged \x1b[2J")
        'done\\n[ERROR] forged \\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(char if _is_printable(char) else char.encode("unicode_escape").decode() for char in text)


def escaped_lines(text: str) -> str:
    """Return a text of several lines, such as a traceback: each is escaped, and all but the first are indented."""
    first, *others = text.rstrip("\n").split("\n")
    return "\n".join([escaped(first), *(INDENT + escaped(line) for line in others)])


def _is_printable(char: str) -> bool:
    # Python counts only the ASCII space as printable, but Japanese text has a wide one, and French a narrow one.
    return char.isprintable() or unicodedata.category(char) == "Zs"
