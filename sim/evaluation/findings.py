"""What the runs say: the bars that ours was held to, what each part is worth, and where we lose (the paper's claims: `headlines`).

Owns the comparisons and their sentences, each with its interval. A difference is one where the 95 % interval of paired seeds
leaves out "equal"; all else is called undecided. Nothing is left out for being unfavourable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..systems.catalogue import SYSTEMS, static_of
from .cells import CALM
from .measures import ATTAINMENT, E2E_MEAN, GOODPUT, GPUS, Measure
from .results import BEST_STATIC, ENOUGH, PEAK_STATIC, Place, Row
from .statistics import Interval

OURS = "fluid"
BEHIND_MAX = 0.02
"""Where bursts are few, ours may be this share behind the best static depth; where there are many it has to be ahead."""
BURSTY_CV = 3.0

Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True, slots=True)
class Bar:
    """Ours against the best static depth with hindsight, in goodput per GPU: ``ratio`` must reach ``least``.

    The most goodput per GPU may come from holding few GPUs and serving many requests late: ``attainment`` is (ours, the best
    static's), and ``at_enough`` the ratio to the cheapest static system that serves enough in time, if one did.
    """

    place: Place
    static: str
    ratio: Interval
    least: float
    attainment: tuple[float, float]
    at_enough: Interval | None

    @property
    def verdict(self) -> Verdict:
        """By the whole interval, not by its middle."""
        if self.ratio.low >= self.least:
            return "holds"
        return "fails" if self.ratio.high < self.least else "undecided"


@dataclass(frozen=True, slots=True)
class Effect:
    """What one part is worth: ours over ours without it (or the nearest control), in one measure."""

    part: str
    with_it: str
    without: str
    goodput: Interval | None
    latency: Interval | None
    attainment: tuple[float | None, float | None]


EFFECTS = (
    ("depth", "fluid", "replicas-only"),
    ("depth, where all weights come from storage", "cold", "cold-replicas-only"),
    ("loading", "fast-fixed", "replicas-only"),
    ("weights in host memory and from peers", "fluid", "cold"),
    ("placing in fragments", "fluid", "no-fragments"),
    ("KV room of deep pipelines", "fluid", "no-kv"),
    ("live changes", "fluid", "stop-copy"),
    ("hysteresis and certificate", "fluid", "no-control"),
    ("replicas that come and go", "fluid", "depth-only"),
    ("knowing the future", "oracle", "replicas-only"),
)
"""(part, the system that has it, the one that lacks it and nothing else)."""


def main_places(places: Sequence[Place]) -> list[Place]:
    """The paper's main loads: those of the first place's model, map, length and weather, by CV; itself where it has no CV."""
    if not places:
        return []
    first = places[0]

    def kind(place: Place) -> tuple[str, str, float, str]:
        return place.load.model, place.map, place.load.duration_s, place.weather

    gammas = [place for place in places if kind(place) == kind(first) and place.load.cv is not None]
    return sorted(gammas, key=lambda place: place.load.cv or 0.0) or [first]


def bars(places: Sequence[Place]) -> list[Bar]:
    """How ours stands against the best static depth, wherever that is asked: in calm weather."""
    return [found for place in places if place.weather == CALM and (found := bar(place)) is not None]


def bar(place: Place) -> Bar | None:
    """How ours stands against the best static depth there; None where either did not run, or one served nothing."""
    ours, best = place.row(OURS), place.row(BEST_STATIC)
    if ours is None or best is None:
        return None
    found = ours.ratio_to(best, GOODPUT)
    if found is None:
        return None
    bursty = place.load.cv is None or place.load.cv > BURSTY_CV
    peak = place.row(PEAK_STATIC)
    enough = peak if peak is not None and (peak.mean(ATTAINMENT) or 0.0) >= ENOUGH else None
    return Bar(
        place,
        best.system,
        found,
        1.0 if bursty else 1.0 - BEHIND_MAX,
        (ours.mean(ATTAINMENT) or 0.0, best.mean(ATTAINMENT) or 0.0),
        None if enough is None else ours.ratio_to(enough, GOODPUT),
    )


def effects(place: Place) -> list[Effect]:
    """What each part is worth there."""
    found = []
    for part, having, lacking in EFFECTS:
        with_it, without = place.row(having), place.row(lacking)
        if with_it is None or without is None:
            continue
        both = with_it.mean(ATTAINMENT), without.mean(ATTAINMENT)
        goodput, latency = with_it.ratio_to(without, GOODPUT), with_it.ratio_to(without, E2E_MEAN)
        found.append(Effect(part, having, lacking, goodput, latency, both))
    return found


def losses(place: Place) -> list[str]:
    """Where ours is behind another honest system there, by how much, and which part of ours the loss is found in."""
    ours = place.row(OURS)
    if ours is None:
        return []
    found = []
    for row in place.rows():
        is_depth = static_of(row.name) is not None  # the best of them stands under its own name
        if row.name in {OURS, PEAK_STATIC} or is_depth or _is_ablation(row.name):
            continue
        behind = [_behind(ours, row, measure) for measure in (GOODPUT, E2E_MEAN)]
        words = [each for each in behind if each]
        if words:
            found.append(f"{place.title}: against {title(row)}, {' and '.join(words)}{_beside(ours, row)}.")
    return found


def title(row: Row) -> str:
    """A row's system as in tables."""
    fixed = static_of(row.system)
    picked = "" if fixed is None else f"{fixed[0]} stages for {fixed[1]:g} times the mean load"
    if row.name == BEST_STATIC:
        return f"best static, hindsight ({picked})"
    if row.name == PEAK_STATIC:
        return f"static for the peak ({picked})"
    if fixed is not None:
        return f"static {fixed[0]} (for {fixed[1]:g} times the mean load)"
    return SYSTEMS[row.system].title


def percent(found: Interval | None, *, less: bool = False) -> str:
    """A ratio as "12.0 % more (8.1 to 16.2)"; with ``less`` its words are "higher" and "lower"."""
    if found is None:
        return "no ratio"
    if found.low == found.high == 1.0:
        return "the same"
    words = ("higher", "lower") if less else ("more", "less")
    change = found.mean - 1
    middle = f"{abs(change):.1%} {words[change < 0]}"
    if found.count == 1:
        return f"{middle} (one seed)"
    low, high = found.low - 1, found.high - 1
    if low < 0 < high:
        return f"{middle} ({-low:.1%} {words[1]} to {high:.1%} {words[0]})"
    near, far = sorted((abs(low), abs(high)))
    return f"{middle} ({near:.1%} to {far:.1%})"


def cause(place: Place) -> str:
    """What the distance to the best static system is made of there, and which parts of ours decide anything, in sentences."""
    ours, best = place.row(OURS), place.row(BEST_STATIC)
    sentences = []
    if ours is not None and best is not None:
        gpus, attained = ours.ratio_to(best, GPUS), ours.ratio_to(best, ATTAINMENT)
        if gpus is not None and attained is not None:
            sentences.append(
                f"Against the best static system ours held {percent(gpus)} GPUs and had {percent(attained)} requests in time."
            )
    decided, equal = [], []
    for effect in effects(place):
        if effect.goodput is None:
            continue
        if effect.goodput.excludes(1.0):
            decided.append(f"{effect.part} ({percent(effect.goodput)} with it)")
        elif effect.goodput.low == effect.goodput.high == 1.0:
            equal.append(effect.part)
    if decided:
        sentences.append(f"What makes a difference in goodput per GPU: {', '.join(decided)}.")
    if equal:
        sentences.append(f"What made none at all, since it was never used: {', '.join(equal)}.")
    return " ".join(sentences) or "These runs decide nothing."


def _behind(ours: Row, other: Row, measure: Measure) -> str:
    found = ours.ratio_to(other, measure)
    if found is None:
        return ""
    worse = found.high < 1.0 if measure.better == "more" else found.low > 1.0
    name = "goodput per GPU" if measure is GOODPUT else "mean latency"
    return f"{percent(found, less=measure.better == 'less')} {name}" if worse else ""


def _beside(ours: Row, other: Row) -> str:
    """What the other pays, or does not, for being ahead."""
    values = (ours.mean(ATTAINMENT), other.mean(ATTAINMENT), ours.mean(GPUS), other.mean(GPUS))
    if None in values:
        return ""
    mine, theirs, gpus, other_gpus = (value or 0.0 for value in values)
    return f" ({mine:.1%} in time on {gpus:.1f} GPUs; there {theirs:.1%} on {other_gpus:.1f})"


def _is_ablation(name: str) -> bool:
    return name in SYSTEMS and SYSTEMS[name].kind == "ablation"
