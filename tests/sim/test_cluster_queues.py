"""The macro core against closed forms of queueing theory, within two percent."""

import math

import numpy as np
import pytest
from cluster_cases import Fixed, cut, devices, poisson, toy
from flexpipe.sim.cluster.simulator import simulate
from flexpipe.sim.cluster.startup import StartupModel, always

COUNT = 400_000


def mean_time(model, workload, pipelines=1, dispatch="least-work"):
    system = Fixed([cut([row]) for row in range(pipelines)], dispatch)
    record = simulate(system, workload, [model], devices(pipelines), join_wait=0.0)
    assert record.flaw() == ""
    assert record.counts()["done"] == len(workload)
    return float((record.requests["end_s"] - record.requests["arrival_s"]).mean())


def geometric(mean):
    return lambda chance, count: chance.geometric(1 / mean, count)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_with_constant_service_is_m_d_1(load):
    found = mean_time(toy(step_s=1.0, running_max=1), poisson(load, COUNT, outputs=1))
    assert found == pytest.approx(1 + load / (2 * (1 - load)), rel=0.02)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_with_exponential_service_is_m_m_1(load):
    found = mean_time(toy(step_s=1e-3, running_max=1), poisson(load, COUNT, outputs=geometric(1000)))
    assert found == pytest.approx(1 / (1 - load), rel=0.02)


@pytest.mark.parametrize("load", [0.3, 0.7])
@pytest.mark.parametrize(
    "outputs", [geometric(100), 100, lambda chance, count: chance.choice([10, 910], count, p=[0.9, 0.1])]
)
def test_a_step_that_costs_its_rows_is_a_shared_processor_whatever_the_lengths(load, outputs):
    found = mean_time(toy(step_s=0.01, per_token=True, running_max=1000), poisson(load, COUNT, outputs))
    assert found == pytest.approx(1 / (1 - load), rel=0.02)


def erlang_time(servers, load):
    """The mean time in an M/M/c queue whose services take 1."""
    offered = servers * load
    terms = [offered**n / math.factorial(n) for n in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - load)
    return 1 + last / (sum(terms) + last) / (servers * (1 - load))


@pytest.mark.parametrize(
    ("rows", "pipelines", "dispatch"), [(8, 1, "least-work"), (1, 8, "central"), (4, 2, "central")]
)
def test_rows_of_constant_speed_are_servers_wherever_they_are(rows, pipelines, dispatch):
    load = 0.85
    workload = poisson(8 * load, COUNT, outputs=geometric(1000))
    found = mean_time(toy(step_s=1e-3, running_max=rows), workload, pipelines, dispatch)
    assert found == pytest.approx(erlang_time(8, load), rel=0.02)


def test_requests_in_the_system_are_rate_times_time():
    """Little's law, with the requests counted at ticks and the times measured at the ends."""
    workload = poisson(
        40.0, 100_000, outputs=geometric(60), prompts=lambda chance, count: chance.integers(1, 800, count)
    )
    system = Fixed([cut([2 * n, 2 * n + 1]) for n in range(4)], tick_s=0.5)
    record = simulate(system, workload, [toy()], devices(8), startup=StartupModel(process_s=always(0.0)))
    inside = [sum(r.waiting + r.running for r in view.replicas) for view in system.views if view.now_s < record.load_s]
    times = record.requests["end_s"] - record.requests["arrival_s"]
    rate = len(workload) / record.load_s
    assert np.mean(inside) == pytest.approx(rate * times.mean(), rel=0.02)
