"""How much memory a device still has: owns the ways to ask the host, its control group, or CUDA. Knows no model.

A CPU worker may have a *stated* memory, less than its host's: then what it holds, weights and KV pages, counts against that,
wherever the bytes lie. So one machine can act out a cluster of devices of many sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .interface import OutOfMemoryError

_CGROUP_FILES = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Control groups version 2, then 1: folder, file with the limit, file with the use."""


class DeviceMemory:
    """What one worker may still take of its device: what is free there, and no more than ``stated_bytes`` in all (0: no limit).

    ``name`` is what people call the device.
    """

    def __init__(self, device: torch.device, name: str = "", stated_bytes: int = 0) -> None:
        self.name = name or str(device)
        self.device = device
        self._stated_bytes = stated_bytes
        self._holders: list[Callable[[], int]] = []

    def count(self, held_bytes: Callable[[], int]) -> None:
        """Count what ``held_bytes`` says against the stated memory from now on."""
        self._holders.append(held_bytes)

    def free_bytes(self) -> int:
        """Bytes that the worker could take now."""
        free = free_bytes(self.device)
        return free if not self._stated_bytes else max(0, min(free, self._stated_rest()))

    def check_stated(self, taken_bytes: int) -> None:
        """Raise `OutOfMemoryError` where ``taken_bytes`` more are beyond the stated memory, wherever they lie."""
        if self._stated_bytes and taken_bytes > self._stated_rest():
            raise OutOfMemoryError(
                f"The stage's weights need {taken_bytes} bytes, {self.name} has {max(0, self._stated_rest())} free of the "
                f"{self._stated_bytes} stated for it; give the stage fewer layers, or a larger device"
            )

    def _stated_rest(self) -> int:
        return self._stated_bytes - sum(held_bytes() for held_bytes in self._holders)


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated now: CUDA's own count, or the host's available memory under its cgroup limit."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_host_available_bytes(), _cgroup_room_bytes())


def _host_available_bytes() -> int:
    """``MemAvailable`` of /proc/meminfo; unlimited where there is none (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 62)


def _cgroup_room_bytes() -> int:
    """What the control group still allows, page cache counted as free; unlimited where it sets no limit."""
    for folder, limit_name, used_name in _CGROUP_FILES:
        try:
            limit, used = int((folder / limit_name).read_text()), int((folder / used_name).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # another version, or "max"
            continue
        return max(0, limit - used + int(statistics.get("inactive_file", 0)))
    return 1 << 62
