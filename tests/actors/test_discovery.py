"""Devices of this node, from NVML's answers on several machines (see `recorded_nvml`), and CPU workers as the user named them."""

import pytest
import recorded_nvml as recorded
from flexpipe.actors import devices
from flexpipe.actors.discovery import PCIE_LINK, cpu_facts, discover_gpus, discover_node, host_memory_bytes
from flexpipe.policies.cluster.cluster_map import ISLAND, NODE

MIB = 1 << 20


def test_memory_is_free_or_not_whoever_holds_the_rest():
    found = discover_gpus(recorded.eight_h100_on_nvswitch())
    assert [gpu.facts.name for gpu in found.gpus] == [f"cuda:{index}" for index in range(8)]
    assert {gpu.facts.total_bytes for gpu in found.gpus} == {81559 * MIB}
    assert [gpu.facts.free_bytes // MIB for gpu in found.gpus] == [81008, 81008, 12345, 81008, 40000, 81008, 81008, 512]
    assert [gpu.facts.slowdown for gpu in found.gpus] == [0, 0, 0.97, 0, 0.35, 0, 0, 1]
    assert len({gpu.uuid for gpu in found.gpus}) == 8


@pytest.mark.parametrize(
    ("machine", "islands", "has_nvlink"),
    [
        (recorded.eight_h100_on_nvswitch, [[0, 1, 2, 3, 4, 5, 6, 7]], True),
        (recorded.four_a100_in_bridged_pairs, [[0, 1], [2, 3]], True),
        (recorded.four_a10_on_two_sockets, [[0, 1], [2, 3]], False),
        (recorded.two_without_a_switch, [[0], [1]], False),
    ],
)
def test_islands_are_those_of_nvlink_or_else_of_pcie_switches(machine, islands, has_nvlink):
    found = discover_gpus(machine())
    members = {}
    for index, gpu in enumerate(found.gpus):
        members.setdefault(gpu.facts.island, []).append(index)
    assert list(members.values()) == islands
    assert found.has_nvlink == has_nvlink


def test_the_map_of_a_node_knows_how_far_apart_its_gpus_are():
    told = discover_node(library=recorded.four_a10_on_two_sockets())
    assert told.models == ("NVIDIA A10",) * 4
    assert (told.distance(0, 1), told.distance(1, 2)) == (ISLAND, NODE)
    assert told.link(0, 1) == PCIE_LINK
    assert discover_node(library=recorded.eight_h100_on_nvswitch()).link(0, 7).bytes_per_s > PCIE_LINK.bytes_per_s


def test_a_gpu_that_does_not_answer_is_left_out_and_one_that_is_partitioned_is_not():
    (only,) = discover_gpus(recorded.one_lost_and_one_partitioned()).gpus
    assert (only.facts.name, only.facts.free_bytes, only.facts.slowdown) == ("cuda:1", 20000 * MIB, 0)


@pytest.mark.parametrize("machine", [recorded.no_library, recorded.no_driver])
def test_without_a_driver_there_are_no_gpus_and_the_processor_is_the_one_device(machine):
    library = machine()
    assert discover_gpus(library).gpus == ()
    told = discover_node(library=library)
    assert (told.device_names, told.models, library.open) == (("cpu:0",), ("CPU",), 0)
    assert 0 < told.free_bytes[0] <= told.total_bytes[0] == host_memory_bytes()[0]


def test_the_driver_is_let_go_after_every_question():
    library = recorded.eight_h100_on_nvswitch()
    discover_node(library=library)
    assert library.open == 0


def test_cpu_workers_have_the_memory_stated_for_them_or_share_the_hosts():
    facts = cpu_facts("cpu:2x2GiB,cpu:2,cpu:1x512MiB")
    total, _ = host_memory_bytes()
    assert [device.name for device in facts] == [f"cpu:{worker}" for worker in range(5)]
    assert [device.total_bytes for device in facts] == [2048 * MIB, 2048 * MIB, total // 2, total // 2, 512 * MIB]
    assert all(device.free_bytes == device.total_bytes for device in facts if device.total_bytes <= 2048 * MIB)


def test_only_devices_that_were_named_are_on_the_map(monkeypatch):
    monkeypatch.setattr(devices, "cuda_devices", lambda: 4)
    told = discover_node("cuda:1,cuda:3,cpu:1x1GiB", recorded.four_a10_on_two_sockets())
    assert set(told.device_names) == {"cuda:1", "cuda:3", "cpu:0"}
