import pytest
from flexpipe.bench import refactor_plots
from flexpipe.bench.refactor_figures import FIGURES
from flexpipe.bench.refactor_plots import PlotLibraryError, draw
from flexpipe.bench.refactor_words import change_rows, context_rows, sentences


def row(strategy, before, after, context=256, **figures):
    return {"context": context, "strategy": strategy, "from": before, "to": after, **dict.fromkeys(FIGURES), **figures}


def growth(strategy, pauses_ms, growth_ms):
    return {
        "strategy": strategy,
        "from": 2,
        "to": 4,
        "contexts": [256, 1024],
        "pause_p99_ms": pauses_ms,
        "cut_pause_p99_ms": pauses_ms,
        "step_before_ms": [50.0, 60.0],
        "growth_ms": growth_ms,
    }


@pytest.fixture
def result():
    changes = [
        row("precopy", 2, 4, pause_p99_ms=12.5, step_before_ms=50.0, pause_in_steps=0.25),
        row("restart", 2, 4, pause_p99_ms=4321.0, step_before_ms=50.0),
    ]
    summary = {"worst_pause_ms": 14.0, "worst_in_steps": 0.3, "sent_bytes": 10, "resent_share": 0.02, "lost": 0}
    return {
        "streams": 8,
        "chain": (2, 4),
        "rounds": 1,
        "processors": 2,
        "load_average_at_start": 0.4,
        "cores": 1.9,
        "cores_of_others": 0.02,
        "changes": changes,
        "rows": changes,
        "strategies": [{**changes[0], **summary}, {**changes[1], **summary, "resent_share": None, "lost": 2}],
        "contexts": [growth("precopy", [10.0, 10.0], 0.0), growth("stop-copy", [100.0, 400.0], 400.0)],
        "tokens": [
            {
                "mode": "ordinary",
                "strategy": "precopy",
                "streams": 8,
                "equal": 7,
                "tokens": 800,
                "tokens_compared": 790,
                "nll_difference": 2e-7,
                "logprob_difference": 1e-5,
            }
        ],
        "page_link": {"handoff_gb_per_s": 7.5, "memcpy_gb_per_s": 10.0, "share": 0.75},
    }


def test_every_row_has_as_many_cells_as_the_head(result):
    for rows in (change_rows(result), context_rows(result)):
        assert {len(row) for row in rows} == {len(rows[0])}
    assert len(change_rows(result)) == 1 + 2
    assert len(context_rows(result)) == 1 + 2 * 2


def test_figures_that_are_not_known_are_dashes(result):
    restart = change_rows(result)[-1]
    assert restart[:2] == ("restart", "2→4")
    assert "4321" in restart
    assert "-" in restart


def test_the_sentences_hold_the_figures_against_their_bars(result):
    text = "\n".join(sentences(result))
    assert "pause p99 12 ms, 0.25 decode steps" in text
    assert "2 requests lost (bar 0)" in text
    assert "7 of 8 streams equal" in text
    assert "a pause at stop-copy is 40.0x that at precopy" in text
    assert "75% of memcpy" in text


def test_both_plots_are_png_files(result, tmp_path):
    paths = draw(result, tmp_path / "plots")
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG"] * 2


def test_without_contexts_there_is_one_plot(result, tmp_path):
    assert len(draw({**result, "contexts": []}, tmp_path)) == 1


def test_a_missing_plot_library_is_a_sentence_that_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(refactor_plots, "find_spec", lambda _name: None)
    with pytest.raises(PlotLibraryError, match=r"pip install 'flexpipe-serve\[bench\]'"):
        draw({}, tmp_path)
