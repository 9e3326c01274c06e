"""The paper's claims, redone: each with what the paper says, what comes out here, and in words what the number is of.

Owns the choice of claims and what each is compared with. The paper compares latencies at equal goodput, its recovery is that of a
threshold on latencies, and its reservation is of a cluster's history: where a claim cannot be redone as it is, the nearest thing
that can be measured stands here under its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .findings import OURS, main_places, percent, title
from .measures import ALLOCATION, ALWAYS_ON, ATTAINMENT, E2E_MEAN, GOODPUT, GPUS_PEAK, STALL, STARTS, STARTUP, Measure
from .results import ENOUGH, PEAK_STATIC, Place, Row
from .statistics import Interval

COLD = "cold"
"""Ours with every load from storage: what instance initialisation is compared with."""


@dataclass(frozen=True, slots=True)
class Headline:
    """One of the paper's claims, and what comes out here. ``ours`` is in words, with its interval."""

    claim: str
    papers: str
    ours: str


def headlines(places: Sequence[Place]) -> list[Headline]:
    """The paper's claims on its main model."""
    main = main_places(places)
    at = {place.load.cv: place for place in main}
    started = next((place for place in places if place.load.cv == 4.0 and place.row(COLD) is not None), None)
    found = [
        _latency(at.get(1.0), "38.3 % lower at CV 1, at equal goodput"),
        _latency(at.get(4.0), "66.1 % lower at CV 4"),
        _resources(at.get(4.0)),
        _reservation(at.get(4.0)),
        _recovery(at.get(1.0), "88 ms, AlpaServe 83 ms"),
        _recovery(
            at.get(4.0),
            "9 ms, AlpaServe 16 ms: less than one pass through the pipeline, so a property of the threshold",
        ),
        _initialisation(started),
        _allocation(next((place for place in places if place.weather == "tenants"), None)),
    ]
    return [headline for headline in found if headline is not None]


def _latency(place: Place | None, papers: str) -> Headline | None:
    ours, theirs = _rows(place, "alpaserve")
    if place is None or ours is None or theirs is None:
        return None
    latency, goodput = ours.ratio_to(theirs, E2E_MEAN), ours.ratio_to(theirs, GOODPUT)
    words = f"{percent(latency, less=True)}; goodput per GPU {percent(goodput)}"
    return Headline(f"mean latency against AlpaServe, {place.load.words}", papers, words)


def _resources(place: Place | None) -> Headline | None:
    ours, peak = _rows(place, PEAK_STATIC)
    found = None if ours is None or peak is None else ours.ratio_to(peak, GOODPUT)
    if place is None or found is None or peak is None:
        return None
    words = f"{found.mean:.2f}x ({found.low:.2f} to {found.high:.2f}) against {title(peak)}"
    claim = f"resource efficiency, {place.load.words}"
    return Headline(claim, "8.5x (goodput at equal resources, against Tetris)", words)


def _reservation(place: Place | None) -> Headline | None:
    ours, peak = _rows(place, PEAK_STATIC)
    share = None if ours is None else ours.interval(ALWAYS_ON)
    if place is None or ours is None or share is None:
        return None
    attained = ours.mean(ATTAINMENT) or 0.0
    reached = "" if attained >= ENOUGH else f", below the {ENOUGH:.0%} at which reservations are compared"
    least = _least(ours)
    peaks = None if peak is None else peak.mean(GPUS_PEAK)
    against = f"; {least / peaks:.0%} of what {title(peak)} holds" if peak is not None and peaks and least else ""
    words = f"{share.mean:.0%} of its own peak{against}, with {attained:.1%} in time{reached}"
    return Headline(
        f"always-on GPUs, {place.load.words}", "75 % to 30 % of the peak (goal: 25 % at 99 % in time)", words
    )


def _recovery(place: Place | None, papers: str) -> Headline | None:
    ours, theirs = _rows(place, "alpaserve")
    if place is None or ours is None or theirs is None:
        return None
    words = f"{_time(ours, STALL)}, AlpaServe {_time(theirs, STALL)}, by the paper's rule"
    return Headline(f"stall recovery, {place.load.words}", papers, words)


def _initialisation(place: Place | None) -> Headline | None:
    ours, cold = _rows(place, COLD)
    if place is None or ours is None or cold is None:
        return None
    words = f"{_time(ours, STARTUP)}; with all weights from storage {_time(cold, STARTUP)}"
    return Headline(f"instance initialisation, {place.load.words}", "72 % less", words)


def _allocation(place: Place | None) -> Headline | None:
    """No system here reserves devices that it does not use, so all wait equally long for one: what differs is how often."""
    ours, theirs = _rows(place, "serverlessllm")
    if place is None or ours is None or theirs is None:
        return None
    often, theirs_often = (STARTS.text(row.mean(STARTS)) for row in (ours, theirs))
    words = (
        f"{_time(ours, ALLOCATION)} in the median of {often} starts a minute, ServerlessLLM {_time(theirs, ALLOCATION)} "
        f"of {theirs_often}: devices are waited for equally long, by whoever asks"
    )
    return Headline(f"allocation wait, {place.title}", "85 % less", words)


def _rows(place: Place | None, other: str) -> tuple[Row | None, Row | None]:
    return (None, None) if place is None else (place.row(OURS), place.row(other))


def _least(row: Row) -> float | None:
    """The fewest GPUs held at any time, mean over seeds."""
    shares, peaks = row.values(ALWAYS_ON), row.values(GPUS_PEAK)
    if shares is None or peaks is None:
        return None
    return sum(share * peak for share, peak in zip(shares, peaks, strict=True)) / len(peaks)


def _time(row: Row, measure: Measure) -> str:
    found: Interval | None = row.interval(measure)
    if found is None:
        return "never"
    half = f" ± {measure.text(found.half)}" if found.count > 1 else ""
    return f"{measure.text(found.mean)}{half} {measure.unit}"
