"""Which devices this node can run stages on: what the user named, or what the driver shows, or the host's processors.

Owns the spelling of devices ("cpu", "cpu:1", "cuda:0") and the question to the driver. Imports no torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_DEVICE = re.compile(r"(cpu|cuda)(?::(\d{1,4}))?")
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
    """The devices in ``text``: "cpu:4" is four CPU workers, "cuda:0,cuda:2" two GPUs, "cuda" every GPU there is."""
    devices: list[str] = []
    for part in text.split(","):
        match = _DEVICE.fullmatch(part.strip())
        if match is None:
            raise DeviceError(f"{part.strip()!r} is no device; write cpu, cpu:4 (four workers), cuda, or cuda:0,cuda:1")
        kind, number = match.group(1), match.group(2)
        if kind == "cpu":
            devices.extend(f"cpu:{worker}" for worker in range(int(number or 1)))
        elif number is None:
            devices.extend(f"cuda:{index}" for index in range(cuda_devices()))
        else:
            devices.append(f"cuda:{int(number)}")
    if not devices:
        raise DeviceError(f"{text!r} names no device that is here")
    if len(devices) > DEVICES_MAX:
        raise DeviceError(f"{text!r} names {len(devices)} devices; the limit is {DEVICES_MAX}")
    _check_cuda(devices)
    return tuple(devices)


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


def _check_cuda(devices: list[str]) -> None:
    wanted = [int(device.removeprefix("cuda:")) for device in devices if device.startswith("cuda:")]
    if not wanted:
        return
    there = cuda_devices()
    for index in wanted:
        if index >= there:
            raise DeviceError(f"cuda:{index} does not exist; the driver shows {there} GPUs")
    if len(set(wanted)) != len(wanted):
        raise DeviceError("a GPU is named twice; two stages of one model never share a GPU")
