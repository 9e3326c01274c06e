"""Which devices this node can run stages on: what the user named, or what the driver shows, or the host's processors.

Owns the spelling of devices ("cpu", "cpu:1", "cpu:4x2GiB", "cuda:0") and the question to the driver. Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .config import ConfigError, parse_size

_DEVICE = re.compile(r"(?:cpu(?::(?P<workers>\d{1,4})(?:x(?P<memory>.+))?)?)|(?:cuda(?::(?P<gpu>\d{1,4}))?)")
DEVICES_MAX = 64
"""Devices of one node."""


class DeviceError(Exception):
    """A device that does not exist or is misspelt; the sentence says which."""


@dataclass(frozen=True, slots=True)
class StageDevice:
    """Where one stage runs: the device's name, its threads, and the cores it stays on (none: wherever there is room)."""

    device: str
    threads: int
    cores: tuple[int, ...] = ()


def parse_devices(text: str) -> tuple[str, ...]:
    """The devices in ``text``: "cpu:4" is four CPU workers, "cuda:0,cuda:2" two GPUs, "cuda" every GPU there is.

    "cpu:4x2GiB,cpu:2x512MiB" is six CPU workers with a memory stated for each, see `stated_memory`. Raises `DeviceError`.
    """
    devices = tuple(_named(text))
    if not devices:
        raise DeviceError(f"{text!r} names no device that is here")
    _check_cuda(devices)
    return devices


def stated_memory(text: str | None) -> Mapping[str, int]:
    """Bytes that weights and KV pages may take on each device of ``text`` for which the user stated them.

    CPU workers without share the memory of the host, GPUs have their own.
    """
    return {} if text is None else {device: size for device, size in _named(text).items() if size is not None}


def cuda_devices() -> int:
    """How many GPUs the driver shows; 0 without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def default_devices(stages: int) -> tuple[str, ...]:
    """GPUs where there are enough for one each, else CPU workers."""
    if cuda_devices() >= stages:
        return tuple(f"cuda:{index}" for index in range(stages))
    return tuple(f"cpu:{worker}" for worker in range(stages))


def assign(devices: tuple[str, ...], stages: int, threads: int | None) -> tuple[StageDevice, ...]:
    """A device for each stage, in order. CPU workers share the host's cores evenly and stay on theirs where all have some.

    Raises `DeviceError` where there are fewer devices than stages: two stages of one model never share a device.
    """
    if len(devices) < stages:
        raise DeviceError(f"{stages} stages need {stages} devices, {len(devices)} were given ({', '.join(devices)})")
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // stages
    if threads is not None or each == 0:
        return tuple(StageDevice(device, threads or 1) for device in devices[:stages])
    return tuple(
        StageDevice(device, each, tuple(cores[stage * each : (stage + 1) * each]) if stages > 1 else ())
        for stage, device in enumerate(devices[:stages])
    )


def _named(text: str) -> dict[str, int | None]:
    """Each device of ``text`` with its stated memory; CPU workers are numbered from the first to the last."""
    devices: dict[str, int | None] = {}
    workers = 0
    for part in text.split(","):
        match = _DEVICE.fullmatch(part.strip())
        if match is None:
            raise DeviceError(
                f"{part.strip()!r} is no device; write cpu, cpu:4 (four workers), cpu:4x2GiB (2 GiB each), cuda, or "
                "cuda:0,cuda:1"
            )
        if part.strip().startswith("cpu"):
            count = int(match["workers"] or 1)
            size = _size(match["memory"], part.strip())
            devices |= {f"cpu:{worker}": size for worker in range(workers, workers + count)}
            workers += count
        else:
            named = range(cuda_devices()) if match["gpu"] is None else [int(match["gpu"])]
            if devices.keys() & {f"cuda:{index}" for index in named}:
                raise DeviceError("a GPU is named twice; two stages of one model never share a GPU")
            devices |= {f"cuda:{index}": None for index in named}
    if len(devices) > DEVICES_MAX:
        raise DeviceError(f"{text!r} names {len(devices)} devices; the limit is {DEVICES_MAX}")
    return devices


def _size(text: str | None, device: str) -> int | None:
    if text is None:
        return None
    try:
        size = parse_size(text)
    except ConfigError:
        size = 0
    if size < 1:
        raise DeviceError(
            f"{device!r} states no memory that a worker could have; write it as cpu:4x2GiB or cpu:2x512MiB"
        )
    return size


def _check_cuda(devices: tuple[str, ...]) -> None:
    wanted = [int(device.removeprefix("cuda:")) for device in devices if device.startswith("cuda:")]
    if not wanted:
        return
    there = cuda_devices()
    for index in wanted:
        if index >= there:
            raise DeviceError(f"cuda:{index} does not exist; the driver shows {there} GPUs")
