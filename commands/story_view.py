"""A story on one screen: a waterfall in which every piece has its length and its cause. Facts come in, text goes out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..story.telling import Moment, Span, StageShare, Story, seconds

ROWS_MAX = 12
"""Pieces that are shown one by one; the shortest beyond these are drawn into their neighbours."""
STAGES_MAX = 8
"""Stages that are shown, those that computed most."""
MOMENTS_MAX = 8
"""Moments that are shown, the first ones."""
BAR_WIDTH = 28
STYLES = {"queue": "yellow", "stall": "red", "prefill": "cyan", "decode": "green", "abort": "red", "switch": "magenta"}
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(story: Story, console: Console) -> None:
    """Print it."""
    console.print(Text(story.title, style="bold"), soft_wrap=True)
    if story.verdict:
        console.print(" ".join(story.verdict), highlight=False, markup=False)
    console.print()
    console.print(_waterfall(story))
    if story.moments:
        console.print()
        _print_moments(story.moments, story, console)
    if story.stages:
        console.print()
        console.print(_stages(story.stages))
    for note in story.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


def _waterfall(story: Story) -> Table:
    table = _table(("at", "right"), ("", "left"), ("for", "right"), ("what", "left"), ("why", "left"))
    for span in merged(story.spans, ROWS_MAX):
        _add(table, span, story, span.kind, span.says)
    for span in merged(story.around, ROWS_MAX):
        _add(table, span, story, span.kind, span.says)
    return table


def _add(table: Table, span: Span, story: Story, kind: str, says: str) -> None:
    style = STYLES.get(span.kind, "blue")
    table.add_row(
        f"{span.begin_s - story.begin_s:.3f}",
        Text(bar(span, story, BAR_WIDTH), style=style),
        seconds(span.lasted_s),
        Text(kind, style=style),
        Text(says),
    )


def bar(span: Span, story: Story, width: int) -> str:
    """Its place in the story's time, to an eighth of a character; something is always seen."""
    scale = width * 8 / story.lasted_s if story.lasted_s > 0 else 0.0
    begin = min(width * 8 - 1, max(0, round((span.begin_s - story.begin_s) * scale)))
    end = min(width * 8, max(begin + 1, round((span.end_s - story.begin_s) * scale)))
    first, last = begin // 8, (end - 1) // 8
    cells = [" "] * first + ["█"] * (last - first + 1)
    if last == first:
        cells[first] = _EIGHTHS[max(1, end - begin)]
    else:
        cells[last] = _EIGHTHS[end - last * 8]
    return "".join(cells).ljust(width)


def merged(spans: Sequence[Span], most: int) -> list[Span]:
    """At most so many: the shortest are drawn into the one before (the first into the one after)."""
    kept = list(spans)
    while len(kept) > most:
        at = min(range(len(kept)), key=lambda index: kept[index].lasted_s)
        near = at - 1 if at else 1
        one, other = sorted((at, near))
        longer = max(kept[one], kept[other], key=lambda span: span.lasted_s)
        says = longer.says if longer.says.endswith(", and shorter ones") else f"{longer.says}, and shorter ones"
        kept[one : other + 1] = [Span(kept[one].begin_s, max(kept[one].end_s, kept[other].end_s), longer.kind, says)]
    return kept


def _print_moments(moments: Sequence[Moment], story: Story, console: Console) -> None:
    for moment in moments[:MOMENTS_MAX]:
        console.print(f"{moment.time_s - story.begin_s:8.3f}  {moment.says}", highlight=False, markup=False)
    if len(moments) > MOMENTS_MAX:
        console.print(f"          and {len(moments) - MOMENTS_MAX} more; --json has them all", highlight=False)


def _stages(stages: Sequence[StageShare]) -> Table:
    table = _table(
        ("epoch", "right"), ("stage", "right"), ("worker", "left"), ("device", "left"), ("steps", "right"), ("computed", "right"),
        ("of the time", "right"), ("longest step", "right"),
    )  # fmt: skip
    shown = sorted(stages, key=lambda share: share.compute_s, reverse=True)[:STAGES_MAX]
    for share in (share for share in stages if share in shown):
        table.add_row(
            str(share.epoch),
            str(share.stage) if share.stage >= 0 else "-",
            share.worker,
            share.device,
            str(share.steps),
            seconds(share.compute_s),
            f"{share.share:.0%}",
            seconds(share.longest_s),
        )
    return table


def show_difference(one: Story, other: Story, console: Console) -> None:
    """Print where the second one's time differs from the first one's."""
    console.print(Text(f"A: {one.title}"), soft_wrap=True)
    console.print(Text(f"B: {other.title}"), soft_wrap=True)
    console.print()
    table = _table(("", "left"), ("A", "right"), ("B", "right"), ("B - A", "right"))
    kinds = list(dict.fromkeys((*one.spent_s, *other.spent_s)))
    for kind in kinds:
        a, b = one.spent_s.get(kind, 0.0), other.spent_s.get(kind, 0.0)
        table.add_row(kind, seconds(a), seconds(b), _signed(b - a))
    table.add_row("all", seconds(one.lasted_s), seconds(other.lasted_s), _signed(other.lasted_s - one.lasted_s))
    console.print(table)
    most = max(kinds, key=lambda kind: abs(other.spent_s.get(kind, 0.0) - one.spent_s.get(kind, 0.0)), default=None)
    if most is None:
        return
    more = other if other.spent_s.get(most, 0.0) > one.spent_s.get(most, 0.0) else one
    longest = max((span for span in more.spans if span.kind == most), key=lambda span: span.lasted_s, default=None)
    if longest is not None:
        name = "B" if more is other else "A"
        console.print(f"Most of the difference is {most}, in {name}: {longest.says}.", highlight=False, markup=False)


def _signed(count: float) -> str:
    return f"{'-' if count < 0 else '+'}{seconds(abs(count))}"


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=False)
    for name, side in columns:
        justify = "right" if side == "right" else "left"
        table.add_column(name, justify=justify, no_wrap=name != "why", overflow="fold")  # type: ignore[arg-type]
    return table
