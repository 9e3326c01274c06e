"""What hindsight picks, what is called a loss, and the report: on facts made up for the purpose."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flexpipe.sim.evaluation.cells import Cell, Load, digested, key_of
from flexpipe.sim.evaluation.facts import facts_of
from flexpipe.sim.evaluation.findings import bar, bars, cause, effects, losses, main_places, percent
from flexpipe.sim.evaluation.grid import AZURE_CONV, cells_of, gamma, paper_parts, trace_parts
from flexpipe.sim.evaluation.headlines import headlines
from flexpipe.sim.evaluation.measures import ATTAINMENT, GOODPUT, GPUS, STALL
from flexpipe.sim.evaluation.readme import BEGIN, NoBlockError, block_in, block_of, summary_of, with_block
from flexpipe.sim.evaluation.report import About, pictured, report_html
from flexpipe.sim.evaluation.resilience import troubled
from flexpipe.sim.evaluation.results import places_of
from flexpipe.sim.evaluation.run_cell import Course, Facts
from flexpipe.sim.evaluation.statistics import Interval
from flexpipe.sim.systems.catalogue import SYSTEMS, UnknownSystemError, entry, static_name, static_of
from source_tree import ROOT

CV4 = gamma("opt-66b", 4.0)
ABOUT = About("flexpipe evaluate paper", 4, 4, 1.0, "abc" * 8)


def facts(goodput, attainment=0.995, gpus=40.0, latency=30.0, always_on=0.5):
    values = {
        "goodput_per_gpu_s": goodput,
        "attainment": attainment,
        "held_mean": gpus,
        "e2e_mean_s": latency,
        "always_on_share": always_on,
    }
    return Facts(values, {"done": 100}, "", 1000, Course([0.0, 60.0], [1.0, 2.0], [gpus, gpus]))


def place(load=CV4, **systems):
    """Each system's goodput per GPU, seed by seed."""
    named = {name.replace("_", "-"): values for name, values in systems.items()}
    runs = [
        (Cell(name, load, "a100", seed), value if isinstance(value, Facts) else facts(value))
        for name, values in named.items()
        for seed, value in enumerate(values)
    ]
    return places_of(runs)[0]


def with_statics(ours, statics):
    runs = [(Cell("fluid", CV4, "a100", seed), value) for seed, value in enumerate(ours)]
    runs += [
        (Cell(static_name(*plan), CV4, "a100", seed), value)
        for plan, values in statics.items()
        for seed, value in enumerate(values)
    ]
    return places_of(runs)[0]


def test_hindsight_takes_the_static_system_with_the_most_goodput_over_all_seeds():
    at = with_statics(
        [facts(1.0)] * 2,
        {(4, 1.0): [facts(9.0), facts(1.0)], (8, 1.0): [facts(6.0), facts(6.0)], (4, 2.0): [facts(2.0), facts(2.0)]},
    )
    assert at.row("best-static").system == "static-8@1"
    assert at.row("static-4@0").system == "static-4@1"


def test_the_static_system_for_the_peak_is_the_cheapest_with_enough_in_time():
    at = with_statics(
        [facts(1.0)],
        {
            (4, 1.0): [facts(9.0, attainment=0.98, gpus=20)],
            (4, 2.0): [facts(5.0, attainment=0.992, gpus=40)],
            (8, 2.0): [facts(6.0, attainment=0.999, gpus=48)],
        },
    )
    assert at.row("peak-static").system == "static-4@2"
    too_late = with_statics(
        [facts(1.0)], {(4, 1.0): [facts(9.0, attainment=0.5)], (8, 1.0): [facts(1.0, attainment=0.6)]}
    )
    assert too_late.row("peak-static").system == "static-8@1"


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([1.10, 1.11, 1.12], [1.0, 1.0, 1.0], "holds"),
        ([0.90, 0.91, 0.90], [1.0, 1.0, 1.0], "fails"),
        ([0.80, 1.30, 1.00], [1.0, 1.0, 1.0], "undecided"),
    ],
)
def test_a_bar_is_judged_by_the_whole_interval(ours, theirs, verdict):
    at = with_statics(map(facts, ours), {(4, 1.0): map(facts, theirs)})
    assert bar(at).verdict == verdict


def test_where_bursts_are_few_ours_may_be_two_per_cent_behind():
    runs = [(Cell("fluid", gamma("opt-66b", 1.0), "a100", seed), facts(0.985)) for seed in range(3)]
    runs += [(Cell("static-4@1", gamma("opt-66b", 1.0), "a100", seed), facts(1.0)) for seed in range(3)]
    found = bar(places_of(runs)[0])
    assert (found.least, found.verdict) == (0.98, "holds")


def test_a_loss_is_said_with_its_size_and_a_gain_is_none():
    behind = place(fluid=[1.0, 1.0, 1.0], muxserve=[1.25, 1.25, 1.25], tetris=[0.5, 0.5, 0.5])
    sentences = losses(behind)
    assert len(sentences) == 1
    assert "against MuxServe, 20.0% less" in sentences[0]


def test_an_ablation_is_compared_only_with_the_system_that_has_the_part():
    at = place(fluid=[1.0, 1.1], no_fragments=[0.9, 1.0], replicas_only=[1.0, 1.1])
    parts = {effect.part: effect for effect in effects(at)}
    assert set(parts) == {"placing in fragments", "depth"}
    assert parts["depth"].goodput == Interval(1.0, 1.0, 1.0, 2)
    assert "depth" in cause(at).partition("never used")[2]


def test_a_system_that_served_nothing_has_no_ratio_and_the_report_is_made_all_the_same():
    at = place(fluid=[0.0, 1.0], alpaserve=[1.0, 1.0])
    assert at.row("fluid").ratio_to(at.row("alpaserve"), GOODPUT) is None
    assert "no ratio" in "".join(each.ours for each in headlines([at]))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Interval(1.2, 1.1, 1.3, 5), "20.0% more (10.0% to 30.0%)"),
        (Interval(0.8, 0.7, 0.9, 5), "20.0% less (10.0% to 30.0%)"),
        (Interval(0.9, 0.7, 1.1, 5), "10.0% less (30.0% less to 10.0% more)"),
        (Interval(1.0, 1.0, 1.0, 5), "the same"),
        (None, "no ratio"),
    ],
)
def test_a_ratio_in_words_names_both_ends(found, words):
    assert percent(found) == words


def test_the_report_asks_nothing_of_the_network_and_shows_what_was_lost():
    at = with_statics([facts(0.9), facts(0.91)], {(4, 1.0): [facts(1.0), facts(1.0)]})
    page = report_html([at], ABOUT)
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert not re.search(r"<(?:script|link|iframe)\b", page)
    assert "best static, hindsight" in page
    assert all(SYSTEMS[name].title in page for name in ("fluid", "alpaserve", "tetris"))
    assert "Simplified" in page


def test_values_of_a_measure_need_every_seed():
    at = place(fluid=[facts(1.0, gpus=None), facts(1.0)])
    assert at.row("fluid").mean(GPUS) is None
    assert at.row("fluid").mean(ATTAINMENT) == pytest.approx(0.995)


def test_a_grid_has_each_run_once_and_all_its_systems_exist():
    for parts in (paper_parts(quick=True), paper_parts(quick=False), trace_parts("x.csv", "opt-66b", "a100", 2)):
        cells = cells_of(parts)
        assert len(set(cells)) == len(cells)
        assert {entry(cell.system).kind for cell in cells} == {"ours", "peer", "control", "ablation"}
        assert min(part.seeds for part in parts) >= 2


def test_the_paper_in_full_has_five_seeds_and_every_cv_and_model():
    parts = paper_parts(quick=False)
    assert {part.seeds for part in parts} == {5}
    assert {(part.load.model, part.load.cv) for part in parts} >= {
        (model, cv) for model in ("opt-66b", "llama-2-7b", "bert-21b", "whisper-9b") for cv in (1.0, 2.0, 4.0, 8.0)
    }


def test_a_key_depends_on_all_that_goes_in():
    cell = Cell("fluid", Load("opt-66b", "mine.csv"), "a100", 0)
    same = key_of(cell, {"mine.csv": b"1"})
    assert same == key_of(cell, {"mine.csv": b"1", "other.csv": b"2"})
    others = [
        key_of(cell, {"mine.csv": b"2"}),
        key_of(Cell("fluid", Load("opt-66b", AZURE_CONV), "a100", 0), {}),
        key_of(Cell("fluid", cell.load, "a100", 1), {"mine.csv": b"1"}),
        key_of(Cell("paper", cell.load, "a100", 0), {"mine.csv": b"1"}),
        key_of(Cell("fluid", cell.load, "a100", 0, "failures"), {"mine.csv": b"1"}),
    ]
    assert len({same, *others}) == 6


def test_names_of_systems():
    assert static_of("static-16@1.5") == (16, 1.5)
    assert static_of("fluid") is None
    with pytest.raises(UnknownSystemError, match="no system is called"):
        entry("flux")
    documents = [each.document for each in SYSTEMS.values()]
    assert all("implified" in document for document in documents)


def stormy(seed, weather, **more):
    return Cell("fluid", CV4, "a100", seed, weather), facts(**more)


def test_bad_weather_is_compared_with_the_same_load_in_calm_weather_and_stands_against_no_bar():
    runs = [stormy(seed, "calm", goodput=1.0) for seed in range(2)]
    runs += [stormy(seed, "failures", goodput=0.5, attainment=0.9) for seed in range(2)]
    places = places_of(runs)
    assert [place.title.endswith("nodes fail") for place in places] == [False, True]
    ((place, (ours,)),) = troubled(places)
    assert place.weather == "failures"
    assert ours.goodput.mean == pytest.approx(0.5)
    assert [found.mean for found in ours.attainment] == pytest.approx([0.995, 0.9])
    assert bars(places) == []
    assert main_places(places) == places[:1]
    assert "Each node fails every 4 h" in report_html(places, ABOUT)


def test_a_static_system_in_bad_weather_is_compared_with_itself_only():
    runs = [(Cell(static_name(4, 1.0), CV4, "a100", 0), facts(1.0))]
    runs += [(Cell(static_name(4, 2.0), CV4, "a100", 0, "failures"), facts(1.0))]
    assert [systems for _, systems in troubled(places_of(runs))] == [[]]


def test_what_happened_in_some_runs_only_is_a_mean_over_those():
    without, stalled = facts(1.0), facts(1.0)
    without.metrics["stall_recovery_s"], stalled.metrics["stall_recovery_s"] = None, 3.0
    at = place(fluid=[without, stalled])
    assert at.row("fluid").mean(STALL) == 3.0


def test_the_picture_is_of_the_trace_with_the_highest_peak():
    flat, steep = (gamma("opt-66b", cv) for cv in (1.0, 4.0))
    runs = []
    for load, arrivals in ((flat, [5.0, 5.0]), (steep, [0.0, 9.0])):
        found = facts(1.0)
        course = Course([0.0, 60.0], arrivals, [4.0, 8.0], [61.0])
        runs.append((Cell("fluid", load, "a100", 0), Facts(found.metrics, found.counts, "", 1, course)))
    assert pictured(places_of(runs)).load == steep
    assert pictured([]) is None


def test_the_readme_block_is_made_from_the_kept_summary_alone_and_replaces_the_one_before():
    at = with_statics([facts(0.9), facts(0.91)], {(4, 1.0): [facts(1.0), facts(1.0)]})
    kept = json.loads(json.dumps(summary_of(facts_of([at], ABOUT, []))))
    block = block_of(kept)
    assert "| FlexPipe, fluid | 3258 ± 229 (99.5) |" in block
    assert "our bar holds in 0 of 1 places" in block
    text = with_block(f"# Readme\n\n{block}\n\nEnd\n", block.replace("3258", "1"))
    assert block_in(text) == block.replace("3258", "1")
    assert text.startswith("# Readme\n\n")
    assert text.endswith("\n\nEnd\n")
    with pytest.raises(NoBlockError, match="each once and in this order"):
        with_block("no block", block)


def test_the_block_in_readme_is_the_one_of_the_kept_evaluation():
    """No number stands in README that `flexpipe evaluate` did not print."""
    kept, text = ROOT / "docs/evaluation.json", (ROOT / "README.md").read_text(encoding="utf-8")
    if BEGIN not in text:
        assert not kept.exists()
        return
    assert block_in(text) == block_of(json.loads(kept.read_text(encoding="utf-8")))


def test_all_code_that_a_run_imports_is_in_its_digest():
    """A changed policy must never find the results of the one before."""
    names = "[m.__file__ for n, m in sys.modules.items() if n.startswith('flexpipe.') and m.__file__]"
    script = f"import sys, flexpipe.sim.evaluation.run_cell; print(*{names}, sep='\\n')"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    imported = {Path(line).resolve() for line in told.splitlines()}
    code = {file for file in imported if file.name != "__init__.py"}
    assert len(code) > 40
    assert code - {file.resolve() for file in digested()} == set()
