import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.bench.controller import candidates, run
from flexpipe.commands.bench import controller_command


@pytest.mark.parametrize("count", [1, 2, 8, 32, 100, 128])
def test_there_are_as_many_different_candidates_as_are_asked_for(count):
    shapes = candidates(count)
    assert len({(shape.stages, shape.replicas) for shape in shapes}) == count
    assert all(shape.flaw() is None for shape in shapes)


def test_each_policy_decides_once_per_pipeline_and_round():
    result = run(2, 4, 3)
    assert set(result["policies"]) == {"fluid", "paper"}
    for figures in result["policies"].values():
        assert sum(figures["reasons"].values()) == 6
        assert 0 < figures["decide"]["cpu_p50_ms"] <= figures["decide"]["cpu_max_ms"]


def test_nothing_to_measure_is_refused_by_name():
    with pytest.raises(ConfigError, match="at least 1"):
        controller_command(0, 32, 1, as_json=True)
