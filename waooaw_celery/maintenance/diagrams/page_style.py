"""The style sheet of the HTML page around the pictures, light and dark."""

from __future__ import annotations

from typing import Final

#: The page is one column that a phone can show: only pictures, tables and payloads scroll, each in its own box.
PAGE_CSS: Final = """
:root { color-scheme: light dark; --page: #f3f5f8; --card: #ffffff; --ink: #1b2430; --soft: #4d5a6a;
  --rule: #d5dce4; --bad: #b3261e; --warn: #8a5300; --good: #1a7040; --open: #5a3fb0; --link: #1d5fa8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0c1015; --card: #12171e; --ink: #e8edf3; --soft: #a9b5c3; --rule: #2c3641; --bad: #ff8f87;
    --warn: #f0b45a; --good: #6fcf97; --open: #b8a4ff; --link: #8cc0ff; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 12px; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 22px; line-height: 1.3; margin: 0 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 32px 0 4px; }
h3 { font-size: 15px; margin: 0 0 8px; display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: baseline;
  overflow-wrap: anywhere; }
h3 span { min-width: 0; }
section > p { margin: 0 0 8px; color: var(--soft); }
a { color: var(--link); }
code, pre, td { font-family: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas,
  monospace; font-size: 13px; }
h1 code { font-size: inherit; font-weight: 600; }
code { overflow-wrap: anywhere; }
dl { margin: 0; }
header dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 1fr)); gap: 12px; }
.card, article, .scroll { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.card { padding: 12px 14px; }
.card dt { color: var(--soft); font-size: 13px; }
.card dd { margin: 0; display: flex; flex-direction: column; overflow-wrap: anywhere; }
.card strong { font-size: 20px; }
.card span { color: var(--soft); font-size: 13px; max-height: 8em; overflow-y: auto; }
.card.bad { border-color: var(--bad); }
.card.bad strong { color: var(--bad); }
.scroll { overflow: auto; max-width: 100%; }
section > .scroll { max-height: 85vh; }
.scroll:focus-visible, pre:focus-visible, a:focus-visible, summary:focus-visible {
  outline: 2px solid var(--link); }
article { padding: 14px; margin: 12px 0; }
article:target { border-color: var(--link); box-shadow: 0 0 0 1px var(--link); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 6px 18px;
  margin-bottom: 10px; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.facts div:has(pre) { grid-column: 1 / -1; }
.status { font-weight: 600; white-space: nowrap; }
.status.wd-good { color: var(--good); } .status.wd-bad { color: var(--bad); }
.status.wd-warn { color: var(--warn); } .status.wd-open { color: var(--open); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 4px 10px; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
td:last-child { white-space: normal; min-width: 14em; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
th { font-size: 13px; color: var(--soft); font-weight: 600; }
details { margin-top: 10px; }
summary { cursor: pointer; }
pre { margin: 6px 0 0; padding: 10px; overflow: auto; max-height: 60vh; border: 1px solid var(--rule);
  border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.error { color: var(--bad); margin: 0; }
@media print { .scroll, pre, section > .scroll { overflow: visible; max-height: none; }
  article { break-inside: avoid; } }
""".strip()
