"""How many KV blocks an epoch can have: CPU workers share the host's memory, but for those with a memory of their own."""

from flexpipe.actors.change import Change
from flexpipe.actors.change_room import blocks_of
from flexpipe.actors.messages import Loaded
from flexpipe.actors.pipeline_spec import PipelineSpec
from flexpipe.actors.route import Route
from flexpipe.runtime.interface import EngineSpec, StageFacts
from modelled_house import LAYERS_OF, placements

PAGE_BYTES = 10
STATED = {"cpu:0": 1000, "cpu:1": 1000}


def loaded(*free_bytes, held=((0, 0, 0), (0, 0, 0))):
    """Two stages of three layers each, which said how much memory they have left, and how many pages each layer has."""
    change = Change(Route(1, placements((6,), (0, 1))), "precopy", None)
    for worker, free in enumerate(free_bytes):
        layers = tuple(range(3 * worker, 3 * worker + 3))
        facts = StageFacts(6, 3 * PAGE_BYTES, free, layers, (PAGE_BYTES,) * 3, held[worker], "", "")
        change.answers[Loaded][worker] = Loaded(1, worker, facts)
    return change


def test_cpu_workers_share_the_hosts_memory():
    assert blocks_of(loaded(600, 600), 100, {}) == 10


def test_a_memory_that_was_stated_is_a_workers_own():
    assert blocks_of(loaded(600, 600), 100, STATED) == 20
    assert blocks_of(loaded(600, 300), 100, STATED) == 10
    assert blocks_of(loaded(600, 300), 100, {"cpu:0": 1000}) == 10


def test_a_recovery_counts_the_pages_of_each_layer_that_an_interrupted_change_left_behind():
    left = ((32, 12, 12), (12, 12, 12))
    assert blocks_of(loaded(0, 0, held=left), 32, STATED) == 12
    assert blocks_of(loaded(5 * 2 * PAGE_BYTES, 999, held=left), 32, STATED) == 17


def test_a_worker_is_told_what_was_stated_for_its_device():
    spec = PipelineSpec(EngineSpec(), placements((6,), (0, 1)), LAYERS_OF, 64, 512, {"cpu:1": 1000})
    route = Route(1, spec.stages)
    assert [spec.prepare_message(route, stage).spec.memory_bytes for stage in (0, 1)] == [0, 1000]
