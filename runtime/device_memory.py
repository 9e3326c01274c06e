"""How much memory a device still has: owns the ways to ask the host, its control group, or CUDA. Knows no model."""

from __future__ import annotations

from pathlib import Path

import torch

_CGROUP_FILES = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Control groups version 2, then 1: folder, file with the limit, file with the use."""


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
