"""Self-contained HTML pages: one file, no script, no font, no request to anywhere.

What lives here: escaping, tables, sections and the one style sheet. What does not: what a report says: its stage
knows.

    page("Run demo", [Section("Gates", [table(["criterion", "verdict"], [["a >= 1", badge("pass", Tone.GOOD)]])])])
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_STYLE = """
:root{--ink:#1b2430;--soft:#5b6775;--line:#dfe4ea;--paper:#fff;--wash:#f5f7f9;--accent:#20639b;
--good:#1a7f4b;--bad:#b3261e;--unsure:#9a6700}
*{box-sizing:border-box}body{margin:0;background:var(--wash);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 24px 64px;background:var(--paper);min-height:100vh}
h1{font-size:25px;margin:0 0 4px}h2{font-size:18px;margin:38px 0 10px;padding-top:14px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:20px 0 6px}p{margin:6px 0 10px}.lead{color:var(--soft);margin-bottom:14px}
nav{margin:12px 0 0;font-size:13px}nav a{color:var(--accent);margin-right:14px;text-decoration:none}
table{border-collapse:collapse;width:100%;margin:8px 0 14px;font-size:13.5px}
th,td{text-align:left;padding:5px 9px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}td.num,th.num{text-align:right;font-variant-numeric:tabular-nums;
white-space:nowrap}pre,code{font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:8px 10px;margin:4px 0;overflow-x:auto;
white-space:pre-wrap;overflow-wrap:anywhere}td pre{border:0;padding:4px 6px}
.badge{display:inline-block;padding:1px 8px;border-radius:10px;font-size:12px;font-weight:600;color:#fff;
white-space:nowrap}.good{background:var(--good)}.bad{background:var(--bad)}.unsure{background:var(--unsure)}
.plain{background:var(--soft)}.cards{display:flex;flex-wrap:wrap;gap:12px;margin:14px 0}
.card{flex:1 1 150px;border:1px solid var(--line);border-radius:8px;padding:10px 14px;background:var(--paper)}
.card b{display:block;font-size:22px;line-height:1.25;font-variant-numeric:tabular-nums}
.card span{font-size:12.5px;color:var(--soft)}figure{margin:10px 0 16px}figure svg{max-width:100%;height:auto}
figcaption{font-size:12.5px;color:var(--soft)}.two{display:grid;grid-template-columns:1fr 1fr;gap:14px}
@media(max-width:760px){.two{grid-template-columns:1fr}}ins{background:#d8f2e2;text-decoration:none}
del{background:#fbdcda;text-decoration:none}
.meter{display:inline-block;height:9px;background:var(--accent);border-radius:2px;vertical-align:middle;min-width:1px}
details{margin:6px 0 10px}summary{cursor:pointer;color:var(--accent);font-size:13.5px}
"""


class Tone(enum.StrEnum):
    """Colour of a badge. The words carry the meaning; the colour repeats it."""

    GOOD = "good"
    BAD = "bad"
    UNSURE = "unsure"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and the HTML pieces under it."""

    title: str
    parts: Sequence[Markup]


@dataclass(frozen=True, slots=True)
class Number:
    """A table cell that is aligned right."""

    text: str


Cell = str | Markup | Number


def text(words: str) -> Markup:
    """Return a paragraph."""
    return Markup("<p>{}</p>").format(words)


def lead(words: str) -> Markup:
    """Return a paragraph in a quieter colour."""
    return Markup('<p class="lead">{}</p>').format(words)


def heading(words: str) -> Markup:
    """Return a heading inside a section."""
    return Markup("<h3>{}</h3>").format(words)


def code(words: str) -> Markup:
    """Return preformatted text, long lines wrapped."""
    return Markup("<pre>{}</pre>").format(words)


def badge(words: str, tone: Tone) -> Markup:
    """Return a short coloured label."""
    return Markup('<span class="badge {}">{}</span>').format(tone.value, words)


def figure(svg: str, *, caption: str) -> Markup:
    """Return an inline SVG drawing with its caption. The SVG is trusted: it is drawn by us."""
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(Markup(svg), caption)


def columns(left: Markup, right: Markup) -> Markup:
    """Return two pieces side by side, one under the other on a narrow screen."""
    return Markup('<div class="two"><div>{}</div><div>{}</div></div>').format(left, right)


def marked_columns(left: str, right: str) -> Markup:
    """Return two texts side by side, the words that only one of them has highlighted."""
    return columns(*_marked(left, right))


def _marked(left: str, right: str) -> tuple[Markup, Markup]:
    mine, theirs = (re.findall(r"\w+|\s+|[^\w\s]", words) for words in (left, right))
    out: tuple[list[Markup], list[Markup]] = ([], [])
    for kind, a, b, c, d in difflib.SequenceMatcher(a=mine, b=theirs, autojunk=False).get_opcodes():
        for side, words, mark in ((out[0], mine[a:b], "del"), (out[1], theirs[c:d], "ins")):
            piece = escape("".join(words))
            changed = kind != "equal" and piece
            side.append(Markup("<{}>{}</{}>").format(Markup(mark), piece, Markup(mark)) if changed else piece)
    return Markup("<pre>{}</pre>").format(Markup("").join(out[0])), Markup("<pre>{}</pre>").format(
        Markup("").join(out[1])
    )


def meter(share: float, *, pixels: int = 160) -> Markup:
    """Return a bar as long as a share of the whole, for a table cell."""
    return Markup('<span class="meter" style="width:{}px"></span>').format(round(pixels * share))


def details(summary: str, *parts: Markup) -> Markup:
    """Return pieces that are shown when their summary is clicked."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, Markup("").join(parts))


def cards(items: Sequence[tuple[str, str]]) -> Markup:
    """Return large figures, each as (figure, what it is)."""
    body = Markup("").join(Markup('<div class="card"><b>{}</b><span>{}</span></div>').format(*item) for item in items)
    return Markup('<div class="cards">{}</div>').format(body)


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Markup:
    """Return a table; a column is aligned right where its first row holds a `Number`."""
    numeric = [isinstance(cell, Number) for cell in rows[0]] if rows else [False] * len(headers)
    head = Markup("").join(
        Markup('<th class="{}">{}</th>').format("num" if right else "", name)
        for name, right in zip(headers, numeric, strict=True)
    )
    body = Markup("").join(Markup("<tr>{}</tr>").format(Markup("").join(_cell(cell) for cell in row)) for row in rows)
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def _cell(cell: Cell) -> Markup:
    if isinstance(cell, Number):
        return Markup('<td class="num">{}</td>').format(cell.text)
    return Markup("<td>{}</td>").format(cell)


def page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Return the whole HTML document, with links to its sections."""
    links = Markup("").join(Markup('<a href="#s{}">{}</a>').format(i, s.title) for i, s in enumerate(sections))
    body = Markup("").join(
        Markup('<h2 id="s{}">{}</h2>{}').format(i, s.title, Markup("").join(s.parts)) for i, s in enumerate(sections)
    )
    return str(
        Markup(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            "<title>{}</title><style>{}</style></head>"
            '<body><main><h1>{}</h1><p class="lead">{}</p><nav>{}</nav>{}</main></body></html>'
        ).format(escape(title), Markup(_STYLE), title, subtitle, links, body)
    )
