"""Which devices have the memory for some stages: those with the most, or for stages of known sizes the tightest that hold them.

Pure: values in, values out. For devices of which a memory is stated; one without has no limit that planning knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

UNLIMITED_BYTES = 1 << 62
"""The memory of a device of which none is stated."""


def roomiest(devices: Sequence[str], stated_bytes: Mapping[str, int], count: int) -> tuple[str, ...]:
    """The ``count`` devices with the most memory, in the order in which they came; ties go to the earlier ones."""
    places = sorted(range(len(devices)), key=lambda place: -room_of(devices[place], stated_bytes))
    return tuple(devices[place] for place in sorted(places[:count]))


def tightest(
    needed_bytes: Sequence[int], preferred: Sequence[str], devices: Sequence[str], stated_bytes: Mapping[str, int]
) -> tuple[str, ...] | None:
    """A device of its own for each stage: the preferred one where that is large enough, else the smallest that is.

    ``preferred`` are in the order of the stages, and among ``devices``. None where there is no such choice: the largest
    stages choose first, so that whenever some choice exists one is found, if need be without a look at preferences.
    """
    for is_free in (False, True):
        chosen = _largest_first(needed_bytes, () if is_free else preferred, devices, stated_bytes)
        if chosen is not None:
            return chosen
    return None


def room_of(device: str, stated_bytes: Mapping[str, int]) -> int:
    """Bytes that planning may use of a device."""
    return stated_bytes.get(device, UNLIMITED_BYTES)


def no_room(needed_bytes: Sequence[int], devices: Sequence[str], stated_bytes: Mapping[str, int]) -> str:
    """The sentence for stages that `tightest` finds no devices for: the largest stage that finds none, and what there is."""
    free = sorted(devices, key=lambda device: -room_of(device, stated_bytes))
    largest_first = sorted(range(len(needed_bytes)), key=lambda place: -needed_bytes[place])
    for place, device in zip(largest_first, free, strict=False):
        if needed_bytes[place] > room_of(device, stated_bytes):
            return (
                f"stage {place} needs {_mib(needed_bytes[place])} for weights and KV, and the largest device left for it is "
                f"{stated_in_words([device], stated_bytes)}"
            )
    return f"{len(needed_bytes)} stages need {len(needed_bytes)} devices, and there are {len(devices)}"


def stated_in_words(devices: Sequence[str], stated_bytes: Mapping[str, int]) -> str:
    """Devices with their memories: "cpu:0 (2048 MiB), cpu:4 (512 MiB)"."""
    return ", ".join(
        f"{device} ({_mib(stated_bytes[device])})" if device in stated_bytes else device for device in devices
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _largest_first(
    needed_bytes: Sequence[int], preferred: Sequence[str], devices: Sequence[str], stated_bytes: Mapping[str, int]
) -> tuple[str, ...] | None:
    chosen = {
        place: device for place, device in enumerate(preferred) if needed_bytes[place] <= room_of(device, stated_bytes)
    }
    free = [device for device in devices if device not in chosen.values()]
    for place in sorted(range(len(needed_bytes)), key=lambda place: -needed_bytes[place]):
        if place in chosen:
            continue
        large = [device for device in free if room_of(device, stated_bytes) >= needed_bytes[place]]
        device = min(large, key=lambda device: room_of(device, stated_bytes), default=None)
        if device is None:
            return None
        chosen[place] = device
        free.remove(device)
    return tuple(chosen[place] for place in range(len(needed_bytes)))
