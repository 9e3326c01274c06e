"""Which device is held, by what, and how much of its memory is taken: the simulated cluster's books.

Owns the map as systems see it and the integral of devices held. It must never know requests or times of engines. A device that went
away has nothing free; what co-tenants take and leave goes through here too, so that no device ever holds more than it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ...policies.cluster.cluster_map import ClusterMap


class Holdings:
    """See the module.

    ``taken`` [D] are bytes that served models hold, ``timeline`` the number of devices held since each moment, and
    ``over_bytes_max`` the most by which any device ever held more than it has: never above 0.
    """

    def __init__(self, cluster: ClusterMap) -> None:
        self.cluster = cluster.copy()
        self.taken = np.zeros(cluster.devices, np.int64)
        self.lost: set[int] = set()
        self.timeline: list[tuple[float, int]] = [(0.0, 0)]
        self.over_bytes_max = -int(cluster.total_bytes.max(initial=0))
        self._room = cluster.free_bytes.copy()
        self._reserved: set[int] = set()
        self._used: dict[int, dict[int, int]] = {}  # device -> replica -> bytes

    @property
    def held(self) -> frozenset[int]:
        """Devices reserved or in use."""
        return frozenset(self._reserved | self._used.keys())

    def replicas_on(self, device: int) -> tuple[int, ...]:
        """The replicas that have memory there."""
        return tuple(self._used.get(device, ()))

    def shared_devices(self) -> list[int]:
        """Devices on which several replicas have memory, ascending."""
        return sorted(device for device, held in self._used.items() if len(held) > 1)

    def lacking(self, needs: Mapping[int, int]) -> str:
        """Why these bytes per device cannot be had; "" where they can."""
        for device, size in needs.items():
            name = self.cluster.device_names[device]
            if device in self.lost:
                return f"device {name} is gone"
            if size > self.cluster.free_bytes[device]:
                missing = (size - int(self.cluster.free_bytes[device])) / 2**20
                return f"device {name} lacks {missing:.1f} MiB: it holds {self.taken[device] / 2**20:.0f} MiB of served models"
        return ""

    def take(self, now_s: float, replica: int, needs: Mapping[int, int]) -> None:
        """Give a replica memory on devices, beside what it has there. `lacking` must have said that it is there."""
        for device, size in needs.items():
            held = self._used.setdefault(device, {})
            held[replica] = held.get(replica, 0) + size
            self._update(device)
        self._count(now_s)

    def keep_only(self, now_s: float, replica: int, needs: Mapping[int, int]) -> None:
        """From now on a replica has just this much, on just these devices: no more than it had on each."""
        for device in [device for device, held in self._used.items() if replica in held]:
            if device in needs:
                self._used[device][replica] = needs[device]
            else:
                del self._used[device][replica]
                if not self._used[device]:
                    del self._used[device]
            self._update(device)
        self._count(now_s)

    def reserve(self, now_s: float, devices: Iterable[int]) -> None:
        """Held from now on, used or not."""
        self._reserved.update(devices)
        self._count(now_s)

    def release(self, now_s: float, devices: Iterable[int]) -> None:
        """Held no longer than they are used."""
        self._reserved.difference_update(devices)
        self._count(now_s)

    def tenants(self, device: int, free_bytes: int | None, slowdown: float | None) -> None:
        """Co-tenants leave served models so much of a device, but no less than these hold already, and slow it so much."""
        if free_bytes is not None:
            self._room[device] = max(free_bytes, int(self.taken[device]))
        self.cluster.update(device, slowdown=slowdown)
        self._update(device)

    def lose(self, device: int) -> None:
        """The device is gone, for now."""
        self.lost.add(device)
        self._update(device)

    def regain(self, device: int) -> None:
        """The device is back, with the room that it had."""
        self.lost.discard(device)
        self._update(device)

    def held_gpu_s(self, until_s: float) -> float:
        """The integral of the devices held."""
        times = np.array([at_s for at_s, _ in self.timeline] + [until_s])
        counts = np.array([count for _, count in self.timeline], np.float64)
        return float((np.maximum(np.diff(times), 0.0) * counts).sum())

    def _update(self, device: int) -> None:
        self.taken[device] = sum(self._used.get(device, {}).values())
        free = 0 if device in self.lost else max(0, int(self._room[device] - self.taken[device]))
        self.over_bytes_max = max(self.over_bytes_max, int(self.taken[device] - self._room[device]))
        self.cluster.update(device, free_bytes=free)

    def _count(self, now_s: float) -> None:
        count = len(self._reserved | self._used.keys())
        if count != self.timeline[-1][1]:
            self.timeline.append((now_s, count))
