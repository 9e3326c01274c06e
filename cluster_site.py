"""Where the workers of a cluster's model live and meet: on its nodes. The `Site` of a leader.

Part of the composition root.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from .actors.cluster.cluster_store import Claim
from .actors.cluster.link_places import ClusterPlaces, PortLedger
from .actors.cluster.nodes import Nodes
from .actors.cluster.remote_workers import RemoteLauncher, WorkerDoors
from .actors.coordinator import RecoveryPlanner
from .actors.event_log import LogStream
from .actors.journal import Journal
from .actors.link_place import LinkPlaces
from .actors.worker_pool import ControlDoors, WorkerLauncher
from .device_supply import ClusterDevices
from .refactor_planning import RefactorPlanner
from .threaded_planner import ThreadedRecovery
from .transport.interface import SEAL_BYTES


class _StatedNow(Mapping[str, int]):
    """What is stated for the devices that are here at the moment of asking."""

    def __init__(self, devices: ClusterDevices) -> None:
        self._devices = devices

    def __getitem__(self, device: str) -> int:
        return self._devices.stated[device]

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices.stated)

    def __len__(self) -> int:
        return len(self._devices.stated)


@dataclass(slots=True)
class ClusterSite:
    """See the module. ``taken`` says which devices replicas other than one have."""

    log_folder: Path
    log_stream: LogStream
    claim: Claim
    nodes: Nodes
    worker_doors: WorkerDoors
    planner: RefactorPlanner
    taken: Callable[[int], frozenset[str]]
    devices: ClusterDevices
    _ports: PortLedger = field(init=False)
    _places: dict[int, ClusterPlaces] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Begin with every port free: the workers of other terms are gone."""
        self._ports = PortLedger(self.nodes.places)

    @property
    def stated_bytes(self) -> Mapping[str, int]:
        """See `Site.stated_bytes`."""
        return _StatedNow(self.devices)

    def launcher(self, folder: Path, replica: int) -> WorkerLauncher:  # noqa: ARG002 - each node has folders of its own
        """See `Site.launcher`."""
        return RemoteLauncher(self.nodes, replica)

    def doors(self, replica: int) -> ControlDoors:
        """See `Site.doors`."""
        return self.worker_doors.of(replica)

    def places(self, replica: int) -> LinkPlaces:
        """See `Site.places`. Those that a replica of this number had before are free."""
        if replica in self._places:
            self._places[replica].close()
        prefix = f"{self.claim.record.term}-{replica}"
        self._places[replica] = ClusterPlaces(prefix, self._ports, lambda: secrets.token_bytes(SEAL_BYTES))
        return self._places[replica]

    def journal(self, folder: Path, replica: int) -> AbstractAsyncContextManager[Journal]:  # noqa: ARG002 - the store has it
        """See `Site.journal`."""
        return self.claim.journal(f"replica-{replica}")

    def recovery(self, replica: int) -> RecoveryPlanner | None:
        """See `Site.recovery`."""
        return ThreadedRecovery(self.planner, lambda: self.taken(replica))
