"""Pieces of an HTML page that needs no network: section, table, picture, style."""

import base64
from html import escape

CSS = """
:root { --ink: #22262b; --soft: #5b626c; --line: #dfe2e6; --blue: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f8; color: var(--ink); font: 15px/1.5
  -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 56px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 20px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0 0 14px; }
h3 { font-size: 14px; margin: 18px 0 8px; }
section, aside { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 22px 26px; margin-top: 20px; }
aside { background: #fff8ec; border-color: #eddcb8; }
aside p { margin: 8px 0 0; max-width: 75ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr));
  gap: 14px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  border-top: 3px solid var(--blue); padding: 14px 18px; }
.card h3, .card p { margin: 0; }
.card h3 { color: var(--soft); font-weight: 600; overflow-wrap: anywhere; }
.big { font-size: 30px; font-weight: 650; line-height: 1.35; }
.big small { font-size: 15px; font-weight: 400; color: var(--soft); }
.note, figcaption { color: var(--soft); font-size: 13px; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 20px 2px 0; }
.facts dt { color: var(--soft); font-size: 12.5px; }
.facts dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; margin-bottom: 14px; }
th { font-size: 12.5px; font-weight: 600; color: var(--soft); vertical-align: bottom;
  line-height: 1.25; border-bottom: 1.5px solid var(--ink); }
td { border-bottom: 1px solid var(--line); }
th, td { padding: 6px 10px; text-align: left; }
.numbers th:not(:first-child), .numbers td:not(:first-child) { text-align: right; }
.numbers td { white-space: nowrap; }
.text td { vertical-align: top; overflow-wrap: anywhere; }
.text td:first-child { width: 36%; }
.legend { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px;
  font-size: 13px; color: var(--soft); margin: 10px 0 0; }
.legend dt { font-weight: 600; color: var(--ink); }
.legend dd { margin: 0; }
figure { margin: 12px 0 0; }
figcaption { text-align: center; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr));
  gap: 6px 24px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(228px, 1fr));
  gap: 14px; }
.pairs figure { margin: 0; }
.pairs img { border-radius: 4px; margin: 0; }
.pairs figcaption { margin-top: 4px; font-size: 12px; line-height: 1.35;
  text-align: left; overflow-wrap: anywhere; }
.pairs b { color: var(--ink); font-size: 13px; }
summary { cursor: pointer; font-weight: 600; }
details table { margin-top: 10px; font-size: 13px; }
@media print {
  body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; } table { font-size: 8.5pt; } th { font-size: 8pt; }
  th, td { padding: 3px 5px; } section, aside { border: 0; padding: 8px 0; }
  figure, tr, .card, aside { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""


def section(heading: str, body: str) -> str:
    """A block of the page; the body is HTML already."""
    return f"<section><h2>{heading}</h2>{body}</section>"


def table(head: list[str], rows: list[list[str]], kind: str = "numbers") -> str:
    """A table of cells that are HTML already; the heading is not."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def image(picture: str | bytes, alt: str, caption: str = "") -> str:
    """An inline picture, SVG text or PNG bytes; the caption is HTML already."""
    kind = "svg+xml" if isinstance(picture, str) else "png"
    data = picture.encode() if isinstance(picture, str) else picture
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alt)}" src="{source}">{below}</figure>'
