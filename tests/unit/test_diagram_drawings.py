"""The drawings of a conversation: what they show, and that no text of a message becomes part of their language."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from itertools import product
from xml.etree import ElementTree

import pytest
from conversation_records import HOSTILE, at, event, every_kind, handled, hostile, large, record

from waooaw_celery.errors import PayloadNotLoaded
from waooaw_celery.maintenance.diagrams.building import diagram_of
from waooaw_celery.maintenance.diagrams.mermaid import MAX_TEXT_SIZE, mermaid
from waooaw_celery.maintenance.diagrams.model import ConversationDiagram
from waooaw_celery.maintenance.diagrams.page import MAX_PAYLOAD, html_page
from waooaw_celery.maintenance.diagrams.svg.sequence import sequence_svg
from waooaw_celery.maintenance.diagrams.svg.style import DIAGRAM_CSS
from waooaw_celery.maintenance.diagrams.svg.timeline import timeline_svg
from waooaw_celery.maintenance.diagrams.tree import tree
from waooaw_celery.messages.log.escaping import escaped

SVG = "{http://www.w3.org/2000/svg}"
#: Everything that a picture may consist of.
ELEMENTS = {"svg", "title", "desc", "g", "a", "rect", "line", "path", "circle", "text"}
ATTRIBUTES = {
    *(
        "class",
        "role",
        "aria-label",
        "width",
        "height",
        "viewBox",
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "cx",
        "cy",
        "r",
    ),
    *("rx", "d", "fill", "text-anchor", "href"),
}

pictures = pytest.mark.parametrize("draw", [sequence_svg, timeline_svg])
Draw = Callable[..., str]


def parsed(svg: str) -> ElementTree.Element:
    """Read a picture as XML: it must be well-formed."""
    return ElementTree.fromstring(svg)  # noqa: S314  # this package has written it


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]


@pictures
def test_a_picture_is_well_formed_and_has_only_classes(draw: Draw) -> None:
    """Each element and attribute is one of a short list, without styles, scripts, ids and handlers of events."""
    for records in (every_kind(), hostile(), large(2_000)):
        root = parsed(draw(diagram_of(records), link=lambda id_: f"/m?{id_}"))
        assert root.tag == f"{SVG}svg"
        assert {each.tag.removeprefix(SVG) for each in root.iter()} <= ELEMENTS
        assert {name for each in root.iter() for name in each.attrib} <= ATTRIBUTES
        classes = {name for each in root.iter() for name in each.get("class", "").split()}
        assert {name for name in classes if f".{name}" not in DIAGRAM_CSS} <= {"wd-label", "wd-agent"}


@pictures
def test_hostile_text_stays_text(draw: Draw) -> None:
    """A script in a name is shown as text; control characters, marks of direction and surrogates are replaced."""
    svg = draw(diagram_of(hostile()), link=lambda id_: f"/?{id_}")
    assert "<script" not in svg
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", svg)
    shown = " ".join("".join(each.itertext()) for each in parsed(svg).iter(f"{SVG}title"))
    assert "<script>alert(1)</script>&amp;]]>\N{REPLACEMENT CHARACTER};#end" in shown


@pictures
def test_a_picture_can_be_heard(draw: Draw) -> None:
    """It has a title, a description and a role; the status of each message is written, not only coloured."""
    root = parsed(draw(diagram_of(every_kind())))
    assert root.get("role") == "img"
    assert root[0].tag == f"{SVG}title"
    assert "conversation order-7" in str(root[0].text)
    assert root[1].tag == f"{SVG}desc"
    assert "12 messages" in str(root[1].text)
    written = " ".join(texts(root))
    for word in ("handled", "failed", "expired", "dead letter", "cancelled", "running", "waiting", "answered"):
        assert word in written, word


@pictures
def test_links_lead_to_the_messages(draw: Draw) -> None:
    """A message for which the function returns a URL has a link, and no other; the parts can then be reached."""
    diagram = diagram_of(every_kind())
    svg = draw(diagram, link=lambda id_: None if id_ == "ask" else f'/m?a=1&id="{id_}"')
    root = parsed(svg)
    assert root.get("role") == "group"
    urls = [each.get("href") for each in root.iter(f"{SVG}a")]
    assert urls == [f'/m?a=1&id="{each.message_id}"' for each in diagram.arrows if each.message_id != "ask"]
    assert "<a" not in draw(diagram)


def test_the_labels_of_neighbours_do_not_overlap() -> None:
    """In each row of the sequence, every text ends before the next one begins and within the picture."""
    for records in (every_kind(), hostile(), large(500), large(10_000)):
        root = parsed(sequence_svg(diagram_of(records)))
        rows: dict[str, list[tuple[float, float]]] = {}
        for each in root.iter(f"{SVG}text"):
            size = {"wd-name": 13, "wd-label": 12.5}.get(each.get("class", "").split()[0], 11)
            width, x = len("".join(each.itertext())) * size * 0.6, float(str(each.get("x")))
            begin = x - {"start": 0, "middle": width / 2, "end": width}[each.get("text-anchor", "start")]
            rows.setdefault(str(each.get("y")), []).append((begin, begin + width))
        for spans in rows.values():
            for one, other in zip(sorted(spans), sorted(spans)[1:], strict=False):
                assert one[1] <= other[0]
            assert min(spans)[0] >= 0
            assert max(end for _, end in spans) <= float(str(root.get("width")))


def test_ordinary_names_and_labels_are_whole() -> None:
    """Lifelines stand as far apart as the texts between them need: nothing is cut in an ordinary conversation."""
    written = texts(parsed(sequence_svg(diagram_of(every_kind(), workflows={"order-7"}))))
    assert not [text for text in written if text.endswith("\N{HORIZONTAL ELLIPSIS}")]
    assert "topic order.shipped" in written
    assert "\u2020 dead letter 200 ms \u21bb1" in written


def test_the_timeline_has_a_bar_for_each_attempt_and_a_mark_for_each_bad_end() -> None:
    """Attempts, waiting, and marks of the expired, the dead and the cancelled message are drawn in their row."""
    root = parsed(timeline_svg(diagram_of(every_kind())))
    classes = [each.get("class") for each in root.iter()]
    legend = 1  # the legend shows each once
    assert classes.count("wd-bar-bad") - legend == 4  # retried, failed, lost, dead
    assert classes.count("wd-bar-open") - legend == 1
    rows = {str(group[0].text): group for group in root.iter(f"{SVG}g") if group[0].tag == f"{SVG}title"}
    [expired] = [group for title, group in rows.items() if "mailer.event.mail" in title]
    assert [each.get("class") for each in expired if each.tag == f"{SVG}path"] == ["wd-mark-warn"]
    [asked] = [
        group for title, group in rows.items() if title.startswith("orders \N{RIGHTWARDS ARROW} stock.reserve")
    ]
    bars = [each.get("class") for each in asked.iter(f"{SVG}rect")]
    assert bars == ["wd-bar-wait", "wd-bar-bad", "wd-bar-wait", "wd-bar-run"]


def test_colours_have_enough_contrast() -> None:
    """Each colour of text has at least 4.5 to 1 on each background of its theme (WCAG AA), light and dark."""
    themes = re.findall(r"(--wd-surface:.*?)\n\s*(?:font-family|\})", DIAGRAM_CSS, re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        colours = dict(re.findall(r"--wd-([a-z-]+): (#[0-9a-f]{6})", theme))
        for name, ground in product(
            ("text", "soft", "good", "bad", "warn", "open", "link"), ("surface", "band", "bad-band")
        ):
            assert contrast(colours[name], colours[ground]) >= 4.5, f"{name} on {ground}: {theme[:40]}"
        for name in ("run", "edge", "wait"):
            assert contrast(colours[name], colours["surface"]) >= 3, name  # a graphical object


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, 1 to 21."""
    lights = sorted(luminance(colour) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[number : number + 2], 16) / 255 for number in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_tree_shows_causes_above_effects() -> None:
    """Each message is one line below its cause; the answer is a word in the line of its request."""
    lines = list(tree(diagram_of(every_kind(), workflows={"order-7"})))
    assert lines[0] == "Conversation order-7: 12 messages, 8 agents, 3.40 s, 3 not handled, 2 open, 2 retries"
    assert len(lines) == 12
    assert lines[1].startswith("\u2713 workflow shop \u2192 orders.fulfil: handled")
    [asked] = [line for line in lines if "stock.reserve" in line]
    assert asked.startswith("\u251c\u2500 \u2713 ")
    assert "handled, answered, waited 50 ms, ran 250 ms, 1 retry  ask" in asked
    [dead] = [line for line in lines if line.endswith("  dead")]
    assert dead.startswith(("\u2502  \u2502  \u2514\u2500 \u2020 ", "\u2502  \u251c\u2500 \u2020 "))


def test_the_tree_of_ascii_has_no_other_character() -> None:
    """A terminal without Unicode gets branches and arrows of ASCII; the status is written in words."""
    lines = list(tree(diagram_of(every_kind()), ascii_only=True))
    assert all(line.isascii() for line in lines)
    assert [line for line in lines if line.startswith("|- orders -> support.check: failed")]


def test_the_tree_of_a_long_chain_does_not_end_pythons_stack() -> None:
    """Two thousand messages, each the cause of the next, are two thousand lines."""
    chain = [record(f"m{number}", sent=number / 10, cause=number and f"m{number - 1}") for number in range(2_000)]
    assert len(list(tree(diagram_of(chain, max_arrows=2_000)))) == 2_001


def test_an_escaped_line_of_the_tree_is_one_line() -> None:
    """What a terminal prints of a hostile message has no line break and no control character."""
    for line in tree(diagram_of(hostile())):
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202e\ud800-\udfff]", escaped(line))


def assert_is_mermaid(text: str, diagram: ConversationDiagram) -> None:
    """Each line is one that the function writes, and its text has no character with a meaning."""
    plain = r"(?:[A-Za-z0-9 _.,()\u00c0-\uffff-]|#\d+;)+"
    head, *lines = text.removesuffix("\n").split("\n")
    assert head == "sequenceDiagram"
    names = lines[: len(diagram.participants)]
    for number, line in enumerate(names):
        assert re.fullmatch(rf"    participant p{number} as {plain}", line), line
    for line in lines[len(names) :]:
        assert re.fullmatch(rf"    p\d+(?:->>|-\)|--\)|-x)p\d+: {plain}", line), line
        assert not re.search(r"\bend\b", line.split(": ", 1)[1], re.IGNORECASE)


def test_mermaid_has_a_line_for_each_participant_and_message() -> None:
    """The kinds of arrows differ; errors stand at the messages."""
    diagram = diagram_of(every_kind(), workflows={"order-7"})
    text = mermaid(diagram)
    assert_is_mermaid(text, diagram)
    assert "    participant p4 as topic order.shipped\n" in text
    assert "    p0->>p1: workflow fulfil (handled 100 ms)\n" in text
    assert "    p1-xp3: check (failed 100 ms, ValueError#58; no)\n" in text
    assert "    p2--)p1: answer (answered)\n" in text
    assert text.count("\n") == 1 + 9 + 12


def test_hostile_text_cannot_break_out_of_mermaid() -> None:
    """Quotes, line breaks, `;`, `#`, `end`, directives and tags are codes within their lines."""
    diagram = diagram_of(hostile())
    text = mermaid(diagram)
    assert_is_mermaid(text, diagram)
    assert "#101;nd" in text
    assert text.count("\n") == 1 + len(diagram.participants) + len(diagram.arrows)


@pytest.mark.parametrize("limit", [MAX_TEXT_SIZE, 4_000])
def test_mermaid_stays_below_its_limit(limit: int) -> None:
    """A text that is too long is folded further, and says how many messages each arrow has."""
    records = [
        record(f"m{number}", handler=f"{HOSTILE[:30]}{number}", sent=number / 10) for number in range(3_000)
    ]
    diagram = diagram_of(records, max_arrows=3_000)
    text = mermaid(diagram, max_characters=limit)
    assert 0 < len(text) <= limit
    counts = [int(count) for count in re.findall(r"\u00d7(\d+) ", text)]
    assert sum(counts) == 3_000


class Page(HTMLParser):
    """Reads a page: its tags, the attributes that may run something, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.urls: set[str] = set()
        self.ids: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.urls |= {str(value) for name, value in attrs if name in ("href", "src")}
        self.ids |= {str(value) for name, value in attrs if name == "id"}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    """Its policy allows its one style by its hash and nothing else; links lead within the page."""
    for records in (every_kind({"a": 1}), hostile()):
        text = html_page(records, payloads=True)
        [style] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        digest = b64encode(sha256(style.encode()).digest()).decode()
        assert f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'" in text
        page = Page(text)
        assert not page.tags & {"script", "iframe", "img", "object", "embed", "form", "base", "link", "audio"}
        assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
        assert page.urls
        assert all(url.startswith("#") and url[1:] in page.ids for url in page.urls)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)


def test_the_page_has_every_fact_of_every_message() -> None:
    """The summary, and for each message its route, status, events with time and worker, error and cause."""
    shown = " ".join(Page(html_page(every_kind(), workflows={"order-7"})).texts)
    assert "1 dead letter, 1 failed, 1 expired, 1 cancelled" in shown
    for each in every_kind():
        assert each.receipt.message_id in shown
    for text in (
        "TimeoutError: the warehouse does not answer",
        "worker@host",
        "2026-11-29 09:30:00.500",
        "retried",
    ):
        assert text in shown, text


def test_payloads_are_shown_only_when_asked() -> None:
    """They are escaped and folded in; a large one is cut, and its size is said; an erased one says when."""
    payload = {"name": "<b>Ada & Eva</b>", "long": "x" * 100_000}
    records = [record("one", payload=payload), record("two", payload=None, erased_at=at(60))]
    assert "Ada" not in html_page(records)
    assert records[0].payload_digest not in html_page(records)  # it would confirm who guesses the payload
    text = html_page(records, payloads=True)
    assert records[0].payload_digest in text
    assert "&lt;b&gt;Ada &amp; Eva&lt;/b&gt;" in text
    assert "xx" * (MAX_PAYLOAD // 4) in text
    assert "x" * MAX_PAYLOAD not in text
    assert re.search(r"Cut: the payload has 100,0\d\d bytes", text)
    assert "The payload was erased at 2026-11-29 09:31:00.000 UTC" in text
    with pytest.raises(PayloadNotLoaded):
        html_page(every_kind(), payloads=True)


def test_the_page_of_ten_thousand_messages_is_small_and_quick() -> None:
    """It takes seconds at most, stays below 5 MB, and says what it left out; what failed is described."""
    records = large(10_000, "payload")
    begin = time.monotonic()
    text = html_page(records, payloads=True)
    assert time.monotonic() - begin < 6  # 0.7 s on an idle computer
    assert len(text) < 5_000_000
    assert "1,000 of 10,000 messages are described here" in text
    assert text.count("<article") == 1_000
    assert text.count('<span class="status wd-bad">\N{MULTIPLICATION X} failed') == 11


def test_two_messages_at_one_moment_are_drawn() -> None:
    """Messages without any duration, and one that ended before it began, have a picture."""
    early = record("one", cause="two", events=(event("delivered", -5.0, 1), event("handled", -6.0, 1)))
    for draw in (sequence_svg, timeline_svg):
        parsed(draw(diagram_of([record("two"), early])))
        parsed(draw(diagram_of([record("three", events=handled(0.0, 0.0, 0.0))])))
