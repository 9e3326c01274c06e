import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.bench import refactor_plots
from flexpipe.commands.bench import refactor_command


@pytest.mark.parametrize("contexts", ["many", "256,-4", "256;1024", "0"])
def test_contexts_that_are_no_token_counts_are_refused_by_name(contexts):
    with pytest.raises(ConfigError, match="contexts is"):
        refactor_command("smollm2", 1, contexts, None, as_json=False)


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(refactor_plots, "find_spec", lambda _name: None)
    with pytest.raises(refactor_plots.PlotLibraryError):
        refactor_command("no-such-model", 1, "256", tmp_path, as_json=False)
