"""The grammar of topics and of the patterns that stand for many of them, as AMQP's topic exchanges mean them."""

from __future__ import annotations

import re

from waooaw_celery.errors import InvalidMessage

#: Longest topic or pattern, in characters: AMQP's longest routing key.
MAX_LENGTH = 255
#: Stands for exactly one word.
ONE_WORD = "*"
#: Stands for any number of words, also for none.
ANY_WORDS = "#"

_WORD = re.compile(r"[A-Za-z0-9_-]+")


def check_topic(topic: object) -> str:
    """Return the topic when it is one: words of letters, digits, ``_`` and ``-``, with dots between.

    Raises:
        InvalidMessage: it is none; the sentence says why.
    """
    for word in _words(topic, "a topic", "task.created"):
        if word in (ONE_WORD, ANY_WORDS):
            raise InvalidMessage(
                f"the topic {topic!r} has the wildcard {word!r}: an event is published to one topic, "
                "only a subscription's pattern stands for many"
            )
        _check_word(word, topic, "topic")
    return str(topic)


def check_pattern(pattern: object) -> str:
    """Return the pattern when it is one: a topic in which a word may be ``*`` (one word) or ``#`` (any number).

    Raises:
        InvalidMessage: it is none; the sentence says why.
    """
    for word in _words(pattern, "a pattern", "task.*"):
        if word not in (ONE_WORD, ANY_WORDS):
            _check_word(word, pattern, "pattern")
    return str(pattern)


def matches(pattern: str, topic: str) -> bool:
    """Whether a pattern stands for a topic: both were checked.

    It takes time in proportion to the words of both, whatever the pattern: all places that the pattern can have
    come to are followed at once.
    """
    wanted = pattern.split(".")
    reached = _behind_any({0}, wanted)
    for word in topic.split("."):
        steps = {
            place if wanted[place] == ANY_WORDS else place + 1
            for place in reached
            if place < len(wanted) and wanted[place] in (word, ONE_WORD, ANY_WORDS)
        }
        reached = _behind_any(steps, wanted)
    return len(wanted) in reached


def _behind_any(places: set[int], wanted: list[str]) -> set[int]:
    """Add the places behind each ``#``, which may stand for no word at all."""
    found = set(places)
    for place in places:
        while place < len(wanted) and wanted[place] == ANY_WORDS:
            place += 1
            found.add(place)
    return found


def _words(text: object, what: str, example: str) -> list[str]:
    if not isinstance(text, str) or not text or len(text) > MAX_LENGTH:
        raise InvalidMessage(f"{what} must be 1 to {MAX_LENGTH} characters, such as {example!r}, not {text!r:.80}")
    return text.split(".")


def _check_word(word: str, text: object, what: str) -> None:
    if not word:
        raise InvalidMessage(f"the {what} {text!r} has an empty word: dots stand between words only")
    if not _WORD.fullmatch(word):
        allowed = "letters, digits, '_' and '-'"
        wildcards = ", or are '*' or '#' alone" if what == "pattern" else ""
        raise InvalidMessage(f"the {what} {text!r} has the word {word!r}: words are of {allowed}{wildcards}")
