"""Which devices a planner may use, what is known of each, and how many threads a worker has there: of this host, or of all nodes.

Part of the composition root, as `refactor_planning` is. Reads the driver's device count and what nodes said; starts nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Protocol

from .actors.cluster.node_messages import NodeFacts
from .actors.device_name import node_of, on_node
from .actors.devices import DEVICES_MAX, cuda_devices, parse_devices, stated_memory
from .policies.reassignment import Devices


class DeviceSupply(Protocol):
    """May be asked from any thread; each answer is of that moment."""

    @property
    def stated(self) -> Mapping[str, int]:
        """Bytes that weights and KV pages may take on each device for which somebody stated them."""
        ...

    def devices(self, present: Sequence[str], taken: frozenset[str]) -> Devices:
        """Those beside ``present``, which stages of the pipeline hold; ``taken`` by others. Raises `DeviceError`."""
        ...

    def has(self, device: str) -> bool:
        """Whether a stage may stay on ``device``."""
        ...

    def threads(self, devices: Sequence[str], taken: Collection[str]) -> list[int]:
        """For a worker on each of ``devices``, beside those on the ``taken`` ones."""
        ...


class HostDevices:
    """Those of this host. ``named`` and ``threads`` are what the user gave to `ServeConfig`; CPU workers share ``cores``."""

    def __init__(self, named: str | None, threads: int | None, cores: int | None = None) -> None:
        self.stated = stated_memory(named)
        self._named = named
        self._threads = threads
        self._cores = len(os.sched_getaffinity(0)) if cores is None else cores

    def devices(self, present: Sequence[str], taken: frozenset[str]) -> Devices:
        """Those that the user named, and no others; else as many of the kind that serves as there are, others by name."""
        if self._named:
            return Devices(parse_devices(self._named), taken=taken)
        cpus = tuple(f"cpu:{number}" for number in range(DEVICES_MAX))
        gpus = tuple(f"cuda:{number}" for number in range(cuda_devices()))
        is_on_gpus = any(device.startswith("cuda") for device in present)
        return Devices(gpus, cpus, taken) if is_on_gpus else Devices(cpus, gpus, taken)

    def has(self, device: str) -> bool:  # noqa: ARG002 - a host keeps its devices
        """See `DeviceSupply.has`."""
        return True

    def threads(self, devices: Sequence[str], taken: Collection[str]) -> list[int]:
        """An even share of the cores, unless the user said how many."""
        share = self._threads or max(1, self._cores // (len(devices) + len(taken)))
        return [share] * len(devices)


class ClusterDevices:
    """Those of the nodes that are here and stay, ``usable``.

    The first of each node comes first, so that a pipeline spreads over nodes before two CPU workers share one's cores.
    """

    def __init__(self, usable: Callable[[], Mapping[str, NodeFacts]]) -> None:
        self._usable = usable

    @property
    def stated(self) -> Mapping[str, int]:
        """See `DeviceSupply.stated`."""
        return {
            on_node(node, device.name): device.memory_bytes
            for node, facts in self._usable().items()
            for device in facts.devices
            if device.memory_bytes
        }

    def names(self) -> tuple[str, ...]:
        """All of them, nodes in the order of their names."""
        each = [[on_node(node, at.name) for at in facts.devices] for node, facts in sorted(self._usable().items())]
        return tuple(name for turn in zip_longest(*each) for name in turn if name is not None)

    def devices(self, present: Sequence[str], taken: frozenset[str]) -> Devices:  # noqa: ARG002 - all kinds alike
        """See `DeviceSupply.devices`."""
        return Devices(self.names(), taken=taken)

    def has(self, device: str) -> bool:
        """See `DeviceSupply.has`."""
        return device in self.names()

    def threads(self, devices: Sequence[str], taken: Collection[str]) -> list[int]:
        """What the node says, or an even share of its cores."""
        workers = Counter(node_of(device) for device in (*devices, *taken))
        usable = self._usable()
        return [_threads(usable.get(node_of(device)), workers[node_of(device)]) for device in devices]


def _threads(facts: NodeFacts | None, workers: int) -> int:
    if facts is None:
        return 1  # it left meanwhile; its device will be refused
    return facts.threads or max(1, facts.cores // workers)
