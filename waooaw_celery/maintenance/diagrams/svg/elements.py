"""Writes SVG: elements with attributes and text, everything escaped, without styles and scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias
from xml.sax.saxutils import escape, quoteattr

from waooaw_celery.maintenance.diagrams.text import printable, shortened

#: Returns the URL of a message by its id, or None if it has none.
Link: TypeAlias = Callable[[str], str | None]

#: The width of a character, as a share of the size of the font: the fonts of the pictures have fixed widths.
CHARACTER_WIDTH = 0.61
#: The sizes of the text in pixels, by the class of ``style.py``.
SIZES = {"wd-name": 13.0, "wd-label": 12.5, "wd-note": 11.0, "wd-time": 11.0}


def element(tag: str, *content: str, **attributes: object) -> str:
    """Return an element.

    Args:
        tag: its name.
        content: what is in it: other elements, or escaped text.
        attributes: its attributes. A final ``_`` of a name is left out, another one is a hyphen. None: no
            attribute.
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}={quoteattr(_value(value))}"
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{written}>{''.join(content)}</{tag}>" if content else f"<{tag}{written}/>"


def text(content: str, x: float, y: float, class_: str, *, cells: int | None = None, **attributes: object) -> str:
    """Return a line of text.

    Args:
        content: any text.
        x: where it begins, in pixels; with ``text_anchor``, its middle or its end.
        y: its base line.
        class_: its classes; the first one sets its size.
        cells: most columns; a longer text is cut.
        attributes: other attributes.
    """
    shown = printable(content)
    if cells is not None:
        shown = shortened(shown, max(cells, 1))
    return element("text", escape(shown), x=x, y=y, class_=class_, **attributes)


def title(content: str) -> str:
    """Return the title of an element, which browsers show as a tooltip."""
    return element("title", escape(printable(content)))


def columns(pixels: float, class_: str) -> int:
    """Return how many characters of a class of text fit into some pixels."""
    return max(int(pixels / (SIZES[class_] * CHARACTER_WIDTH)), 1)


def document(name: str, description: str, width: float, height: float, *content: str, has_links: bool) -> str:
    """Return a whole picture.

    Args:
        name: its title.
        description: what it shows, for people who do not see it.
        width: its width in pixels.
        height: its height in pixels.
        content: its elements.
        has_links: whether it has links: the parts of an image cannot be reached, so it is a group then.
    """
    return element(
        "svg",
        title(name),
        element("desc", escape(printable(description))),
        *content,
        xmlns="http://www.w3.org/2000/svg",
        class_="wd",
        role="group" if has_links else "img",
        aria_label=printable(name),
        width=width,
        height=height,
        viewBox=f"0 0 {_value(width)} {_value(height)}",
    )


def linked(content: str, url: str | None) -> str:
    """Return an element that leads to a URL, or the element alone without one."""
    return content if url is None else element("a", content, href=url, class_="wd-link")


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else printable(str(value))
