"""The grammar of topics and patterns, with the wildcards of AMQP's topic exchange."""

from __future__ import annotations

import re

from waooaw_celery.errors import InvalidMessage

#: Longest topic or pattern, in characters: the limit of AMQP's routing keys.
MAX_LENGTH = 255
#: The wildcard that matches exactly one word.
ONE_WORD = "*"
#: The wildcard that matches zero or more words.
ANY_WORDS = "#"

_WORD = re.compile(r"[A-Za-z0-9_-]+")


def check_topic(topic: object) -> str:
    """Return the topic if it is valid: words of letters, digits, ``_`` and ``-``, separated by dots.

    Raises:
        InvalidMessage: the topic is invalid; the error gives the reason.
    """
    for word in _words(topic, "a topic", "task.created"):
        if word in (ONE_WORD, ANY_WORDS):
            raise InvalidMessage(
                f"the topic {topic!r} has the wildcard {word!r}: an event is published to one topic, "
                "only the pattern of a subscription may have one"
            )
        _check_word(word, topic, "topic")
    return str(topic)


def check_pattern(pattern: object) -> str:
    """Return the pattern if it is valid: a topic in which a word may be ``*`` (one word) or ``#`` (any number).

    Raises:
        InvalidMessage: the pattern is invalid; the error gives the reason.
    """
    for word in _words(pattern, "a pattern", "task.*"):
        if word not in (ONE_WORD, ANY_WORDS):
            _check_word(word, pattern, "pattern")
    return str(pattern)


def matches(pattern: str, topic: str) -> bool:
    """Whether a pattern matches a topic, both of which are valid.

    It does not backtrack: it follows all positions in the pattern that the words so far can have reached. The time
    is proportional to the number of words in the topic times that in the pattern.

    Example:
        >>> matches("task.*", "task.created")
        True
    """
    parts = pattern.split(".")
    positions = _past_any_words({0}, parts)
    for word in topic.split("."):
        following = {
            position if parts[position] == ANY_WORDS else position + 1
            for position in positions
            if position < len(parts) and parts[position] in (word, ONE_WORD, ANY_WORDS)
        }
        positions = _past_any_words(following, parts)
    return len(parts) in positions


def _past_any_words(positions: set[int], parts: list[str]) -> set[int]:
    """Add the positions after each ``#``, which may match no word."""
    result = set(positions)
    for position in positions:
        while position < len(parts) and parts[position] == ANY_WORDS:
            position += 1
            result.add(position)
    return result


def _words(text: object, what: str, example: str) -> list[str]:
    if not isinstance(text, str) or not text or len(text) > MAX_LENGTH:
        raise InvalidMessage(f"{what} must be 1 to {MAX_LENGTH} characters, such as {example!r}, not {text!r:.80}")
    return text.split(".")


def _check_word(word: str, text: object, what: str) -> None:
    if not word:
        raise InvalidMessage(f"the {what} {text!r} has an empty word: put dots only between words")
    if not _WORD.fullmatch(word):
        allowed = "letters, digits, '_' and '-'"
        wildcards = ", or are '*' or '#'" if what == "pattern" else ""
        raise InvalidMessage(f"the {what} {text!r} has the word {word!r}: words consist of {allowed}{wildcards}")
