"""The measures of the demo's analysts, for prose, Markdown, Python source, and any other text."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waooaw_celery.demo.agents import text
from waooaw_celery.demo.agents.text import NEAR_DUPLICATE, Measures, measure, similarity

LIGHTHOUSE = [
    "The lighthouse stands on a narrow rock two miles from the harbour. Its keeper climbs the stairs at dusk, "
    "trims the lamp, and writes the weather into a heavy book that nobody has read for years.",
    "In winter the supply boat comes only once a month. The keeper stores oil, flour and candles in the cellar, "
    "and counts them every Sunday, because a storm may keep the boat away until spring.",
    "Ships that pass at night see three short flashes and a long one. Every lighthouse of this coast has its own "
    "pattern, so that a captain who has lost his way can look it up in a printed table.",
    "The lamp was replaced by an electric one last summer. Engineers carried it up in pieces, and the old lens, "
    "which is taller than a man, went to the museum behind the customs office.",
]
NEW_PARAGRAPH = (
    "Nobody lives on the rock any more. A sensor reports the visibility to an office in the capital, where a "
    "clerk watches forty screens and telephones a mechanic whenever one of them turns red."
)
BREAD = (
    "Good bread needs flour, water, salt and a great deal of patience. Mix the dough in the evening and leave it "
    "in a cool kitchen, where the yeast works slowly and the crumb opens. Bake it early in a very hot oven, "
    "on a stone, with a bowl of water beneath. A loaf is done when it sounds hollow, and it should rest an hour."
)

MARKDOWN = """\
---
title: Not counted
---
# Install the worker

Start it with [the command](docs/start.md "Read it"). It needs *no* settings!

```python
ignored = "neither these words. Nor these."
>>> nor_this()
```

- first item
- second item, e.g. this one

| Name | Meaning |
|------|---------|
| beat | timer   |
"""

SOURCE = '''\
#!/usr/bin/env python
"""Reads the meter. It never writes."""
import os  # noqa: F401


# The limits of this meter
# are those of 2019.
class MeterReader:
    """Reader of one meter."""

    pattern = "\\d"

    max_attempts = 3  # before it gives up

    def read_meter_value(self):
        return "no prose here"
'''


def invented_words(start: int, stop: int) -> list[str]:
    """Return one word of letters for each number: no two are equal."""
    return [str(number).translate(str.maketrans("0123456789", "abcdefghij")) for number in range(start, stop)]


def jaccard(a: list[str], b: list[str]) -> float:
    """Return the exact Jaccard similarity of the shingles of five words."""
    first, second = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (a, b))
    return len(first & second) / len(first | second)


def estimate(a: list[str], b: list[str]) -> float:
    """Return the similarity of the fingerprints of two lists of words."""
    return similarity(measure(" ".join(a)).fingerprint, measure(" ".join(b)).fingerprint)


def test_ratings_equal_those_computed_by_hand() -> None:
    """The ratings of two short sentences follow from the published formulas and hand-counted syllables."""
    # A hun-gry read-er finds a sim-ple mes-sage: 7 words, 11 syllables.
    # Yes-ter-day the teach-er an-swered quick-ly: 5 words, 10 syllables.
    measures = measure("A hungry reader finds a simple message. Yesterday the teacher answered quickly.")
    assert (measures.words, measures.sentences) == (12, 2)
    # 206.835 - 1.015 * 12 / 2 - 84.6 * 21 / 12 = 206.835 - 6.09 - 148.05
    assert measures.reading_ease == 52.7
    # 0.39 * 12 / 2 + 11.8 * 21 / 12 - 15.59 = 2.34 + 20.65 - 15.59
    assert measures.grade == 7.4


def test_reading_takes_a_minute_for_238_words() -> None:
    """Five hundred words are read in 500 / 238 minutes, to a tenth."""
    assert measure("word " * 500).reading_minutes == 2.1


def test_markdown_is_counted_without_code_addresses_and_markup() -> None:
    """Only the words and sentences that a reader sees outside of code are counted."""
    measures = measure(MARKDOWN)
    # Install the worker / Start it with the command / It needs no settings / first item
    # / second item, e.g. this one / Name Meaning / beat timer
    assert (measures.words, measures.sentences) == (3 + 5 + 4 + 2 + 6 + 2 + 2, 7)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Title\n=====\n\nRun this::\n\n    not counted\n\nand rest.", 5),
        (".. code-block:: python\n   :linenos:\n\n   not_counted\n\nProse.", 1),
        (".. note::\n\n   Prose of the note.", 4),
        ("A fence\n\n~~~\nthat nobody closes", 2),
        ("FAQ\n~~~\n\nAnswers.\n\nSection\n~~~~~~~\n\nText.", 4),
        ("Before\n\n>>> not(counted)\nnot either\n\nafter.", 2),
        ('<a href="nowhere">Seen</a> <!-- not\nseen --> text, see https://example.org/page.', 3),
        ("Name: value\nOther: another", 4),
    ],
    ids=["literal", "code-block", "note", "open fence", "underlines", "doctest", "html", "annotations"],
)
def test_other_markup_is_understood(source: str, words: int) -> None:
    """In reStructuredText, HTML and doctests, prose is counted; code and addresses are not."""
    assert measure(source).words == words


@pytest.mark.parametrize(
    ("source", "sentences"),
    [
        ("Dr. Smith met J. Jones at 3.14 p.m. and left. Why? He was late...", 3),
        ('"Stop!" he said. (It was late.) Then he went.', 3),
        ("One line\ngoes on here.\n\nA second paragraph", 2),
        ("One paragraph\r\ranother", 2),
        ("他说。你好！", 2),  # noqa: RUF001
    ],
    ids=["abbreviations", "quotes", "paragraphs", "old line ends", "chinese"],
)
def test_sentences_end_where_a_reader_ends_them(source: str, sentences: int) -> None:
    """A blank line ends a sentence; initials, titles, decimals and quoted exclamations do not."""
    assert measure(source).sentences == sentences


def test_key_terms_are_the_frequent_words_and_phrases() -> None:
    """A repeated phrase precedes single words, a plural counts as its singular, and common words are left out."""
    terms = measure(
        "The message queue holds the letters. A message queue is a list; the message queue is for the worker. "
        "Workers and the worker read. It is what it is, and it is as it was, and the end of it is the end."
    ).key_terms
    assert terms[:2] == ("message queue", "worker")
    assert len(terms) == 5
    assert not {"the", "and", "what", "message", "queue", "workers"} & set(terms)


def test_longer_words_rank_higher() -> None:
    """Of equally frequent words the longer is first; frequency outweighs length; a blob is not a word."""
    assert measure("Lamp. Engineering.").key_terms == ("engineering", "lamp")
    assert measure("Lamp. Lamp. Lamp. Engineering.").key_terms == ("lamp", "engineering")
    assert measure(f"Lamp. {'x' * 5000}.").key_terms == ("lamp",)


def test_short_words_rank_below_longer_ones() -> None:
    """A word of three letters follows all longer ones, however frequent it is."""
    assert measure("cat cat cat, cat. Window.").key_terms == ("window", "cat")


def test_one_changed_paragraph_leaves_a_near_duplicate() -> None:
    """A text with one of four paragraphs replaced is a near-duplicate; a text on another subject is not."""
    original = measure("\n\n".join(LIGHTHOUSE)).fingerprint
    changed = measure("\n\n".join([*LIGHTHOUSE[:2], NEW_PARAGRAPH, LIGHTHOUSE[3]])).fingerprint
    assert NEAR_DUPLICATE < similarity(original, changed) < 1.0
    assert similarity(original, measure(BREAD).fingerprint) < NEAR_DUPLICATE / 5


def test_typography_does_not_change_the_fingerprint() -> None:
    """Case, line ends, emphasis, curly apostrophes and decomposed accents do not matter."""
    plain = measure("The café doesn't open on Sunday morning.")
    typeset = measure("THE cafe\u0301 *doesn\u2019t* open\r\non **Sunday** morning!")
    assert similarity(plain.fingerprint, typeset.fingerprint) == 1.0


@pytest.mark.parametrize("shift", [0, 30, 120, 350, 700, 1000])
def test_similarity_estimates_the_jaccard_similarity(shift: int) -> None:
    """The share of equal MinHash values is within 0.12 of the exact Jaccard similarity."""
    a, b = invented_words(0, 1000), invented_words(shift, 1000 + shift)
    assert estimate(a, b) == pytest.approx(jaccard(a, b), abs=0.12)


@pytest.mark.parametrize("shift", [100, 400, 1000])
def test_sampled_shingles_keep_the_estimate(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above MAX_SHINGLES, the similarity of texts of equal length is within 0.12 of the exact one."""
    a, b = invented_words(0, 4000), invented_words(shift, 4000 + shift)
    whole = measure(" ".join(a)).fingerprint
    monkeypatch.setattr(text, "MAX_SHINGLES", 1000)
    assert measure(" ".join(a)).fingerprint != whole
    assert estimate(a, b) == pytest.approx(jaccard(a, b), abs=0.12)


def test_similarity_is_zero_without_a_fingerprint() -> None:
    """A text of fewer than five words has no fingerprint, and is not similar to any text."""
    short, long = measure("one two three four").fingerprint, measure("one two three four five").fingerprint
    assert (len(short), len(long)) == (0, 128)
    assert similarity(short, short) == similarity(short, long) == similarity(long, short) == 0.0
    assert similarity(long, long) == 1.0


def test_measures_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes with different hash seeds find the same terms and the same fingerprint."""
    monkeypatch.setattr(text, "MAX_SHINGLES", 50)  # so that the sampling is at work too
    program = (
        "import sys; from waooaw_celery.demo.agents import text; "
        "text.MAX_SHINGLES = 50; print(text.measure(sys.stdin.read()))"
    )
    source = "\n\n".join(LIGHTHOUSE)
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=source,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
            cwd=Path(text.__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {str(measure(source))}
    # A change of these numbers makes every stored fingerprint incomparable with the new ones.
    assert measure("one two three four five").fingerprint[:2] == (352196438224769023, 1547633388710973268)


@pytest.mark.parametrize("source", ["", " \n\t", "\x00\x01\x02", "12 345, 6.7 --- !?", "\udcff\ufeff\u200b"])
def test_text_without_words_has_no_ratings(source: str) -> None:
    """Counts are zero, ratings None, and terms and fingerprint empty."""
    assert measure(source) == Measures(
        words=0, sentences=0, reading_ease=None, grade=None, reading_minutes=0.0, key_terms=(), fingerprint=()
    )


def test_binary_content_is_measured_without_an_error() -> None:
    """Bytes that are decoded as text, with NULs and lone surrogates, can be measured."""
    content = bytes(range(256)) * 8
    for source in (content.decode("latin-1"), content.decode("utf-8", "surrogateescape")):
        assert measure(source).words > 0


def test_words_of_other_languages_are_words() -> None:
    """A word is a run of letters of any script."""
    measures = measure("Привет, мир! Это ещё одно небольшое предложение. Ça n'est pas l'été.")
    assert (measures.words, measures.sentences) == (11, 3)
    assert len(measures.fingerprint) == 128


def test_python_source_is_measured_by_its_docstrings_and_comments() -> None:
    """Docstrings and comments are prose, parts of identifiers are key terms, and code is not counted."""
    measures = measure(SOURCE)
    # Reads the meter / It never writes / The limits of this meter are those of
    # / Reader of one meter / before it gives up
    assert (measures.words, measures.sentences) == (3 + 3 + 8 + 4 + 4, 5)
    assert not {"prose", "noqa", "python"} & {word for term in measures.key_terms for word in term.split()}


def test_identifiers_of_python_source_are_split_into_terms() -> None:
    """The words of an identifier, in CamelCase or snake_case, are terms; Python's keywords are not."""
    source = "class HTTPServer:\n    pass\n\nclass MailSorter:\n    pass\n\nclass snake_cased:\n    pass\n"
    assert measure(source).key_terms == ("server", "sorter", "snake", "cased", "http")


def test_python_source_without_prose_has_a_fingerprint() -> None:
    """The identifiers of two copies of uncommented code make them similar."""
    code = "import json\n\ndef load_settings(file_name):\n    return json.loads(open(file_name).read())\n"
    first, second = measure(code), measure(code.replace("json.loads", "json.loads  "))
    assert (first.words, first.reading_ease) == (0, None)
    assert similarity(first.fingerprint, second.fingerprint) == 1.0


FRAGMENTS = st.sampled_from(
    [
        *(
            "word ",
            "Two words. ",
            "\n",
            "\n\n",
            "    ",
            "```\n",
            "~~~",
            "# ",
            "> ",
            ">>> ",
            "- ",
            "1. ",
            "| ",
            "::\n",
        ),
        *(
            ".. code::\n",
            "[a](",
            ")",
            "](",
            "<!--",
            "-->",
            "<a ",
            "---\n",
            "https://",
            ":x:`",
            "'",
            '"""',
            "\\",
            "\\d",
        ),
        *(
            "import a\n",
            "def f(x):\n",
            "class A: ",
            "return x\n",
            "(",
            "]",
            "{",
            "0x",
            "\x00",
            "\udcff",
            "\u0301",
            "\f",
        ),
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.text() | st.lists(FRAGMENTS, max_size=30).map("".join))
def test_any_text_can_be_measured(source: str) -> None:
    """No text raises an error, no count is negative, and the results are consistent."""
    measures = measure(source)
    assert 0 <= measures.sentences <= measures.words
    assert measures.reading_minutes >= 0.0
    assert len(measures.key_terms) <= 5
    assert len(measures.fingerprint) in {0, 128}
    assert (measures.reading_ease is None) == (measures.grade is None) == (measures.words == 0)
    assert measures.words < 5 or measures.fingerprint
    assert asdict(measures) == asdict(measure(source))
