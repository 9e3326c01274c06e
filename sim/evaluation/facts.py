"""An evaluation in plain values, for machines: what `flexpipe evaluate` writes as JSON, and what README's block is made from.

Owns the names. They are looked up by what reads the file (`readme`, and whoever plots); a number that is not here is in no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from .findings import Bar, bars, cause, effects, losses, main_places, title
from .headlines import headlines
from .measures import MEASURES
from .report import About, pictured
from .resilience import troubled
from .results import Place, Row
from .statistics import Interval

Values = dict[str, Any]


def facts_of(places: Sequence[Place], about: About, flaws: Sequence[str]) -> Values:
    """All that the runs came to."""
    pictures = pictured(places)
    return {
        "command": about.command,
        "runs": about.runs,
        "seconds": round(about.took_s, 1),
        "code": about.code,
        "error": about.error,
        "flaws": list(flaws),
        "places": [_place(place) for place in places],
        "main": [place.title for place in main_places(places)],
        "pictured": None if pictures is None else pictures.title,
        "bars": [_bar(found) for found in bars(places)],
        "headlines": [asdict(each) for each in headlines(places)],
        "weather": [
            {"place": place.title, "systems": {each.row.name: _ends(each.goodput) for each in systems}}
            for place, systems in troubled(places)
        ],
    }


def _place(place: Place) -> Values:
    return {
        "title": place.title,
        "load": msgspec.to_builtins(place.load),
        "map": place.map,
        "weather": place.weather,
        "seeds": place.seeds,
        "systems": {row.name: _system(row) for row in place.rows()},
        "parts": [
            {"part": each.part, "goodput_ratio": _ends(each.goodput), "latency_ratio": _ends(each.latency)}
            for each in effects(place)
        ],
        "losses": losses(place),
        "cause": cause(place),
    }


def _system(row: Row) -> Values:
    return {"title": title(row), "run": row.system, **{each.name: _ends(row.interval(each)) for each in MEASURES}}


def _bar(found: Bar) -> Values:
    return {
        "place": found.place.title,
        "static": found.static,
        "ratio": _ends(found.ratio),
        "least": found.least,
        "verdict": found.verdict,
        "attainment": list(found.attainment),
        "at_enough": _ends(found.at_enough),
    }


def _ends(found: Interval | None) -> Values | None:
    if found is None:
        return None
    alone = found.count == 1
    return {"mean": found.mean, "low": None if alone else found.low, "high": None if alone else found.high}
