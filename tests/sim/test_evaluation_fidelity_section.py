"""The simulators' error in the report: what is measured stands beside headlines, what is not is said not to be."""

import pytest
from flexpipe.sim.evaluation.facts import facts_of
from flexpipe.sim.evaluation.fidelity import CaseFidelity, Fidelity, MeasureFidelity
from flexpipe.sim.evaluation.fidelity_section import clause, fidelity_html
from flexpipe.sim.evaluation.report import About


def measured(real=1.0):
    figures = tuple(
        MeasureFidelity(f"{name}_p{percent}_s", world=1.02, cluster=cluster, real=real, again=real and 1.01)
        for name, cluster in (("ttft", 1.04), ("tpot", 0.98), ("e2e", 1.1))
        for percent in (50, 99)
    )
    case = CaseFidelity("loaded", "2 stages <b>", 100, 4, figures)
    return Fidelity("2026-11-24", "flexpipe evaluate fidelity", "tiny", 2, 0, 60.0, (case,))


def test_a_headline_has_the_errors_of_the_cluster_simulator_beside_it():
    assert clause(measured()) == "p50 4% in the median, 10% at most; p99 4% in the median, 10% at most"


def test_errors_against_simulated_actors_are_said_to_be_no_more():
    assert clause(measured(real=None)).endswith("(against simulated actors only)")


def test_what_was_not_measured_has_no_words_and_no_table():
    assert clause(None) == fidelity_html(None) == ""


@pytest.mark.parametrize(
    "words",
    [
        "p50 within 5% in 2 of 3 figures",
        "p99 within 15% in 3 of 3 figures",
        "+4.0%",
        "-2.0%",
        "2 stages &lt;b&gt;, 4 changes",
    ],
)
def test_the_report_shows_every_figure_and_which_bars_are_reached(words):
    assert words in fidelity_html(measured())


def test_the_facts_keep_the_error():
    about = About("flexpipe evaluate paper", 1, 1, 1.0, "abc", error=clause(measured()))
    assert facts_of([], about, [])["error"].startswith("p50 4%")
