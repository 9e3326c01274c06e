"""What devices this node has, as a cluster map knows them: GPUs as NVIDIA's management library shows them, CPU workers as named.

Owns the questions to the driver. A GPU's memory counts as free or not whoever holds the rest. No driver is no error: there are
no GPUs then. Imports no torch, so that asking costs milliseconds and takes no memory on any GPU.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..policies.cluster.cluster_map import ClusterMap, cluster_map
from ..policies.cluster.device_facts import DeviceFacts, LinkClasses
from ..policies.types import Link
from .devices import parse_devices, stated_memory

_NVLINK, _P2P_OK = 2, 0
"""NVML_P2P_CAPS_INDEX_NVLINK and NVML_P2P_STATUS_OK: the two GPUs reach each other over NVLink, by a switch or directly."""
_PCIE_SWITCHES = 20
"""NVML_TOPOLOGY_MULTIPLE: up to here two GPUs meet below the host bridge, at one PCIe switch or several."""
PCIE_LINK = Link(17_000, 25e9)
"""A hop between GPUs without NVLink, as an order of magnitude: PCIe 4.0 x16."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. ``uuid`` is its own for life; ``facts.name`` is "cuda:N" by the driver's present numbering."""

    uuid: str
    facts: DeviceFacts


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """The GPUs of this node that answer. ``has_nvlink``: islands are those of NVLink, else those of PCIe switches."""

    gpus: tuple[Gpu, ...]
    has_nvlink: bool = False

    @property
    def links(self) -> LinkClasses:
        """What hops between them cost, as far as the kind of link says."""
        return LinkClasses() if self.has_nvlink else LinkClasses(island=PCIE_LINK)


def discover_gpus(library: Any = None) -> NodeGpus:
    """Every GPU that the driver shows and that answers. ``library`` is pynvml, or what answers like it.

    ``slowdown`` is the share of the last moments in which others, or we, kept the GPU busy: two who share a GPU that one of
    them could fill take twice as long each.
    """
    with _driver(library) as nvml:
        if nvml is None:
            return NodeGpus(())
        handles = {index: nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())}
        nvlinks = {pair for pair in _pairs(handles) if _is_nvlinked(nvml, handles, pair)}
        near = nvlinks or {pair for pair in _pairs(handles) if _share_switches(nvml, handles, pair)}
        island_of = _islands(sorted(handles), near)
        found = [_gpu(nvml, index, handle, f"island-{island_of[index]}") for index, handle in handles.items()]
        return NodeGpus(tuple(gpu for gpu in found if gpu is not None), bool(nvlinks))


def discover_node(devices: str | None = None, library: Any = None) -> ClusterMap:
    """The map of this node: of ``devices`` (see `parse_devices`), else of its GPUs, else of its processor as one device.

    Raises `DeviceError`.
    """
    found = discover_gpus(library) if devices is None or "cuda" in devices else NodeGpus(())
    if devices is None:
        facts = [gpu.facts for gpu in found.gpus] or cpu_facts("cpu")
    else:
        named = parse_devices(devices)
        facts = [gpu.facts for gpu in found.gpus if gpu.facts.name in named] + cpu_facts(devices)
    return cluster_map(facts, links=found.links)


def cpu_facts(devices: str) -> list[DeviceFacts]:
    """The CPU workers among ``devices``: with the memory stated for them, all of it free, else an even share of the host's."""
    stated = stated_memory(devices)
    workers = [device for device in parse_devices(devices) if device.startswith("cpu")]
    sharing = sum(device not in stated for device in workers)
    total, free = host_memory_bytes() if sharing else (0, 0)
    return [
        DeviceFacts(device, node_name(), stated[device], stated[device], model="CPU", island="host")
        if device in stated
        else DeviceFacts(device, node_name(), total // sharing, free // sharing, model="CPU", island="host")
        for device in workers
    ]


def node_name() -> str:
    """What this node calls itself."""
    return platform.node() or "localhost"


def host_memory_bytes() -> tuple[int, int]:
    """The host's memory: all of it, and what is available without pushing anything out."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return total, total
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), total)
    return total, min(available, total)


@contextmanager
def _driver(library: Any) -> Iterator[Any]:
    """NVML, initialised; None where there is no driver, or none that works."""
    if library is None:
        import pynvml

        library = pynvml
    try:
        library.nvmlInit()
    except library.NVMLError:
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _gpu(nvml: Any, index: int, handle: Any, island: str) -> Gpu | None:
    """None for a GPU that does not answer: one that fell off the bus."""
    try:
        uuid, model = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        return None
    facts = DeviceFacts(
        name=f"cuda:{index}",
        node=node_name(),
        total_bytes=int(memory.total),
        free_bytes=min(int(memory.free), int(memory.total)),
        model=model,
        island=island,
        slowdown=_busy_share(nvml, handle),
    )
    return Gpu(uuid, facts)


def _busy_share(nvml: Any, handle: Any) -> float:
    """0 to 1; 0 where the GPU does not count it, as one that is partitioned (MIG) does not."""
    try:
        return float(min(100, max(0, nvml.nvmlDeviceGetUtilizationRates(handle).gpu)) / 100)
    except nvml.NVMLError:
        return 0.0


def _is_nvlinked(nvml: Any, handles: dict[int, Any], pair: tuple[int, int]) -> bool:
    try:
        status = nvml.nvmlDeviceGetP2PStatus(handles[pair[0]], handles[pair[1]], _NVLINK)
    except nvml.NVMLError:
        return False
    return bool(status == _P2P_OK)


def _share_switches(nvml: Any, handles: dict[int, Any], pair: tuple[int, int]) -> bool:
    try:
        level = nvml.nvmlDeviceGetTopologyCommonAncestor(handles[pair[0]], handles[pair[1]])
    except nvml.NVMLError:
        return False
    return bool(level <= _PCIE_SWITCHES)


def _pairs(handles: dict[int, Any]) -> list[tuple[int, int]]:
    return [(a, b) for a in handles for b in handles if a < b]


def _islands(indices: Sequence[int], near: set[tuple[int, int]]) -> dict[int, int]:
    """Each GPU's island: the lowest GPU that it reaches by steps between neighbours."""
    island = {index: index for index in indices}
    for _ in indices:  # a chain as long as there are GPUs has passed its lowest number on
        for a, b in near:
            island[a] = island[b] = min(island[a], island[b])
    return island


def _text(answer: str | bytes) -> str:
    """Older releases of pynvml answer in bytes."""
    return answer.decode() if isinstance(answer, bytes) else answer
