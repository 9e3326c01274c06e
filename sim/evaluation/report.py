"""The report: the page's sections, with the tables, the pictures, the method and what was lost.

Owns what is said in which order. Every number in it is computed from the runs that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import count

from ..systems.catalogue import SYSTEMS
from .cells import CALM
from .findings import OURS, bars, cause, effects, losses, main_places, percent, title
from .headlines import headlines
from .measures import ATTAINMENT, E2E_MEAN, GOODPUT, MEASURES
from .page import figure, items, page, words_table
from .report_tables import place_table, weather_section
from .results import BEST_STATIC, Place
from .setup import MODELS
from .simplified import NO_FIDELITY, SIMPLIFIED

LEAD = (
    "Serving systems compared in a simulated cluster, with the policies that the product runs. Each number is a mean over seeds "
    "with half its 95 % confidence interval; systems are compared seed by seed, on the same arrivals and the same map."
)
Picture = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class About:
    """What the report says of itself: how it was made, and from which code. ``fresh`` of its runs took ``took_s``.

    ``error`` says in a clause how far the simulator was found from the real runtime ("p50 within 4 %, ..."), "" where that was
    not measured; ``fidelity`` is the HTML that shows it in full.
    """

    command: str
    runs: int
    fresh: int
    took_s: float
    code: str
    error: str = ""
    fidelity: str = ""

    @property
    def words(self) -> str:
        """How many runs in what time."""
        there = "" if self.fresh == self.runs else f", {self.fresh} of them now"
        return f"{self.runs} runs{there} in {self.took_s:.0f} s"


def report_html(places: Sequence[Place], about: About) -> str:
    """The whole page."""
    main, numbers = main_places(places), count(1)

    def shown(draw: Picture, words: str) -> str:
        return _shown(draw, words, next(numbers))

    return page(
        "FlexPipe, evaluated",
        LEAD,
        [
            ("picture", "In one picture", _picture(places, shown)),
            ("bars", "Against the best static depth with hindsight", _bars(places)),
            ("headlines", "The paper's headlines, redone", _headlines(places, main, about.error)),
            ("burstiness", "From steady to bursty", _by_variation(main, shown)),
            ("parts", "What each part is worth", _parts(places, shown)),
            ("weather", "When things go wrong", weather_section(places)),
            ("losses", "Where we lose, and why", _losses(places)),
            ("tables", "All systems", "".join(map(place_table, places))),
            ("fidelity", "How far the simulator can be trusted", about.fidelity or f"<p>{escape(NO_FIDELITY)}</p>"),
            ("method", "Method, and what was simplified", _method(places, about)),
            ("systems", "The systems", _systems()),
        ],
    )


def pictured(places: Sequence[Place]) -> Place | None:
    """Where demand and GPUs are shown over time: of the traces as they are, or else of all, the one with the highest peak."""
    calm = [place for place in places if place.weather == CALM and _peak_over_mean(place)]
    return max([place for place in calm if place.load.cv is None] or calm, key=_peak_over_mean, default=None)


def _peak_over_mean(place: Place) -> float:
    """Of requests a second, in the first seed; 0 where ours kept no course."""
    ours = place.row(OURS)
    course = None if ours is None else ours.runs[0].course
    if course is None:
        return 0.0
    return max(course.arrivals_per_s) * len(course.arrivals_per_s) / max(sum(course.arrivals_per_s), 1e-9)


def _picture(places: Sequence[Place], shown: Callable[[Picture, str], str]) -> str:
    from . import plots

    place = pictured(places)
    if place is None:
        return "<p>No run of ours is among these.</p>"
    words = (
        "What was asked for, and the GPUs that were held for it: by the static system that is sized for the peak, the static "
        "system that turned out best, an oracle that knows the future, and ours, which knows neither."
    )
    return shown(partial(plots.timeline, place), words)


def _bars(places: Sequence[Place]) -> str:
    rows = []
    for found in bars(places):
        name = f'<span class="{found.verdict}">{found.verdict}</span>'
        need = "ahead" if found.least == 1.0 else f"at most {1 - found.least:.0%} behind"
        best = found.place.row(BEST_STATIC)
        in_time = " / ".join(ATTAINMENT.text(value) for value in found.attainment)
        enough = "none did" if found.at_enough is None else percent(found.at_enough)
        where = escape(found.place.title), escape(title(best) if best else "")
        rows.append([*where, percent(found.ratio), need, name, in_time, enough])
    words = (
        "<p>Goodput per GPU held, ours against whichever static depth and count turned out best for that load when all had "
        "been tried. Where bursts are many ours has to be ahead; where they are few it may be two per cent behind. The most "
        "goodput per GPU may come from few GPUs that serve many requests late, hence the last two columns.</p>"
    )
    heads = [
        "where",
        "best static",
        "ours has",
        "bar",
        "",
        "in time, ours / best static, %",
        "against the cheapest static with 99 %",
    ]
    return words + words_table(heads, rows)


def _headlines(places: Sequence[Place], main: Sequence[Place], error: str) -> str:
    beside = escape(error or "not measured")
    rows = [[escape(each.claim), escape(each.papers), escape(each.ours), beside] for each in headlines(places)]
    if not rows:
        return "<p>The paper's loads were not among these runs.</p>"
    reasons = items(f"{place.load.words}: {cause(place)}" for place in main)
    return (
        words_table(["claim", "the paper", "here", "the simulator's error"], rows)
        + f"<p>What the distances are made of:</p>{reasons}"
    )


def _by_variation(main: Sequence[Place], shown: Callable[[Picture, str], str]) -> str:
    from . import plots

    drawn = []
    if len(main) > 1:
        drawn = [
            shown(
                partial(plots.by_cv, main, GOODPUT), "Goodput per GPU held, by the variation of inter-arrival times."
            ),
            shown(partial(plots.by_cv, main, E2E_MEAN), "Mean latency, by the variation of inter-arrival times."),
            shown(partial(plots.by_cv, main, ATTAINMENT), "Requests in time, by the variation of inter-arrival times."),
        ]
    words = "GPUs held against requests in time: each static depth as a curve over how much of it there is, each system as a point."
    return "".join([*drawn, shown(partial(plots.frontier, main), words)]) if main else "<p>No runs.</p>"


def _parts(places: Sequence[Place], shown: Callable[[Picture, str], str]) -> str:
    from . import plots

    heads = ["part", "with it / without", "goodput per GPU", "mean latency", "in time, %"]
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
        whole = len(parts) > 2  # the controls that run everywhere are two
        picture = shown(partial(plots.worth, parts), f"What each part is worth: {place.title}.") if whole else ""
        found.append(f"<h3>{escape(place.title)}</h3>{picture}{words_table(heads, rows)}")
    return "".join(found)


def _losses(places: Sequence[Place]) -> str:
    missed = [each for each in bars(places) if each.verdict != "holds"]
    found = [
        "<p>Bars that were not reached, or that these seeds do not decide:</p>"
        + items(
            f"{each.place.title}: the bar {each.verdict}, {percent(each.ratio)} goodput per GPU." for each in missed
        )
        if missed
        else ""
    ]
    for place in places:
        sentences = losses(place)
        if sentences:
            summary = f"{place.title}: behind in {len(sentences)} comparison{'s' * (len(sentences) > 1)}"
            found.append(
                f"<details><summary>{escape(summary)}</summary>{items(sentences)}<p>{escape(cause(place))}</p></details>"
            )
    return "".join(found) or "<p>Nowhere in these runs.</p>"


def _method(places: Sequence[Place], about: About) -> str:
    measures = items(f"{each.title}{f' ({each.unit})' if each.unit else ''}: {each.means}" for each in MEASURES)
    models = items(
        f"{name}: {served.deadlines.ttft_s:g} s to the first token, {1000 * served.deadlines.tpot_s:g} ms a token"
        for name, served in MODELS.items()
        if any(place.load.model == name for place in places)
    )
    made = f"{about.words} by <code>{escape(about.command)}</code>, code {escape(about.code[:12])}"
    return (
        f"<p>{made}.</p><h3>Measures</h3>{measures}<h3>Deadlines</h3>{models}"
        f"<h3>What was simplified</h3>{items(SIMPLIFIED)}"
    )


def _systems() -> str:
    documents = {entry.document: name for name, entry in reversed(SYSTEMS.items())}
    shown = sorted(documents.items(), key=lambda item: list(SYSTEMS).index(item[1]))
    return "".join(
        f"<details><summary>{escape(SYSTEMS[name].title)}</summary><pre>{escape(document)}</pre></details>"
        for document, name in shown
    )


def _shown(draw: Picture, words: str, number: int) -> str:
    try:
        picture = draw()
    except ImportError:
        return "<p>Pictures need matplotlib: install flexpipe-serve[bench].</p>"
    return figure(picture, words, number) if picture else ""
