"""The first plan of a server whose devices have a stated memory: the fewest stages that fit, on devices that hold them."""

import pytest
from flexpipe import preparation
from flexpipe.actors.config import ServeConfig
from flexpipe.policies.types import InfeasiblePartition
from flexpipe.runtime.costing.device_rates import STATED_RATES
from tiny_models import captured


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """Rates that were measured long ago: no process is started to measure them."""
    monkeypatch.setattr(preparation, "cached_cpu_rates", lambda _threads: STATED_RATES["a100"])


def first_plan(devices, tmp_path, **settings):
    config = ServeConfig(devices=devices, **settings)
    return preparation._plan_and_devices(captured("llama"), tmp_path / "program", config, lambda *_: None)


@pytest.fixture
def whole(tmp_path):
    """Bytes that the model takes in one stage, with the KV of the planned load."""
    plan, _devices = first_plan(None, tmp_path, stages=1)
    return plan.stages[0].memory_bytes


def test_a_device_that_holds_the_model_gets_it_all(tmp_path, whole):
    plan, devices = first_plan(f"cpu:1x{whole - 1}B,cpu:1x{whole}B", tmp_path)
    assert (len(plan.stages), devices) == (1, ("cpu:1",))


def test_where_none_holds_it_there_are_as_few_stages_as_fit(tmp_path, whole):
    plan, devices = first_plan(f"cpu:2x{whole // 2}B,cpu:2x{whole * 2 // 3}B", tmp_path)
    assert (len(plan.stages), devices) == (2, ("cpu:2", "cpu:3"))
    assert max(stage.memory_bytes for stage in plan.stages) <= whole * 2 // 3


def test_stages_that_the_user_asked_for_take_the_first_devices_that_hold_them(tmp_path, whole):
    plan, devices = first_plan(f"cpu:4x{whole}B", tmp_path, stages=3)
    assert (len(plan.stages), devices) == (3, ("cpu:0", "cpu:1", "cpu:2"))


def test_a_partition_that_the_user_gave_goes_where_each_stage_fits(tmp_path, whole):
    small, large = whole // 2, whole
    _plan, devices = first_plan(f"cpu:1x{small}B,cpu:1x{large}B", tmp_path, partition="3,1")
    assert devices == ("cpu:1", "cpu:0")


@pytest.mark.parametrize("settings", [{}, {"stages": 1}, {"stages": 2}, {"partition": "1,3"}])
def test_a_model_that_fits_nowhere_is_refused_with_the_devices_names(tmp_path, whole, settings):
    with pytest.raises(InfeasiblePartition, match=r"cpu:\d \([\d,]+ MiB\)"):
        first_plan(f"cpu:2x{whole // 8}B", tmp_path, **settings)


def test_devices_without_a_stated_memory_have_no_limit(tmp_path):
    plan, devices = first_plan("cpu:3", tmp_path, stages=2)
    assert (len(plan.stages), devices) == (2, ("cpu:0", "cpu:1", "cpu:2"))
