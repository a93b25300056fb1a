"""Measure a text: its length, its readability, its key terms and its fingerprint. It is no agent."""

from __future__ import annotations

import ast
import inspect
import io
import keyword
import re
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, pairwise
from math import log2
from tokenize import COMMENT, DEDENT, INDENT, NAME, NEWLINE, NL, STRING, TokenError, generate_tokens

#: Texts with this similarity or more are near-duplicates. Two texts of equal length that share the part s of their
#: shingles have the similarity s / (2 - s), so at 0.5 they share two thirds. Unrelated texts are near 0. The
#: standard error of the estimate at 0.5 is sqrt(0.5 * 0.5 / 128) = 0.044.
NEAR_DUPLICATE = 0.5
#: Maximum of shingles in a fingerprint: those with the smallest hashes, a sample that texts of similar length
#: share. A text with more shingles and a shorter text look less similar than they are.
MAX_SHINGLES = 30_000

_PRIME = 2**61 - 1
# From BLAKE2 and not from `random`, whose numbers may differ between versions of Python.
_SEEDS = [blake2b(b"permutation %d" % i, digest_size=32).digest() for i in range(128)]
_PERMUTATIONS = [(int.from_bytes(s[:16]) % (_PRIME - 1) + 1, int.from_bytes(s[16:]) % _PRIME) for s in _SEEDS]

_COMMON = """
a about after all also always an and another any are as at be because been before being between both but by can
cannot could did didn do does doesn doing don each either else even every few first for from get gets give go had
has have he her here him his how however if in into is isn it its just less let like made make many may me
might more most much must my never new no not nothing now of off often on one only or other others our out over
same say see self shall she should since so some something still such take than that the their them then there
these they this those though three through thus to too two under until up us use used uses using very via was wasn
we well were what when where whether which while who whole why will with within without won would you your
"""
_STOP_WORDS = frozenset(_COMMON.split())

# Applied in this order. Each is linear in the length of the text, hence the possessive quantifiers.
_MARKUP = (
    (r"^[ \t>]*+(`{3,}|(?<!\w\n)~~~(?!~))[^`\n]*\n(?s:.*?)(?:^[ \t>]*+\1.*|\Z)", "\n\n"),  # fenced code
    (r"\A---\n[\w-]+:(?s:.*?)\n---$|^[ \t]*+>>> (?s:.*?)(?:\n[ \t]*$|\Z)", "\n\n"),  # front matter, doctests
    # reStructuredText: a paragraph that ends in :: and a code directive announce indented code.
    (r"^([ \t]*+)(?:\.\. [\w-]*code.*|(?!\.\.)(.*)::)\n(?:[ \t]*\n|\1[ \t]+\S.*(?:\n|\Z))+", r"\2\n\n"),
    (r"<!--(?s:.*?)(?:-->|\Z)|</?[A-Za-z][^<>]{0,500}>|\bhttps?://[^\s<>]*[\w/]|:[\w-]+:(?=`)", " "),
    (r"!?\[([^\[\]]*)\](?:\([^()]*\)|\[[^\[\]]*\])", r"\1"),  # links, images
    (r"^[ \t>]*+#{1,6}[ \t]+(.*)$", r"\n\n\1\n\n"),
    # Items, fields, rows of tables, directives, targets of links.
    (r"^[ \t>]*+(?:(?:[-*+•]|\d{1,3}[.)]|:[\w ]+:)[ \t]|\||\.\. [\w-]+::|(?:\.\. _|\[[^\]\n]+\]:).*)", "\n\n"),
    (r"^[ \t]*+>+|^(?:[^\w\n]|_)+$", ""),  # quotations; rules and underlines
)
# A stop after an initial or a title, or before a small letter, ends no sentence.
_SENTENCE_END = re.compile(
    r"\n\s*\n|(?<=[\u3002\uff01\uff1f])|(?<!\b[A-HJ-Z])(?<!\b[DM]r)(?<!\bMrs)(?<!\bMs)(?<!\bProf)(?<!\bSt)"
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u2019\u201d\xbb)\]*_`]*+(?:\s++|\Z)(?![a-z])"
)
_VOWELS = re.compile(r"(?<![cgstx])i(?=[ao])|[aeiouyà-æè-ïò-öø-ýÿœ]+")
_SILENT_E = re.compile(r"([^aeiouyl]|[aeiouyl]l)e$|([^aeiouylcghsxz]|[aeiouyl]l)es$|([^aeiouydlt]|[aeiouyl]l)ed$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The measures of one text. The ratings are made for English, and are None if there are no words.

    Attributes:
        words: Number of words: runs of letters of any script, with apostrophes inside.
        sentences: Number of sentences; a heading, a list item or a row of a table is at least one.
        reading_ease: Flesch 1948, J. Applied Psychology 32, to 0.1: 60 to 70 is plain English, more is easier.
        grade: Flesch-Kincaid, years of US schooling, to 0.1 (Kincaid et al. 1975, US Navy report RBR 8-75).
        reading_minutes: Silent reading, to 0.1, at 238 words/min (Brysbaert 2019, J. Memory and Language 109).
        key_terms: Up to five words or two-word phrases in lower case, the most telling first.
        fingerprint: 128 MinHash values below 2**61 - 1 (Broder 1997) of the shingles of 5 words; () without any.
            In Python source, the words of the identifiers count for it and for the key terms, as nowhere else.
    """

    words: int
    sentences: int
    reading_ease: float | None
    grade: float | None
    reading_minutes: float
    key_terms: tuple[str, ...]
    fingerprint: tuple[int, ...]


def measure(text: str) -> Measures:
    """Measure prose, Markdown, reStructuredText, or Python source, whose prose is its docstrings and comments."""
    text = unicodedata.normalize("NFC", re.sub(r"\r\n?", "\n", text.removeprefix("\ufeff")))
    prose, names = _python_parts(text) or (text, [])
    for pattern, replacement in _MARKUP:
        prose = re.sub(pattern, replacement, prose, flags=re.MULTILINE)
    sentences = [words for part in _SENTENCE_END.split(prose) if (words := _words(part))]
    words = list(chain.from_iterable(sentences))
    words_per_sentence = len(words) / max(1, len(sentences))
    syllables_per_word = sum(map(_syllables, words)) / max(1, len(words))
    return Measures(
        words=len(words),
        sentences=len(sentences),
        reading_ease=round(206.835 - 1.015 * words_per_sentence - 84.6 * syllables_per_word, 1) if words else None,
        grade=round(0.39 * words_per_sentence + 11.8 * syllables_per_word - 15.59, 1) if words else None,
        reading_minutes=round(len(words) / 238, 1),
        key_terms=_key_terms(sentences + names),
        fingerprint=_fingerprint(words + list(chain.from_iterable(names))),
    )


def similarity(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Return the share of equal positions, an estimate of the Jaccard similarity; 0.0 when either is empty."""
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a) if a and b else 0.0


def _python_parts(text: str) -> tuple[str, list[list[str]]] | None:
    """Return the prose of a Python module and the words of its identifiers, or None for any other text."""
    try:
        with warnings.catch_warnings(action="ignore"):
            body = ast.parse(text).body
        tokens = list(generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, ValueError, MemoryError, RecursionError, TokenError):
        return None
    # "Name: value" is valid Python too, but prose defines and imports nothing.
    if not any(re.search("Def|Import", type(node).__name__) for node in body):
        return None
    prose, names, starting, comment_row = "", [], True, -1
    for kind, string, (row, _), _, _ in tokens:
        if kind == COMMENT and not re.match(r"#(!| *(noqa|type:|pragma|pylint|ruff:|mypy:|fmt:|-\*-))", string):
            prose += ("\n" if row == comment_row + 1 else "\n\n") + string.lstrip("#: ")
            comment_row = row
        elif kind == STRING and starting:
            prose += "\n\n" + inspect.cleandoc(re.sub(r"\A\w*(\"{3}|'{3}|[\"'])|[\"']+\Z", "", string))
        elif kind == NAME and not keyword.iskeyword(string):
            names.append(_words(re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", string)))
        starting = kind in (NEWLINE, INDENT, DEDENT) or (starting and kind in (COMMENT, NL))
    return prose, names


def _words(text: str) -> list[str]:
    return [word.casefold() for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.replace("\u2019", "'"))]


def _syllables(word: str) -> int:
    """Count vowel groups, -ia- and -io- as two (not -cia-, -tio-), no silent e: 97 % of running words fit."""
    return max(1, len(_VOWELS.findall(word)) - bool(_SILENT_E.search(word)))


def _key_terms(runs: list[list[str]]) -> tuple[str, ...]:
    """Return up to five terms by frequency times rarity, none sharing a word, those of 2 or 3 letters last.

    Without a corpus, rarity is log2 of the length: rarer words are longer (Zipf 1935, Psycho-Biology of Language).
    """
    stems = [[word.partition("'")[0] for word in run] for run in runs]
    known = frozenset(chain.from_iterable(stems))
    stems = [[w[:-1] if w.endswith("s") and w[:-1] in known else w for w in run] for run in stems]
    counts = Counter(w for run in stems for w in run if 1 < len(w) < 40 and w not in _STOP_WORDS)
    pairs = Counter((a, b) for run in stems for a, b in pairwise(run) if a != b and a in counts and b in counts)
    scores = {word: count * log2(len(word)) for word, count in counts.items()}
    scores |= {f"{a} {b}": n * (log2(len(a)) + log2(len(b))) for (a, b), n in pairs.items() if n > 1}
    terms: list[str] = []
    for term in sorted(scores, key=lambda term: (len(term) < 4, -scores[term])):
        if len(terms) < 5 and not set(term.split()) & set(" ".join(terms).split()):
            terms.append(term)
    return tuple(terms)


def _fingerprint(words: list[str]) -> tuple[int, ...]:
    shingles = {" ".join(words[i : i + 5]) for i in range(len(words) - 4)}
    sample = sorted(int.from_bytes(blake2b(s.encode(), digest_size=8).digest()) for s in shingles)[:MAX_SHINGLES]
    return tuple(min([(a * h + b) % _PRIME for h in sample]) for a, b in _PERMUTATIONS) if sample else ()
