"""The measured error of the simulators as the report shows it: a clause beside each headline, and the table of all figures.

Owns the words and the HTML. It must never know how anything was measured, nor judge more than the bars in `fidelity` do.
"""

from __future__ import annotations

from html import escape
from statistics import median

from .fidelity import P50_ERROR_MAX, P99_ERROR_MAX, CaseFidelity, Fidelity, MeasureFidelity, Simulator, sentence
from .page import numbers_table

BARS = ((50, P50_ERROR_MAX), (99, P99_ERROR_MAX))
TITLES: dict[Simulator, str] = {"world": "the simulated world of real actors", "cluster": "the cluster simulator"}


def clause(fidelity: Fidelity | None) -> str:
    """How far the cluster simulator was found off, short enough to stand beside a headline; "" where nothing was measured."""
    if fidelity is None:
        return ""
    parts = []
    for percent, _ in BARS:
        errors = fidelity.errors("cluster", percent)
        if errors:
            parts.append(f"p{percent} {median(errors):.0%} in the median, {max(errors):.0%} at most")
    return f"{'; '.join(parts)}{'' if fidelity.is_real else ' (against simulated actors only)'}"


def fidelity_html(fidelity: Fidelity | None) -> str:
    """Bars, sentences and every figure; "" where nothing was measured."""
    if fidelity is None:
        return ""
    sentences = "".join(
        f"<p>{escape(TITLES[simulator].capitalize())}. {escape(sentence(fidelity, simulator))}</p>"
        for simulator in TITLES
    )
    within = "".join(f"<li>{escape(each)}</li>" for each in _within(fidelity))
    made = f"<p>Measured by <code>{escape(fidelity.command)}</code> in {fidelity.seconds:.0f} s, apart from these runs.</p>"
    return f"{sentences}<ul>{within}</ul>{made}{_table(fidelity)}"


def _within(fidelity: Fidelity) -> list[str]:
    found = []
    for simulator, name in TITLES.items():
        for percent, most in BARS:
            errors = fidelity.errors(simulator, percent)
            near = sum(error <= most for error in errors)
            found.append(f"{name}: p{percent} within {most:.0%} in {near} of {len(errors)} figures")
    found += [
        f"the real runtime against itself: p{percent} off by {max(noise):.0%} at most"
        for percent, _ in BARS
        if (noise := fidelity.noise(percent))
    ]
    return found


def _table(fidelity: Fidelity) -> str:
    heads = ["case", "figure", "real", "real again", "world", "cluster", "world off", "cluster off"]
    rows = [("control", _row(case, each)) for case in fidelity.cases for each in case.measures]
    return numbers_table(heads, rows)


def _row(case: CaseFidelity, each: MeasureFidelity) -> list[str]:
    changes = f", {case.changes} changes" if case.changes else ""
    values = (each.real, each.again, each.world, each.cluster)
    errors = (each.error("world"), each.between if each.real is None else each.error("cluster"))
    return [
        escape(f"{case.load}, {case.policy}{changes}"),
        escape(each.name),
        *("-" if value is None else f"{value:.4g}" for value in values),
        *("-" if error is None else f"{error:+.1%}" for error in errors),
    ]
