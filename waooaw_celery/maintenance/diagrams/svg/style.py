"""The colours of the pictures, light and dark, as CSS: the SVG itself has only classes."""

from __future__ import annotations

from typing import Final

_LIGHT = """
  --wd-surface: #ffffff; --wd-box: #eef2f7; --wd-edge: #5b6777; --wd-line: #b6c0cc; --wd-band: #f5f7fa;
  --wd-text: #1b2430; --wd-soft: #4d5a6a; --wd-wait: #8593a5; --wd-run: #2f6fb5; --wd-link: #1d5fa8;
  --wd-good: #1a7040; --wd-bad: #b3261e; --wd-warn: #8a5300; --wd-open: #5a3fb0; --wd-bad-band: #fdeeed;
""".strip()
_DARK = """
  --wd-surface: #12171e; --wd-box: #222b36; --wd-edge: #93a1b2; --wd-line: #46525f; --wd-band: #181f28;
  --wd-text: #e8edf3; --wd-soft: #a9b5c3; --wd-wait: #7f8d9e; --wd-run: #6aa9ec; --wd-link: #8cc0ff;
  --wd-good: #6fcf97; --wd-bad: #ff8f87; --wd-warn: #f0b45a; --wd-open: #b8a4ff; --wd-bad-band: #331c1d;
""".strip()

#: The style sheet of both pictures. It follows the reader's preference for light or dark; ``data-theme="light"``
#: or ``"dark"`` at the root of the page overrides it.
DIAGRAM_CSS: Final = f"""
.wd {{
  {_LIGHT}
  font-family: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace;
  background: var(--wd-surface); display: block;
}}
@media (prefers-color-scheme: dark) {{
  :root:not([data-theme="light"]) .wd {{
  {_DARK}
  }}
}}
:root[data-theme="dark"] .wd {{
  {_DARK}
}}
.wd text {{ fill: var(--wd-text); font-size: 12.5px; }}
.wd .wd-name {{ font-size: 13px; font-weight: 600; }}
.wd .wd-label {{ font-size: 12.5px; }}
.wd .wd-over {{ paint-order: stroke; stroke: var(--wd-surface); stroke-width: 4px; stroke-linejoin: round; }}
.wd .wd-wrong .wd-over {{ stroke: var(--wd-bad-band); }}
.wd .wd-note, .wd .wd-time {{ font-size: 11px; fill: var(--wd-soft); }}
.wd .wd-box {{ fill: var(--wd-box); stroke: var(--wd-edge); stroke-width: 1; }}
.wd .wd-topic {{ stroke-dasharray: 4 3; }}
.wd .wd-others {{ stroke-dasharray: 1 3; }}
.wd .wd-lifeline {{ stroke: var(--wd-line); stroke-width: 1; stroke-dasharray: 4 4; }}
.wd .wd-grid {{ stroke: var(--wd-line); stroke-width: 1; }}
.wd .wd-cut {{ stroke: var(--wd-edge); stroke-width: 1; stroke-dasharray: 2 3; }}
.wd .wd-band {{ fill: var(--wd-band); }}
.wd .wd-bad-band {{ fill: var(--wd-bad-band); }}
.wd .wd-active {{ fill: var(--wd-box); stroke: var(--wd-edge); stroke-width: 1; }}
.wd .wd-arrow {{ stroke: var(--wd-edge); stroke-width: 1.5; }}
.wd .wd-dashed {{ stroke-dasharray: 6 4; }}
.wd .wd-folded {{ stroke-width: 3; }}
.wd .wd-head {{ fill: var(--wd-edge); stroke: var(--wd-edge); stroke-width: 1.5; }}
.wd .wd-open-head {{ fill: none; }}
.wd .wd-bad .wd-arrow, .wd .wd-bad .wd-head {{ stroke: var(--wd-bad); }}
.wd .wd-bad .wd-head {{ fill: var(--wd-bad); }}
.wd .wd-bad .wd-open-head {{ fill: none; }}
.wd .wd-warn .wd-arrow, .wd .wd-warn .wd-head {{ stroke: var(--wd-warn); }}
.wd .wd-open .wd-arrow, .wd .wd-open .wd-head {{ stroke: var(--wd-open); }}
.wd .wd-good .wd-status {{ fill: var(--wd-good); }}
.wd .wd-bad .wd-status {{ fill: var(--wd-bad); font-weight: 600; }}
.wd .wd-warn .wd-status {{ fill: var(--wd-warn); font-weight: 600; }}
.wd .wd-open .wd-status {{ fill: var(--wd-open); }}
.wd .wd-bar-wait {{ fill: none; stroke: var(--wd-wait); stroke-width: 1.5; stroke-dasharray: 3 2; }}
.wd .wd-bar-run {{ fill: var(--wd-run); stroke: var(--wd-surface); stroke-width: 1; }}
.wd .wd-bar-bad {{ fill: var(--wd-bad); stroke: var(--wd-surface); stroke-width: 1; }}
.wd .wd-bar-warn {{ fill: var(--wd-warn); stroke: var(--wd-surface); stroke-width: 1; }}
.wd .wd-bar-fold {{ fill: var(--wd-run); fill-opacity: 0.45; stroke: var(--wd-run); stroke-width: 1; }}
.wd .wd-bar-open {{ fill: var(--wd-open); }}
.wd .wd-mark {{ stroke: var(--wd-text); stroke-width: 2; }}
.wd .wd-mark-bad {{ stroke: var(--wd-bad); stroke-width: 2; }}
.wd .wd-mark-warn {{ stroke: var(--wd-warn); stroke-width: 2; }}
.wd .wd-link {{ cursor: pointer; }}
.wd .wd-link:hover .wd-label, .wd .wd-link:focus .wd-label {{ fill: var(--wd-link); text-decoration: underline; }}
.wd .wd-link:focus {{ outline: 2px solid var(--wd-link); }}
""".strip()
