"""One self-contained HTML page of sections with text, tables and figures; it asks for nothing from outside."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.files import write_atomically
from toolkit.show import matplotlib_backend, plotly_backend
from toolkit.show.captions import plain
from toolkit.show.panels import Figure, Heatmap, Image, Scatter

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass
class Section:
    """One part of a page.

    Attributes:
        title: heading.
        text: paragraphs, separated by empty lines; plain text.
        figures: figures in order; each brings its own title, explanation and provenance.
        tables: (caption, table) pairs, drawn after the figures.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[tuple[str, pd.DataFrame]] = ()


def write_page(title: str, summary: str, sections: Sequence[Section], path: Path, *, interactive: bool = True) -> Path:
    """Write the page at once; nothing half-written is ever seen.

    Args:
        title: title of the page.
        summary: what it is about, one paragraph.
        sections: the content.
        path: file to write.
        interactive: add an interactive version below each static picture (the page grows by 5 MB once).
    """
    body = "\n".join(_section(section, number, interactive) for number, section in enumerate(sections, 1))
    links = "\n".join(
        f'<li><a href="#section-{number}">{html.escape(section.title)}</a></li>'
        for number, section in enumerate(sections, 1)
    )
    text = _PAGE.format(
        title=html.escape(title),
        summary=_paragraphs(summary),
        links=links,
        body=body,
        style=_STYLE,
        footer=html.escape(_footer()),
        scripts=_scripts() if interactive else "",
    )
    return write_atomically(path, text, parents=True)


def _section(section: Section, number: int, interactive: bool) -> str:
    figures = "\n".join(
        _figure(figure, f"figure-{number}-{index}", interactive) for index, figure in enumerate(section.figures, 1)
    )
    tables = "\n".join(_table(caption, table) for caption, table in section.tables)
    return (
        f'<section id="section-{number}">\n<h2>{html.escape(section.title)}</h2>\n{_paragraphs(section.text)}'
        f"\n{figures}\n{tables}\n</section>"
    )


def _figure(figure: Figure, name: str, interactive: bool) -> str:
    bare = dataclasses.replace(figure, title="", subtitle="", caption="")
    heavy = any(isinstance(panel, (Image, Heatmap, Scatter)) for panel in figure.panels())
    kind, mime = ("png", "image/png") if heavy else ("svg", "image/svg+xml")
    data = base64.b64encode(matplotlib_backend.render(bare, kind, dpi=160)).decode()
    panels = "; ".join(filter(None, (f"{p.title} {p.note}".strip() for p in figure.panels())))
    lines = "<br>".join(html.escape(line) for line in plain(figure.caption).splitlines())
    parts = [
        f"<figure>\n<h3>{html.escape(figure.title)}</h3>",
        f"<p>{html.escape(figure.subtitle)}</p>" if figure.subtitle else "",
        (
            f'<div class="picture"><img alt="{html.escape(f"{figure.title}: {panels}", quote=True)}" '
            f'width="{_width(bare)}" src="data:{mime};base64,{data}"></div>'
        ),
        f"<figcaption>{lines}</figcaption>",
    ]
    if interactive:
        content = plotly_backend.draw(bare).to_json().replace("</", "<\\/")
        parts.append(
            f'<details class="interactive"><summary>Interactive version</summary><div class="plot" id="{name}"></div>'
            f'<script type="application/json" id="{name}-data">{content}</script></details>'
        )
    return "\n".join([*filter(None, parts), "</figure>"])


def _width(figure: Figure) -> int:
    from toolkit.show.layout import place

    return place(figure).width


def _table(caption: str, table: pd.DataFrame) -> str:
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in table.columns)
    rows = "\n".join(
        "<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in table.itertuples(index=False, name=None)
    )
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{html.escape(caption, quote=True)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return f"<td>{html.escape('' if value is None else str(value))}</td>"
    if isinstance(value, (int, float)) or hasattr(value, "dtype"):
        number = float(value)  # type: ignore[arg-type]
        text = (
            "–"
            if number != number
            else f"{int(number)}"
            if number.is_integer()
            else f"{number:.0f}"
            if abs(number) >= 1000
            else f"{number:.3g}"
        )
        return f'<td class="number">{text}</td>'
    return f"<td>{html.escape(plain(str(value)))}</td>"


def _paragraphs(text: str) -> str:
    return "\n".join(f"<p>{html.escape(plain(part))}</p>" for part in text.split("\n\n") if part.strip())


def _footer() -> str:
    import datetime

    import torch

    import toolkit

    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"toolkit {toolkit.__version__}, torch {torch.__version__}, {day}"


def _scripts() -> str:
    from plotly.offline import get_plotlyjs

    settings = json.dumps({"displaylogo": False, "responsive": False})
    return f"<script>{get_plotlyjs()}</script>\n<script>{_OPEN.replace('SETTINGS', settings)}</script>"


_OPEN = """
document.querySelectorAll('details.interactive').forEach(function (box) {
  box.addEventListener('toggle', function () {
    var plot = box.querySelector('.plot');
    if (!box.open || plot.childElementCount) { return; }
    var figure = JSON.parse(document.getElementById(plot.id + '-data').textContent);
    Plotly.newPlot(plot, figure.data, figure.layout, SETTINGS);
  });
});
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --faint: #5f6b76; --paper: #ffffff; --card: #f5f7f9; --line: #d5dbe1;
  --link: #005a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --faint: #a3afba; --paper: #14181c; --card: #1d2329;
  --line: #37414b; --link: #7cc4ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 0.5rem; padding-top: 0.75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0 0 0.25rem; }
p { max-width: 48rem; margin: 0.4rem 0 0.8rem; }
a { color: var(--link); }
nav ol { columns: 2 18rem; padding-left: 1.3rem; }
figure { margin: 1.25rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  break-inside: avoid; }
.picture, .interactive .plot { overflow-x: auto; background: #ffffff; border-radius: 4px; }
.picture img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: 0.6rem; font-size: 0.8rem; color: var(--faint); overflow-wrap: anywhere; }
summary { cursor: pointer; font-size: 0.85rem; color: var(--link); margin-top: 0.5rem; width: max-content; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 2px; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; }
caption { text-align: left; font-weight: 600; padding: 0.3rem 0; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
footer { margin-top: 3rem; color: var(--faint); font-size: 0.8rem; }
@media print { body { max-width: none; padding: 0; color: #000; background: #fff; } .interactive, nav { display: none; }
  figure { background: #fff; border-color: #bbb; } h2 { break-after: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{summary}
<nav aria-label="Sections"><ol>
{links}
</ol></nav>
</header>
<main>
{body}
</main>
<footer>{footer}</footer>
{scripts}
</body>
</html>
"""
