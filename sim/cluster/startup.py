"""How long it takes until new capacity serves: allocation, a process, weights from host memory, a peer or storage.

Owns the distributions, measured and published, and the choice of a source. It must never know a replica's requests.

- `GENTD26_WARM`, `GENTD26_COLD`: quantiles of 21,036 base-model loads in a production diffusion service (GenTD26, Alibaba
  cluster-trace-v2026-GenAI), relative to their median, apart where they fall apart: 36 % of loads took 1.3 to 10 s (median 2.84 s),
  the others 10 to 79 s (median 34.7 s). Here they say how loads from host memory, and from elsewhere, scatter.
- `OPENB_ALLOCATION_S`: from creation to scheduling of 6,203 GPU pods (openb, gpu-v2023, Alibaba; Weng et al., ATC'23).
- Storage: Table 2 of the FlexPipe paper loads 0.64 to 1.15 GB/s into each stage, all stages at once;
  `STORAGE_STREAM_BYTES_PER_S` is the mean of its four rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .served_model import ServedModel
from .system import StageAt

STORAGE_STREAM_BYTES_PER_S = 0.83e9


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution by its values at ``levels``, ascending from 0 to 1, with straight lines between them."""

    levels: tuple[float, ...]
    values: tuple[float, ...]

    def draw(self, chance: np.random.Generator) -> float:
        """One value."""
        return float(np.interp(chance.random(), self.levels, self.values))


def always(value: float) -> Quantiles:
    """A distribution without chance."""
    return Quantiles((0.0, 1.0), (value, value))


AT_ONCE = always(0.0)
FORKED_S = always(0.5)


_LEVELS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
GENTD26_WARM = Quantiles(_LEVELS, (0.467, 0.571, 0.702, 0.912, 1.0, 1.152, 1.577, 2.077, 3.009, 3.457))
GENTD26_COLD = Quantiles(_LEVELS, (0.289, 0.569, 0.598, 0.669, 1.0, 1.14, 1.274, 1.371, 1.532, 2.291))
OPENB_ALLOCATION_S = Quantiles(_LEVELS, (0.0, 0.0, 0.0, 0.0, 2.0, 35.0, 139.0, 276.9, 1108.8, 14330.0))


@dataclass(frozen=True, slots=True)
class StartupModel:
    """What a start costs.

    - ``allocation``: seconds until devices that are not held are allocated.
    - ``process_s``: seconds until a new worker process can load (a forked one's 0.5 s, as measured with the product).
    - ``keeps_host``: weights that a node loaded stay in its memory, up to ``host_bytes``; the longest unused go first. ``peers``:
      they may come from another node's. Otherwise they come from storage, at ``stream_bytes_per_s`` for each stage at most and
      ``storage_bytes_per_s`` in all.
    - ``warm``, ``cold``: by what the bytes of a load are multiplied, from the own host and from elsewhere.
    - ``copy_bytes_per_s``: KV copied beside serving, into each stage; ``copy_slowdown`` is what loading and copying cost the
      replica meanwhile (the product copies in 3 % of a donor's time).
    - ``cut_s``: how long a replica stands still at the cut, beside half of one of its cycles (`fleet.CUT_CYCLES`).
    - ``detect_s``: until a lost node is noticed.
    """

    allocation: Quantiles = AT_ONCE
    process_s: Quantiles = FORKED_S
    keeps_host: bool = True
    peers: bool = True
    host_bytes: int = 256 << 30
    stream_bytes_per_s: float = STORAGE_STREAM_BYTES_PER_S
    storage_bytes_per_s: float = 40e9
    warm: Quantiles = GENTD26_WARM
    cold: Quantiles = GENTD26_COLD
    copy_bytes_per_s: float = 1.25e9
    copy_slowdown: float = 0.03
    cut_s: float = 0.01
    detect_s: float = 2.0


class HostMemory:
    """Which layers' weights each node holds in its own memory."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held: dict[
            int, dict[tuple[int, int], int]
        ] = {}  # node -> (model, layer) -> bytes, the longest unused first
        self._holders: dict[tuple[int, int], dict[int, None]] = {}

    def keep(self, node: int, number: int, model: ServedModel, first: int, end: int) -> None:
        """The node has loaded or used these layers of model ``number``."""
        held = self._held.setdefault(node, {})
        for layer in range(first, end):
            held.pop((number, layer), None)
            held[number, layer] = model.stage_bytes(layer, layer + 1)
            self._holders.setdefault((number, layer), {})[node] = None
        while sum(held.values()) > self._bytes_max:
            oldest = next(iter(held))
            del held[oldest]
            del self._holders[oldest][node]

    def has(self, node: int, number: int, layer: int) -> bool:
        """Whether the node holds the layer."""
        return (number, layer) in self._held.get(node, {})

    def holder(self, number: int, layer: int, other_than: int) -> int | None:
        """The node that has held the layer longest, if another one holds it."""
        return next((node for node in self._holders.get((number, layer), {}) if node != other_than), None)

    def forget(self, node: int) -> None:
        """The node lost its memory."""
        for layer in self._held.pop(node, {}):
            del self._holders[layer][node]


@dataclass(frozen=True, slots=True)
class Source:
    """Layers of one stage that come from one place: ``node`` (its own: host memory, another: a peer) or None for storage."""

    node: int | None
    size: int


def sources(
    startup: StartupModel, memory: HostMemory, number: int, model: ServedModel, node: int, stage: StageAt, has: StageAt
) -> tuple[Source, ...]:
    """Where the layers of a stage on ``node`` come from; those of ``has`` are on the device already."""
    sizes: dict[int | None, int] = {}
    for layer in range(stage.first, stage.end):
        if has.device == stage.device and has.first <= layer < has.end:
            continue
        place: int | None = None
        if startup.keeps_host and memory.has(node, number, layer):
            place = node
        elif startup.keeps_host and startup.peers:
            place = memory.holder(number, layer, node)
        sizes[place] = sizes.get(place, 0) + model.stage_bytes(layer, layer + 1)
    return tuple(Source(place, size) for place, size in sizes.items())
