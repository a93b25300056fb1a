"""Lets the pages stay plain Markdown: tables of contents follow from links, pictures are copied beside the pages.

The README and the other files above this folder are pages too; links to them, and in them, lead to these pages.

A page with the comment ``<!-- contents -->`` is a table of contents: the pages that it links to below the comment
are its chapters, in that order and with these names, and its headings are their captions. So the same list is read
on GitHub.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

MARK = "<!-- contents -->"
LINK = re.compile(r"^- \[([^\]]+)\]\((?!https?:)([\w./-]+)\.md\)", re.MULTILINE)


#: Pages that show a file of the folder above.
FILES = {name.lower(): f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")}
FILE_LINK = re.compile(rf"\]\((?:\.\./)?((?:\.\./)*)({'|'.join(map(re.escape, FILES.values()))})(#[\w-]+)?\)")
#: Links to the examples, which the repository has and the site has not.
EXAMPLE_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(examples/\w+)/README\.md\)")


def show_files(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the text of a file into its page, and let links to such files lead to their pages."""
    if docname in FILES:
        path = Path(app.srcdir).parent / FILES[docname]
        app.env.note_dependency(str(path))
        source[0] = path.read_text().replace("](docs/", "](")
    source[0] = EXAMPLE_LINK.sub(_named_folder, source[0])
    source[0] = FILE_LINK.sub(lambda found: f"]({found[1]}{found[2].lower()}{found[3] or ''})", source[0])


def _named_folder(found: re.Match[str]) -> str:
    text, folder = found[1], found[2]
    return text if folder in text else f"{text} (`{folder}`)"


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add a hidden toctree below each section of a table of contents."""
    head, found, rest = source[0].partition(MARK)
    if not found:
        return
    sections = re.split(r"^(?=## )", rest, flags=re.MULTILINE)
    source[0] = head + "".join(_with_toctree(section) for section in sections)


def _with_toctree(section: str) -> str:
    pages = LINK.findall(section)
    if not pages:
        return section
    caption = re.match(r"## (.+)", section)
    options = [f":caption: {caption[1]}"] if caption else []
    lines = [
        "",
        "```{toctree}",
        ":hidden:",
        ":titlesonly:",
        *options,
        "",
        *(f"{text} <{page}>" for text, page in pages),
        "```",
        "",
    ]
    return section.rstrip("\n") + "\n" + "\n".join(lines) + "\n"


def copy_pictures(app: Sphinx, exception: Exception | None) -> None:
    """Copy the pictures that pages show in HTML of their own, for light and dark."""
    if exception is None:
        shutil.copytree(Path(app.srcdir) / "images", Path(app.outdir) / "images", dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Follow the reading of each page, and the end of the build."""
    app.connect("source-read", show_files)
    app.connect("source-read", add_contents)
    app.connect("build-finished", copy_pictures)
    app.add_lexer("mermaid", TextLexer)  # GitHub draws these pictures; the site shows their text
    return {"parallel_read_safe": True, "parallel_write_safe": True}
