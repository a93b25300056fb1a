"""Searches untrusted regular expressions in linear time. Python's own engine backtracks, possibly without end.

An expression becomes a nondeterministic finite automaton. The search follows all its states at once (Thompson,
1968) and caches the steps between sets of states, as RE2 does. Syntax and meaning are Python's, without the parts
that an automaton cannot express: backreferences, lookaround, atomic groups and possessive repeats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from re import _compiler, _constants, _parser  # type: ignore[attr-defined]  # isort: skip

#: Largest number of states of an automaton. A repeat such as ``x{1000}`` copies its states 1000 times.
MAX_STATES = 4000
#: Largest number of cached steps of one automaton.
_MAX_STEPS = 20_000
#: Number of characters after which a search calls ``go_on``.
_CHECK_INTERVAL = 256
#: Properties of a position in the text that assertions test, as bits.
_FIRST, _LAST, _LAST_LINE, _WORD_BEFORE, _WORD_AFTER = 1, 2, 4, 8, 16
_ASSERTIONS: dict[Any, Callable[[int], bool]] = {
    _constants.AT_BEGINNING: lambda place: bool(place & _FIRST),
    _constants.AT_BEGINNING_STRING: lambda place: bool(place & _FIRST),
    _constants.AT_END: lambda place: bool(place & (_LAST | _LAST_LINE)),
    _constants.AT_END_STRING: lambda place: bool(place & _LAST),
    _constants.AT_BOUNDARY: lambda place: bool(place & _WORD_BEFORE) != bool(place & _WORD_AFTER),
    _constants.AT_NON_BOUNDARY: lambda place: bool(place & _WORD_BEFORE) == bool(place & _WORD_AFTER),
}
_BOUNDARIES = (_constants.AT_BOUNDARY, _constants.AT_NON_BOUNDARY)
_CHARACTERS = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN)
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)
#: Flags whose effect on characters and assertions is not implemented.
_REFUSED_FLAGS = re.MULTILINE | re.LOCALE
#: The accepting state.
_FOUND = 0


class UnsafePattern(ValueError):
    """An expression is invalid, or cannot be searched in linear time; the error gives the reason."""


class LinearPattern:
    """A regular expression whose search takes time proportional to the length of the text.

    Args:
        text: the expression, in Python's syntax.

    Raises:
        UnsafePattern: the expression is invalid, has a part that is not supported, or needs too many states.
    """

    def __init__(self, text: str) -> None:
        #: For each state: the test of a character, or the assertion on the position, or neither; the next states.
        self._states: list[tuple[Any, Any, tuple[int, ...]]] = [(None, None, ())]
        self._tests: dict[str, Any] = {}
        self._has_word_boundaries = False
        try:
            parsed: Any = _parser.parse(text)
            self._start = self._sequence(parsed, parsed.state.flags, _FOUND)
        except UnsafePattern as error:
            raise UnsafePattern(f"the pattern {text!r:.80} {error}") from None
        except (re.error, OverflowError, RecursionError) as error:
            raise UnsafePattern(f"the pattern {text!r:.80} is not a regular expression: {error!s:.200}") from error
        self._steps: dict[tuple[frozenset[int], int, str], frozenset[int] | None] = {}

    def search(self, text: str, go_on: Callable[[], None] = lambda: None) -> bool:
        """Whether the expression matches anywhere in a text.

        Args:
            text: the text to search.
            go_on: called every 256 characters; an exception that it raises ends the search.
        """
        steps, length = self._steps, len(text)
        states = frozenset({self._start})
        for position in range(length + 1):
            if position % _CHECK_INTERVAL == 0:
                go_on()
            key = states, self._place(text, position, length), text[position : position + 1]
            try:
                following = steps[key]
            except KeyError:
                following = self._step(*key)
                if len(steps) >= _MAX_STEPS:
                    steps.clear()
                steps[key] = following
            if following is None:
                return True
            states = following
        return False

    # --- running the automaton

    def _place(self, text: str, position: int, length: int) -> int:
        place = _FIRST if position == 0 else 0
        if position >= length - 1:
            if position >= length:
                place |= _LAST
            elif text[position] == "\n":
                place |= _LAST_LINE
        if self._has_word_boundaries:
            place |= _WORD_BEFORE if position and _is_word(text[position - 1]) else 0
            place |= _WORD_AFTER if position < length and _is_word(text[position]) else 0
        return place

    def _step(self, states: Iterable[int], place: int, character: str) -> frozenset[int] | None:
        """Return the states after a character, or None if the expression matches before it."""
        seen, pending, following = set(states), list(states), {self._start}
        while pending:
            state = pending.pop()
            if state == _FOUND:
                return None
            test, asserts, targets = self._states[state]
            if test is not None:
                if character and test(character) is not None:
                    following.update(targets)
            elif asserts is None or asserts(place):
                new = [target for target in targets if target not in seen]
                seen.update(new)
                pending += new
        return frozenset(following)

    # --- building the automaton, from the end of the expression

    def _add(self, test: Any, asserts: Any, *targets: int) -> int:
        if len(self._states) >= MAX_STATES:
            raise UnsafePattern(f"needs more than {MAX_STATES} states: use smaller repeats")
        self._states.append((test, asserts, targets))
        return len(self._states) - 1

    def _sequence(self, items: Any, flags: int, after: int) -> int:
        if flags & _REFUSED_FLAGS:
            raise UnsafePattern("has the flag (?m) or (?L), which are not supported")
        for item in reversed(list(items)):
            after = self._item(item, flags, after)
        return after

    def _item(self, item: Any, flags: int, after: int) -> int:
        kind, arguments = item
        if kind in _CHARACTERS:
            return self._add(self._test(item, flags), None, after)
        if kind is _constants.AT and arguments in _ASSERTIONS:
            self._has_word_boundaries = self._has_word_boundaries or arguments in _BOUNDARIES
            return self._add(None, _ASSERTIONS[arguments], after)
        if kind is _constants.BRANCH:
            return self._add(None, None, *(self._sequence(branch, flags, after) for branch in arguments[1]))
        if kind is _constants.SUBPATTERN:
            _, added, removed, inner = arguments
            return self._sequence(inner, (flags | added) & ~removed, after)
        if kind in _REPEATS:
            return self._repeat(arguments, flags, after)
        raise UnsafePattern(f"uses {str(kind).lower()}, which cannot be searched in linear time: remove it")

    def _repeat(self, arguments: Any, flags: int, after: int) -> int:
        least, most, inner = arguments
        if most is _constants.MAXREPEAT:
            loop = self._add(None, None)
            self._states[loop] = None, None, (self._sequence(inner, flags, loop), after)
            after = loop
        else:
            end = after
            for _ in range(most - least):
                after = self._add(None, None, self._sequence(inner, flags, after), end)
        for _ in range(least):
            after = self._sequence(inner, flags, after)
            self._add(None, None)  # counts each repeat, so that an empty part cannot be repeated a billion times
        return after

    def _test(self, item: Any, flags: int) -> Any:
        """Return the test of one character, which Python's engine compiles."""
        key = f"{flags} {item!r}"
        if key not in self._tests:
            state = _parser.State()
            state.flags, state.str = flags, ""
            self._tests[key] = _compiler.compile(_parser.SubPattern(state, [item])).match
        return self._tests[key]


@lru_cache(maxsize=1000)
def linear_pattern(text: str) -> LinearPattern:
    """Return the compiled expression, from a cache.

    Raises:
        UnsafePattern: the expression is invalid, or cannot be searched in linear time.
    """
    return LinearPattern(text)


def _is_word(character: str) -> bool:
    return character == "_" or character.isalnum()
