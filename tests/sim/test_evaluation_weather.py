"""Bad weather in whole runs: what befalls a cluster is the same for all systems of a seed, and each law holds all the same."""

import pytest
from flexpipe.sim.cluster.incidents import Lost, TenantsChange
from flexpipe.sim.evaluation.cells import CALM, Cell, Load
from flexpipe.sim.evaluation.run_cell import run_cell
from flexpipe.sim.evaluation.setup import cluster_of
from flexpipe.sim.evaluation.weather import WEATHERS, UnknownWeatherError, weather_of

SHORT = Load("opt-66b", "azure_llm_2023_conv", cv=4.0, rate_per_s=6.0, duration_s=300.0)


@pytest.mark.parametrize("weather", [name for name in WEATHERS if name != CALM])
@pytest.mark.parametrize("system", ["fluid", "serverlessllm", "static-4@1.5"])
def test_every_request_is_accounted_for_in_bad_weather(weather, system):
    facts = run_cell(Cell(system, SHORT, "a100", 1, weather), {})
    assert facts.flaw == ""
    assert sum(facts.counts.values()) == facts.metrics["requests"]
    assert facts.counts["done"] == facts.metrics["requests"]


def test_the_same_befalls_every_system_of_a_seed_and_something_else_another_seed():
    cluster = cluster_of("a100", 0, {})
    draw = weather_of("failures").draw
    assert draw(cluster, 3600.0, 5) == draw(cluster, 3600.0, 5) != draw(cluster, 3600.0, 6)


def test_each_weather_brings_its_own_trouble():
    cluster = cluster_of("a100", 0, {})
    assert weather_of(CALM).draw(cluster, 3600.0, 0) == ()
    failing = weather_of("failures").draw(cluster, 3600.0, 0)
    assert failing
    assert all(isinstance(each, Lost) and each.nodes for each in failing)
    slow = weather_of("stragglers").draw(cluster, 3600.0, 0)
    assert {each.slowdown for each in slow if isinstance(each, TenantsChange)} == {0.0, 1.0}
    shared = cluster_of("a100:random:50", 0, {})
    assert len({each.free_bytes for each in weather_of("tenants").draw(shared, 3600.0, 0)}) > 3


def test_a_lost_replica_is_replaced_and_the_time_it_took_is_measured():
    load = Load("opt-66b", SHORT.trace, cv=4.0, rate_per_s=20.0, duration_s=1200.0)
    facts = run_cell(Cell("static-4@1.2", load, "a100", 1, "failures"), {})
    assert facts.metrics["replicas_lost"] >= 1
    assert 0 < facts.metrics["replaced_p50_s"] < 60


def test_devices_are_waited_for_where_tenants_come_and_go():
    load = Load("opt-66b", SHORT.trace, cv=8.0, rate_per_s=4.0, duration_s=600.0)
    calm = run_cell(Cell("serverlessllm", load, "a100:random:50", 0), {})
    shared = run_cell(Cell("serverlessllm", load, "a100:random:50", 0, "tenants"), {})
    assert calm.metrics["allocation_p50_s"] == 0.0
    assert shared.metrics["allocation_p50_s"] > 0.0


def test_weather_of_another_name_is_refused_in_a_sentence():
    with pytest.raises(UnknownWeatherError, match="no weather is called hail; there are: calm, failures"):
        weather_of("hail")
