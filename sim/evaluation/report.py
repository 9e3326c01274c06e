"""The report: one HTML file that asks nothing of the network, with the tables, the pictures, the method and what was lost.

Owns the page. Every number on it is computed from the runs that it is given.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from string import Template

from ..systems.catalogue import SYSTEMS
from .findings import OURS, bar, cause, effects, headlines, losses, percent, title
from .measures import ATTAINMENT, E2E_MEAN, GOODPUT, MEASURES, Measure
from .results import BEST_STATIC, Place, Row
from .setup import MODELS

STYLE = """
:root{color-scheme:light}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:#1f2937;background:#fff;margin:0}
main{max-width:1080px;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:1.9rem;margin:0 0 .3rem}h2{font-size:1.3rem;margin:2.8rem 0 .6rem;border-bottom:1px solid #e5e7eb;padding-bottom:.3rem}
h3{font-size:1.02rem;margin:1.8rem 0 .4rem}p,li{max-width:78ch}.lead{color:#4b5563;margin:0 0 1.5rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.84rem;margin:.4rem 0 1rem}
th,td{padding:.28rem .6rem;text-align:right;border-bottom:1px solid #eef0f3;white-space:nowrap}
th{color:#4b5563;font-weight:600;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}td.words,th.words{text-align:left;white-space:normal;min-width:16ch}
tr.ours td{background:#fff4ec;font-weight:600}tr.ablation td:first-child{color:#6b7280}
small{color:#6b7280}.holds{color:#2f855a;font-weight:600}
.fails{color:#b91c1c;font-weight:600}.undecided{color:#92600a;font-weight:600}
img{max-width:100%;height:auto;display:block;margin:.6rem 0}
pre{white-space:pre-wrap;font-size:.8rem;background:#f8fafc;padding:.8rem}
details{margin:.4rem 0}summary{cursor:pointer;color:#374151}nav a{margin-right:1rem;color:#2563a8}
"""
PAGE = Template(
    """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head><body><main><h1>$title</h1><p class="lead">$lead</p>$body</main></body></html>
"""
)


@dataclass(frozen=True, slots=True)
class About:
    """What the report says of itself: how it was made, in how many seconds, and from which code."""

    command: str
    runs: int
    took_s: float
    code: str


def report_html(places: Sequence[Place], about: About, fidelity: str = "") -> str:
    """The whole page. ``fidelity`` is HTML that says how far the simulator was found from the real thing, if it was measured."""
    main = _main_places(places)
    sections = [
        ("bars", "Against the best static depth with hindsight", _bars(places)),
        ("headlines", "The paper's headlines, redone", _headlines(main)),
        ("picture", "The picture", _pictures(main)),
        ("tables", "All systems", "".join(_table(place) for place in places)),
        ("parts", "What each part is worth", _parts(places)),
        ("losses", "Where we lose, and why", _losses(places)),
        ("fidelity", "How far the simulator can be trusted", fidelity or _NO_FIDELITY),
        ("method", "Method, and what was simplified", _method(places, about)),
        ("systems", "The systems", _systems()),
    ]
    contents = "".join(f'<a href="#{name}">{escape(heading)}</a> ' for name, heading, _ in sections)
    body = "".join(f'<h2 id="{name}">{escape(heading)}</h2>{text}' for name, heading, text in sections)
    lead = (
        "Simulated with the policies that the product runs. Each number is a mean over seeds, with half its 95 % confidence "
        "interval behind it; systems are compared seed by seed, on the same arrivals and the same map."
    )
    return PAGE.substitute(
        title="FlexPipe, evaluated", style=STYLE, lead=escape(lead), body=f"<nav>{contents}</nav>{body}"
    )


def _bars(places: Sequence[Place]) -> str:
    rows = []
    for found in filter(None, map(bar, places)):
        name = f'<span class="{found.verdict}">{found.verdict}</span>'
        need = "ahead" if found.least == 1.0 else f"at most {1 - found.least:.0%} behind"
        best = found.place.row(BEST_STATIC)
        rows.append([escape(found.place.title), escape(title(best) if best else ""), percent(found.ratio), need, name])
    words = (
        "<p>Goodput per GPU held, ours against whichever static depth and count turned out best for that load when all had "
        "been tried. Where bursts are many ours has to be ahead; where they are few it may be two per cent behind.</p>"
    )
    return words + _plain_table(["where", "best static", "ours has", "bar", ""], rows)


def _headlines(main: Sequence[Place]) -> str:
    if not main:
        return "<p>The paper's loads were not among these runs.</p>"
    rows = [
        [escape(each.claim), escape(each.papers), escape(each.ours)]
        for each in headlines(main, main[0].load.model, main[0].map)
    ]
    reasons = "".join(f"<p>{escape(place.load.words)}: {escape(cause(place))}</p>" for place in main)
    return _plain_table(["claim", "the paper", "here"], rows) + reasons


def _pictures(main: Sequence[Place]) -> str:
    try:
        import matplotlib  # noqa: F401, ICN001 - only whether it is there
    except ImportError:
        return "<p>Pictures need matplotlib: install flexpipe-serve[bench].</p>"
    from . import plots

    if not main:
        return "<p>The paper's loads were not among these runs.</p>"
    drawn = []
    if len(main) > 1 and all(place.load.cv is not None for place in main):
        drawn += [
            _image(plots.by_cv(main, GOODPUT), "goodput per GPU by CV"),
            _image(plots.by_cv(main, E2E_MEAN), "latency by CV"),
        ]
        drawn.append(_image(plots.by_cv(main, ATTAINMENT), "requests in time by CV"))
    drawn.append(_image(plots.frontier(main), "GPUs held against requests in time"))
    drawn += [_image(course, "GPUs over time") for course in map(plots.timeline, main) if course is not None]
    return "".join(drawn)


def _parts(places: Sequence[Place]) -> str:
    from . import plots

    found = []
    for place in places:
        parts = effects(place)
        if not parts:
            continue
        rows = [
            [
                escape(effect.part),
                escape(f"{SYSTEMS[effect.with_it].title} / {SYSTEMS[effect.without].title}"),
                percent(effect.goodput),
                percent(effect.latency, less=True),
                " / ".join(ATTAINMENT.text(value) for value in effect.attainment),
            ]
            for effect in parts
        ]
        heads = ["part", "with it / without", "goodput per GPU", "mean latency", "in time, %"]
        picture = _maybe(partial(plots.worth, parts), "what each part is worth")
        found.append(f"<h3>{escape(place.title)}</h3>{picture}{_plain_table(heads, rows)}")
    return "".join(found)


def _losses(places: Sequence[Place]) -> str:
    found = []
    for place in places:
        sentences = losses(place)
        if sentences:
            items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
            found.append(f"<ul>{items}</ul><p>{escape(cause(place))}</p>")
    undecided = [each for each in map(bar, places) if each is not None and each.verdict != "holds"]
    missed = "".join(
        f"<li>{escape(each.place.title)}: the bar {each.verdict}, {escape(percent(each.ratio))} goodput per GPU.</li>"
        for each in undecided
    )
    heading = "<p>Bars that were not reached, or that these seeds do not decide:</p>" if missed else ""
    return f"{heading}<ul>{missed}</ul>" + ("".join(found) or "<p>Nowhere in these runs.</p>")


def _table(place: Place) -> str:
    heads = ["system", *(_head(measure) for measure in MEASURES)]
    lines = []
    for row in place.rows():
        cells = "".join(f"<td>{_cell(row, measure)}</td>" for measure in MEASURES)
        lines.append(f'<tr class="{_kind(row)}"><td>{escape(title(row))}</td>{cells}</tr>')
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join(lines)
    seeds = "1 seed" if place.seeds == 1 else f"{place.seeds} seeds"
    promised = MODELS[place.load.model].deadlines
    slo = f"first token within {promised.ttft_s:g} s, {1000 * promised.tpot_s:g} ms a token"
    return (
        f"<h3>{escape(place.title)}</h3><small>{seeds}; in time: {slo}</small>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(row: Row, measure: Measure) -> str:
    found = row.interval(measure)
    if found is None:
        return "-"
    half = f" <small>±{measure.text(found.half)}</small>" if found.count > 1 else ""
    return f"{measure.text(found.mean)}{half}"


def _head(measure: Measure) -> str:
    unit = f"<br><small>{escape(measure.unit)}</small>" if measure.unit else ""
    return f'<span title="{escape(measure.means)}">{escape(measure.title)}</span>{unit}'


def _kind(row: Row) -> str:
    if row.name == OURS:
        return "ours"
    return SYSTEMS[row.name].kind if row.name in SYSTEMS else "control"


def _method(places: Sequence[Place], about: About) -> str:
    measures = "".join(
        f"<li><b>{escape(each.title)}</b>{f' ({escape(each.unit)})' if each.unit else ''}: {escape(each.means)}</li>"
        for each in MEASURES
    )
    models = "".join(
        f"<li>{escape(name)}: {served.deadlines.ttft_s:g} s to the first token, {1000 * served.deadlines.tpot_s:g} ms a token</li>"
        for name, served in MODELS.items()
        if any(place.load.model == name for place in places)
    )
    made = f"{about.runs} runs in {about.took_s:.0f} s by <code>{escape(about.command)}</code>, code {escape(about.code[:12])}"
    return f"<p>{made}.</p><h3>Measures</h3><ul>{measures}</ul><h3>Deadlines</h3><ul>{models}</ul>{_SIMPLIFIED}"


def _systems() -> str:
    documents = {entry.document: name for name, entry in reversed(SYSTEMS.items())}
    shown = sorted(documents.items(), key=lambda item: list(SYSTEMS).index(item[1]))
    return "".join(
        f"<details><summary>{escape(SYSTEMS[name].title)}</summary><pre>{escape(document)}</pre></details>"
        for document, name in shown
    )


def _main_places(places: Sequence[Place]) -> list[Place]:
    """The paper's main loads: those of the first model and map, by CV; all where there is no CV."""
    if not places:
        return []
    first = places[0]
    same = [place for place in places if (place.load.model, place.map) == (first.load.model, first.map)]
    gammas = [place for place in same if place.load.cv is not None]
    return gammas or same[:1]


def _maybe(draw: Callable[[], str | None], words: str) -> str:
    try:
        picture = draw()
    except ImportError:
        return ""
    return _image(picture, words) if picture else ""


def _image(svg: str, words: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(words)}" src="data:image/svg+xml;base64,{data}">'


def _plain_table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th class="words">{escape(each)}</th>' for each in heads)
    body = "".join("<tr>" + "".join(f'<td class="words">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


_NO_FIDELITY = (
    "<p>The distance between this simulator, the simulated world of real actors and the real runtime is measured apart and is "
    "not part of these runs. Until it stands here, read differences of a few per cent as none.</p>"
)
_SIMPLIFIED = """<h3>What was simplified</h3><ul>
<li>No system's own code runs but ours: the others are policy models, one file each; what each leaves out is said below.</li>
<li>Step times are published tables with interpolation, scaled by parameters for models that have none. The paper does not say
what its 82 GPUs are; they are A100s with 80 GiB here, since its Table 2 is of A100s.</li>
<li>Shared maps: the memory that co-tenants hold, and how busy they are, are drawn from published distributions, apart from each
other; beside one that computes a share u of the time ours takes 1 + u times as long.</li>
<li>A hop is 2.1 ms (the paper's Table 2); in its evaluation it seems to have been 15 ms, which would count against depth.</li>
<li>Allocation of a free GPU takes no time; a new process half a second; weights scatter as published loads do.</li>
<li>Static systems may be given any of the tried capacities with hindsight, and know a trace that they are planned for.</li>
<li><b>Known fault: changes of depth.</b> Devices for a changed replica are chosen as if its own memory were free, though a live
change
needs old and new stages beside each other; such changes are often refused. And replicas that make room are stopped first, in the
daemon's own order, which costs capacity just when it is short. The paper's policy, "no hysteresis", and "from storage" change depth
and suffer by it: their rows are no verdict on them, and nothing here measures what depth could be worth.</li>
<li>Settings: two weights of ours were chosen among about five pairs, on seeds that are not evaluated, but also on the first half
hours of two traces that are (Azure's code, ServeGen). No setting of another system, the paper's policy among them, was adjusted to
anything: read a distance to them as one to their models' defaults.</li>
<li>Goodput counts requests, not tokens. Deadlines are ours: the paper states none.</li></ul>"""
