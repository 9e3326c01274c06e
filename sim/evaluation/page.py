"""The page that the report is on: its look in light and dark, tables, and pictures that take the page's colours.

Owns HTML and CSS. It must never know what is reported. A page asks nothing of the network: no script, no font, no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

INK, EDGE, GRID, PALE = "#374151", "#9ca3af", "#e5e7eb", "#cbd5e1"
"""What pictures are drawn in beside the colours of systems; on a page they are the page's own, which differ in the dark."""
BLACK = "#111111"
VARIABLES = {INK: "--ink", EDGE: "--edge", GRID: "--rule", PALE: "--pale", BLACK: "--text"}

STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#111827;--ink:#374151;--soft:#4b5563;--faint:#6b7280;--edge:#9ca3af;--rule:#e5e7eb;
--pale:#cbd5e1;--card:#f8fafc;--ours:#fff4ec;--link:#1d5a99;--good:#1f7a4d;--bad:#b91c1c;--open:#8a5a08}
@media (prefers-color-scheme:dark){:root{--back:#12161c;--text:#e8eaee;--ink:#c3c9d3;--soft:#b3bac6;--faint:#949dab;--edge:#6b7280;
--rule:#2b323d;--pale:#414b5a;--card:#1a2029;--ours:#3a2418;--link:#7db4ee;--good:#6cc795;--bad:#f28b82;--open:#e0b25c}}
*{box-sizing:border-box}
body{font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--text);background:var(--back);margin:0}
main{max-width:1120px;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.35rem;line-height:1.3;margin:3.2rem 0 .8rem;border-bottom:1px solid var(--rule);padding-bottom:.35rem}
h3{font-size:1.05rem;margin:2rem 0 .4rem}p,li{max-width:76ch}ul{padding-left:1.3rem}.lead{color:var(--soft);margin:0 0 1.2rem}
nav{display:flex;flex-wrap:wrap;gap:.35rem 1.1rem;font-size:.92rem;border-block:1px solid var(--rule);padding:.6rem 0}
a{color:var(--link)}nav a{text-decoration:none}nav a:hover{text-decoration:underline}
.wide{overflow-x:auto;margin:.5rem 0 1.2rem;border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.84rem;line-height:1.45;width:100%}
th,td{padding:.38rem .7rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap;vertical-align:baseline}
tbody tr:last-child td{border-bottom:0}th{color:var(--soft);font-weight:600;vertical-align:bottom;background:var(--card)}
.numbers th:first-child,.numbers td:first-child{text-align:left;position:sticky;left:0;background:var(--back)}
.numbers th:first-child{background:var(--card)}
.numbers tr.ours td,.numbers tr.ours td:first-child{background:var(--ours);font-weight:600}
tr.ablation td:first-child{color:var(--faint)}
.words td,.words th{text-align:left;white-space:normal;min-width:13ch}
small,.unit{color:var(--faint);font-size:.85em;font-weight:400}.holds{color:var(--good);font-weight:600}
.fails{color:var(--bad);font-weight:600}.undecided{color:var(--open);font-weight:600}
figure{margin:1.2rem 0;overflow-x:auto}figure svg{display:block;width:100%;max-width:1000px;height:auto}
figcaption{color:var(--soft);font-size:.9rem;max-width:76ch;margin-top:.3rem}
pre{white-space:pre-wrap;font-size:.82rem;background:var(--card);padding:.9rem;border-radius:8px}code{font-size:.9em}
details{margin:.35rem 0}summary{cursor:pointer;color:var(--ink)}
@media (max-width:640px){main{padding:1.5rem .9rem 3rem}h1{font-size:1.6rem}figure svg{min-width:560px}
th,td{padding:.34rem .5rem}.numbers td:first-child,.numbers th:first-child{max-width:38vw;white-space:normal;min-width:9rem}}
@media print{nav{display:none}.wide,figure{overflow:visible}}
"""
PAGE = Template(
    """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head><body><main><h1>$title</h1><p class="lead">$lead</p>$body</main></body></html>
"""
)
Section = tuple[str, str, str]
"""Anchor, heading, HTML."""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page, with its contents first."""
    contents = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section><h2 id="{name}">{escape(heading)}</h2>{text}</section>' for name, heading, text in sections
    )
    return PAGE.substitute(title=escape(title), style=STYLE, lead=escape(lead), body=f"<nav>{contents}</nav>{body}")


def words_table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of sentences; cells are HTML."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return _scrolled("words", head, body)


def numbers_table(heads: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of numbers beside names in the first column; heads and cells are HTML, each row has a class."""
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join(f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for kind, row in rows)
    return _scrolled("numbers", head, body)


def figure(svg: str, words: str, number: int) -> str:
    """A picture in the page's colours, with ``words`` below it; its names are made its own by ``number``."""
    drawn = svg[svg.index("<svg") :]
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="p{number}-\1"', drawn)
    drawn = re.sub(r'(href="#|url\(#)', rf"\1p{number}-", drawn)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, f"var({variable})")
    drawn = drawn.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)
    return f"<figure>{drawn}<figcaption>{escape(words)}</figcaption></figure>"


def items(sentences: Iterable[str]) -> str:
    """A list of sentences, "" without any."""
    found = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{found}</ul>" if found else ""


def _scrolled(kind: str, head: str, body: str) -> str:
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide" tabindex="0">{table}</div>'
