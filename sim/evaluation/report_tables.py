"""The report's tables of numbers: every system in every measure, and what bad weather did to each.

Owns which number stands in which column. It must never compute one.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..systems.catalogue import SYSTEMS
from .findings import OURS, title
from .measures import (
    ALLOCATION,
    ATTAINMENT,
    LOST,
    MEASURES,
    REFUSED,
    REPLACED,
    STALL,
    STALLED,
    Measure,
)
from .page import numbers_table
from .resilience import Through, troubled
from .results import Place, Row
from .setup import MODELS
from .statistics import Interval
from .weather import WEATHERS


def place_table(place: Place) -> str:
    """All measures of all systems in one place, with the deadlines that they were held to."""
    heads = ["system", *map(_head, MEASURES)]
    rows = [
        (_kind(row), [escape(title(row)), *(_value(row.interval(measure), measure) for measure in MEASURES)])
        for row in place.rows()
    ]
    seeds = "1 seed" if place.seeds == 1 else f"{place.seeds} seeds"
    promised = MODELS[place.load.model].deadlines
    slo = f"first token within {promised.ttft_s:g} s, {1000 * promised.tpot_s:g} ms a token"
    return f"<h3>{escape(place.title)}</h3><small>{seeds}; in time: {slo}</small>{numbers_table(heads, rows)}"


def weather_section(places: Sequence[Place]) -> str:
    """For each kind of bad weather what it did to every system, beside the same load in calm weather."""
    found = troubled(places)
    if not found:
        return "<p>These runs were all in calm weather.</p>"
    heads = [
        "system",
        *(
            "in time<br><small>calm, %</small>",
            "in time<br><small>now, %</small>",
            "goodput<br><small>now / calm</small>",
        ),
        *("stalled<br><small>calm, %</small>", "stalled<br><small>now, %</small>"),
        *("recovery<br><small>calm, ms</small>", "recovery<br><small>now, ms</small>"),
        *("replicas<br><small>lost</small>", "replaced<br><small>after, s</small>"),
        *("allocation<br><small>s</small>", "plans<br><small>refused</small>"),
    ]
    return "".join(
        f"<h3>{escape(place.title)}</h3><p>{escape(WEATHERS[place.weather].means.capitalize())}.</p>"
        + numbers_table(heads, [(_kind(each.row), _through(each)) for each in systems])
        for place, systems in found
    )


def _through(each: Through) -> list[str]:
    goodput = (
        "-" if each.goodput is None else f"{each.goodput.mean:.3f}{_half(f'{each.goodput.half:.3f}', each.goodput)}"
    )
    return [
        escape(title(each.row)),
        *(_value(found, ATTAINMENT) for found in each.attainment),
        goodput,
        *(_value(found, STALLED) for found in each.stalled),
        *(_value(found, STALL) for found in each.recovery_s),
        *(_value(each.lost, LOST), _value(each.replaced_s, REPLACED)),
        *(_value(each.allocation_s, ALLOCATION), _value(each.refused, REFUSED)),
    ]


def _value(found: Interval | None, measure: Measure) -> str:
    return "-" if found is None else measure.text(found.mean) + _half(measure.text(found.half), found)


def _half(text: str, found: Interval) -> str:
    return f" <small>±{text}</small>" if found.count > 1 else ""


def _head(measure: Measure) -> str:
    unit = f"<br><small>{escape(measure.unit)}</small>" if measure.unit else ""
    return f'<span title="{escape(measure.means)}">{escape(measure.title)}</span>{unit}'


def _kind(row: Row) -> str:
    if row.name == OURS:
        return "ours"
    return SYSTEMS[row.name].kind if row.name in SYSTEMS else "control"
