"""Words that depend on what they stand beside: the plural after a number, the article before a noun."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Args:
        number: how many.
        noun: the noun in the singular; the plural is regular.

    Example:
        >>> counted(1, "message"), counted(2_500, "message")
        ('1 message', '2500 messages')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def with_article(noun: str) -> str:
    """Return a noun with ``a`` or ``an``.

    Example:
        >>> with_article("set"), with_article("object")
        ('a set', 'an object')
    """
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def ledger_name(ledger: object) -> str:
    """Return how a sentence names a ledger: by the beginning of its id, as ``waooaw doctor`` shows it.

    Args:
        ledger: the id, which may come from another program's message; None: no ledger.

    Example:
        >>> ledger_name("0f3c2a7e-91d4-4c6b-8a53-2d1f0e9b7c64")
        'ledger 0f3c2a7e'
    """
    return "no ledger" if ledger is None else f"ledger {ledger!s:.8}"
