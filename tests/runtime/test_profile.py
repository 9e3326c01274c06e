"""Profiles: what is measured, how loads between are answered, and the cache."""

import pytest
from flexpipe.planning import make_plan
from flexpipe.runtime.costing.costs import DeviceRates, StepLoad
from flexpipe.runtime.costing.device_rates import cpu_rates
from flexpipe.runtime.costing.engine_timer import EngineTimer, main, profile_program
from flexpipe.runtime.costing.profile import (
    CONTEXTS,
    DECODE_BATCHES,
    PREFILL_TOKENS,
    Profile,
    device_key,
    load_profile,
    measure,
    profile_file,
    save_profile,
)
from flexpipe.runtime.program import save_program
from tiny_models import captured

LOAD = StepLoad.decode(4, 100)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXPIPE_CACHE", str(tmp_path))


class LinearTimer:
    """Time is linear in tokens (for the head in sampled rows) and, where an atom attends, in all requests' contexts."""

    def __init__(self, program):
        self.program = program
        self.asked = []

    def __call__(self, atom, load):
        self.asked.append((atom, load))
        return self.exact(atom, load)

    def exact(self, atom, load):
        attends = bool(self.program.atoms[atom].layers)
        rows = load.sampled if self.program.atoms[atom].name == "head" else load.tokens
        return (
            1e-3 + 1e-5 * rows + (1e-8 * load.requests * load.context + 1e-8 * rows * load.context if attends else 0.0)
        )


def test_each_distinct_graph_is_measured_once_over_the_grid():
    program = captured("llama")
    timer = LinearTimer(program)
    profile = measure(program, "cpu:1", timer, contexts=(64, 256))
    assert {program.atoms[atom].name for atom, _ in timer.asked} == {
        "embed",
        "layers.0.attention",
        "layers.0.mlp",
        "head",
    }
    attention = [load for atom, load in timer.asked if atom == 1]
    assert {load.context for load in attention} == {64, 256}
    assert {load.tokens for load in attention} == {*DECODE_BATCHES, 64, PREFILL_TOKENS[0], 256}
    assert {load.tokens for atom, load in timer.asked if atom == len(program.atoms) - 1} == set(DECODE_BATCHES)
    assert len(profile.points) == len(program.graphs)


def test_contexts_beyond_the_models_are_not_measured():
    program = captured("llama")
    timer = LinearTimer(program)
    measure(program, "cpu:1", timer)
    assert {load.context for _, load in timer.asked} == {context for context in CONTEXTS if context <= 256}


@pytest.mark.parametrize(
    "load", [StepLoad.decode(1, 64), StepLoad.decode(20, 100), StepLoad.decode(64, 1000), StepLoad(300, 1, 300, 7)]
)
def test_a_linear_device_is_predicted_exactly_between_and_beyond_measurements(load):
    program = captured("llama")
    timer = LinearTimer(program)
    seconds = measure(program, "cpu:1", timer, contexts=(64, 256)).seconds(program, load)
    for atom in range(len(program.atoms)):
        assert seconds[atom] == pytest.approx(timer.exact(atom, load))


def test_a_profile_is_kept_per_program_and_device():
    program, other = captured("llama"), captured("opt")
    profile = measure(program, "cpu:1", LinearTimer(program))
    assert load_profile(program, "cpu:1") is None
    save_profile(program, profile)
    assert load_profile(program, "cpu:1") == profile
    assert load_profile(program, "cpu:2") is None
    assert load_profile(other, "cpu:1") is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 0, "device": "cpu:1", "points": []}'])
def test_a_damaged_or_old_profile_is_measured_anew(content):
    program = captured("llama")
    profile_file(program, "cpu:1").write_bytes(content)
    assert load_profile(program, "cpu:1") is None


def test_no_time_is_negative():
    program = captured("llama")
    falling = measure(program, "cpu:1", lambda _, load: 1.0 / load.tokens, contexts=(64,))
    assert isinstance(falling, Profile)
    assert min(falling.seconds(program, StepLoad.decode(4096, 64))) >= 0


@pytest.mark.parametrize("family", ["llama", "mixtral", "opt"])
def test_the_engine_times_every_kind_of_atom(family, tmp_path):
    program = captured(family)
    timer = EngineTimer(program, tmp_path)
    for load in (StepLoad.decode(3, 40), StepLoad(30, 1, 40, 1), StepLoad(7, 2, 40, 2)):
        assert all(timer(atom, load) > 0 for atom in (0, 1, 2, len(program.atoms) - 1))


def test_a_program_is_profiled_once_for_plans(tmp_path, capsys):
    program = captured("llama")
    save_program(program, tmp_path / "program.json")
    assert main([str(tmp_path / "program.json"), "cpu", "1", "float32"]) == 0
    kept = load_profile(program, device_key("cpu", 1, "float32"))
    assert kept is not None
    assert profile_program(program) == kept
    planned = make_plan(
        program, load=LOAD, rates=DeviceRates(1e9, 1e9), stages=2, measured_s=kept.seconds(program, LOAD)
    )
    assert planned.times_from == "profile"
    assert main([str(tmp_path / "absent.json"), "cpu", "1", "float32"]) == 1
    assert "absent.json" in capsys.readouterr().err


def test_the_cpu_is_probed_once():
    first = cpu_rates(1)
    assert isinstance(first, DeviceRates)
    assert first.operations_per_s > 1e8
    assert first.bytes_per_s > 1e7
    assert cpu_rates(1) == first
