"""What is known of the GPU models in published cluster traces: their memory, and how fast they decode beside each other.

Memory and memory bandwidth are of the vendor's data sheets. The models that the trace's authors call G2 and G3 are unnamed;
theirs are assumptions: a 24 GiB inference card, and an 80 GiB card of the size of an A100.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
USUAL_BYTES_PER_S = 600e9
"""The bandwidth at which `GpuModel.speed` is 1: an A10's."""


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One model of GPU: memory in bytes, memory bandwidth in bytes per second."""

    memory_bytes: int
    bytes_per_s: float = USUAL_BYTES_PER_S

    @property
    def speed(self) -> float:
        """Relative speed of decoding, which memory bandwidth bounds."""
        return self.bytes_per_s / USUAL_BYTES_PER_S


GPU_MODELS = {
    "A10": GpuModel(24 * GIB, 600e9),
    "G2": GpuModel(24 * GIB, 600e9),
    "G3": GpuModel(80 * GIB, 2039e9),
    "P100": GpuModel(16 * GIB, 732e9),
    "T4": GpuModel(16 * GIB, 320e9),
    "V100M16": GpuModel(16 * GIB, 900e9),
    "V100M32": GpuModel(32 * GIB, 900e9),
}
