"""The documentation site: `python3 dev.py docs` builds it with Sphinx into build/site.

The pages are the Markdown files of this folder, as they are read on GitHub too. What is made at build time is in
`_sphinx/`: the API from its docstrings, the commands from their help, the ledger's tables from their models.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_sphinx")]

project = "waooaw_celery"
author = "the authors of waooaw_celery"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generated",
    "links",
]
exclude_patterns = ["_sphinx"]
nitpicky = True
# Only public names have pages. Other types are shown as text.
nitpick_ignore_regex = [
    ("py:.*", r"(?!waooaw_celery\.(agents\.|aio\.)?\w+$).*"),
    ("py:.*", r"waooaw_celery\.[a-z]\w*"),
]

# Links are those of GitHub: relative, with the anchors that it makes of headings.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["ref.python"]  # an attribute is named `type`, as the built-in is

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute that is a property too would be described twice
python_maximum_signature_line_length = 88

toc_object_entries = False  # a table of contents with every method makes each page slow to build
smartquotes = False

html_theme = "furo"
html_title = "waooaw_celery"
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
pygments_style = "default"
pygments_dark_style = "monokai"
