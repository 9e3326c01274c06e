"""The macro core against the same pipeline step by step, stage by stage, with the product's own batching."""

import numpy as np
import pytest
from cluster_cases import Fixed, cut, devices
from flexpipe.sim.arrival_trace import bundled
from flexpipe.sim.cluster.engine_profiles import opt_66b
from flexpipe.sim.cluster.metrics import response_times
from flexpipe.sim.cluster.pipeline_times import pipeline_times, running_max
from flexpipe.sim.cluster.simulator import simulate
from flexpipe.sim.cluster.workload import gamma_workload
from step_level import StepLevelPipeline

MODEL = opt_66b()
KV_TOKENS = 30_000


def both(stages, load, count=1200, trace="azure_llm_2023_conv", context=2048):
    cluster, placed = devices(stages, gib=4000), cut(range(stages), MODEL.layers)
    times = pipeline_times(cluster, MODEL, placed)
    lengths, room = bundled(trace), KV_TOKENS * stages
    inputs, outputs = (each.mean() for each in (lengths.input_tokens.clip(max=context), lengths.output_tokens))
    rate = load * times.requests_per_s(MODEL, inputs, outputs, room)
    workload = gamma_workload(lengths, rate, 1.0, count / rate, seed=1).at_most(context)
    record = simulate(Fixed([placed], kv_tokens=room), workload, [MODEL], cluster)
    rows = StepLevelPipeline(MODEL, stages, running_max(MODEL, stages), room, times.hop_s, times.hop_token_s).run(
        workload.arrival_s.tolist(), workload.input_tokens.tolist(), workload.output_tokens.tolist()
    )
    assert record.counts()["done"] == len(rows)
    exact = [
        np.array([row.first_s - row.arrival_s for row in rows]),
        np.array([(row.end_s - row.first_s) / max(row.output - 1, 1) for row in rows]),
        np.array([row.end_s - row.arrival_s for row in rows]),
    ]
    return response_times(record), exact


@pytest.mark.parametrize(
    ("stages", "load", "error_max"),
    [(1, 0.3, 0.03), (2, 0.3, 0.04), (2, 0.7, 0.05), (4, 0.3, 0.04), (4, 0.7, 0.07), (8, 0.7, 0.07)],
)
def test_medians_are_those_of_single_steps(stages, load, error_max):
    macro, exact = both(stages, load)
    errors = [np.median(a) / np.median(b) - 1 for a, b in zip(macro, exact, strict=True)]
    assert np.abs(errors) == pytest.approx(0.0, abs=error_max)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_an_overloaded_pipeline_serves_as_much_as_single_steps_do(stages):
    macro, exact = both(stages, 1.5)
    # All wait: the last end is the capacity.
    assert macro[2].max() == pytest.approx(exact[2].max(), rel=0.08)
    assert np.median(macro[1]) == pytest.approx(np.median(exact[1]), rel=0.05)


@pytest.mark.parametrize(("stages", "load"), [(1, 0.7), (8, 0.7), (8, 1.5), (16, 1.5)])
def test_long_prompts_wait_as_long_as_they_do_in_single_steps(stages, load):
    macro, exact = both(stages, load, 800, "azure_llm_2023_code", context=8192)
    errors = [np.percentile(a, 99) / np.percentile(b, 99) - 1 for a, b in zip(macro, exact, strict=True)]
    assert np.abs(errors) == pytest.approx(0.0, abs=0.15)
