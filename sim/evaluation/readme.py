"""The evaluation as README shows it: a block of tables with error bars, made from an evaluation's facts and from nothing else.

Owns the block and the small file that is kept with the source, from which a test makes the block again: so no number stands in
README that the evaluation did not print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .measures import ATTAINMENT, GOODPUT, Measure

BEGIN, END = "<!-- evaluation: written by `flexpipe evaluate paper --markdown` -->", "<!-- end of evaluation -->"
SHOWN = (GOODPUT, ATTAINMENT)
VERDICTS = {"holds": "yes", "fails": "**no**", "undecided": "undecided"}
Values = Mapping[str, Any]


class NoBlockError(ValueError):
    """A text has no place for the block, or more than one."""


def summary_of(facts: Values) -> dict[str, Any]:
    """Of an evaluation's facts only what the block is made from."""
    main = [place for place in facts["places"] if place["title"] in facts["main"]]
    kept = ("command", "runs", "code", "error", "bars", "headlines")
    return {
        **{name: facts[name] for name in kept},
        "places": [
            {
                "load": place["load"],
                "map": place["map"],
                "seeds": place["seeds"],
                "systems": {
                    name: {"title": system["title"], **{each.name: system[each.name] for each in SHOWN}}
                    for name, system in place["systems"].items()
                },
            }
            for place in main
        ],
    }


def block_of(summary: Values) -> str:
    """The block, markers included."""
    places = summary["places"]
    if not places:
        raise NoBlockError("the evaluation has no main load; run flexpipe evaluate paper")
    first = places[0]
    load = first["load"]
    words = (
        f"{summary['runs']:,} simulated runs by `{summary['command']}` (code {summary['code'][:12]}): {load['model']} on map "
        f"{first['map']}, {load['rate_per_s']:g} requests/s, {first['seeds']} seeds, ± half the 95 % interval. Requests within "
        "both deadlines per GPU hour *held*, and in brackets their share of all, %:"
    )
    held = sum(each["verdict"] == "holds" for each in summary["bars"])
    total = len(summary["bars"])
    bars = f"Against the best static depth chosen with hindsight, our bar holds in {held} of {total} places:"
    error = (
        f"the simulator's measured error: {summary['error']}"
        if summary["error"]
        else "the simulator's error is not measured"
    )
    parts = [
        *(BEGIN, words, _systems(places), bars, _bars(summary["bars"])),
        *(f"The paper's claims, redone ({error}):", _headlines(summary["headlines"]), END),
    ]
    return "\n\n".join(parts)


def with_block(text: str, block: str) -> str:
    """The text with this block in place of the one that it has. Raises `NoBlockError`."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise NoBlockError(f"the file needs the lines {BEGIN} and {END}, each once and in this order")
    return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]


def block_in(text: str) -> str:
    """The block that a text has. Raises `NoBlockError`."""
    with_block(text, "")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def _systems(places: Sequence[Values]) -> str:
    heads = ["system", *(_column(place) for place in places)]
    everywhere = set(places[0]["systems"]).intersection(*(place["systems"] for place in places))
    names = [name for name in places[0]["systems"] if name in everywhere and not name.startswith("static-")]
    rows = []
    for name in names:
        title = places[0]["systems"][name]["title"] if name not in _HINDSIGHT else _HINDSIGHT[name]
        rows.append([title, *(_cell(place["systems"][name]) for place in places)])
    return _table(heads, rows)


_HINDSIGHT = {"best-static": "best static, hindsight", "peak-static": "static for the peak"}
"""Rows whose depth differs from column to column."""


def _column(place: Values) -> str:
    cv = place["load"].get("cv")
    return f"CV {cv:g}" if cv is not None else str(place["load"]["trace"])


def _cell(system: Values) -> str:
    return f"{_value(system[GOODPUT.name], GOODPUT)} ({_value(system[ATTAINMENT.name], ATTAINMENT, bare=True)})"


def _value(ends: Values | None, measure: Measure, *, bare: bool = False) -> str:
    if ends is None:
        return "-"
    half = "" if bare or ends["low"] is None else f" ± {measure.text((ends['high'] - ends['low']) / 2)}"
    return measure.text(ends["mean"]) + half


def _bars(bars: Sequence[Values]) -> str:
    rows = [
        [
            each["place"],
            _change(each["ratio"]),
            _needed(each["least"]),
            VERDICTS[each["verdict"]],
            " / ".join(ATTAINMENT.text(value) for value in each["attainment"]),
            "-" if each["at_enough"] is None else _change(each["at_enough"]),
        ]
        for each in bars
    ]
    heads = [
        "load and map",
        "goodput per GPU, ours",
        "bar",
        "reached",
        "in time, ours / static, %",
        "against the cheapest with 99 %",
    ]
    return _table(heads, rows)


def _needed(least: float) -> str:
    return "ahead" if least >= 1 else f"at most {1 - least:.0%} behind"


def _change(ratio: Values) -> str:
    if ratio["low"] is None:
        return f"{ratio['mean'] - 1:+.1%}"
    return f"{ratio['mean'] - 1:+.1%} ({ratio['low'] - 1:+.1%} to {ratio['high'] - 1:+.1%})"


def _headlines(headlines: Sequence[Values]) -> str:
    return _table(["claim", "the paper", "here"], [[each["claim"], each["papers"], each["ours"]] for each in headlines])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
