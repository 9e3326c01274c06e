"""One model as the cluster simulator serves it: its layers, bytes and times, and the limits of its engine.

Owns what depends on the model alone. It must never know a device, a request or a policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...policies.batching import BatchLimits
from ...policies.types import NS_PER_S, AtomCost
from .engine_times import StepTimes

PLANNED_ROWS = 32
"""Requests of one step that plans are made for: the paper's Table 2 allows 32 for each stage at all four depths."""
PLANNED_CONTEXT = 1024
"""Tokens of context of each of them."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of ``layers`` equal layers, with its embedding in the first and its head in the last.

    ``weight_bytes`` is the whole model, ``end_bytes`` what embedding and head are of it, each. ``kv_bytes_per_token`` is over
    all layers, ``activation_bytes_per_token`` crosses each cut. ``limits`` bounds one step, ``running_max`` the requests of a
    replica of one stage that hold KV (times the stages of a deeper one), ``queue_max`` those that wait for one replica.
    ``requests_max`` bounds them however deep it is, and ``steps_max`` the steps under way of a pipeline whose stages share cores
    (`actors.scheduler`). A model that only reads (an embedding, say) is one whose requests all ask for one token.
    """

    name: str
    layers: int
    weight_bytes: int
    kv_bytes_per_token: int
    activation_bytes_per_token: int
    times: StepTimes
    end_bytes: int = 0
    limits: BatchLimits = field(default_factory=BatchLimits)
    running_max: int = PLANNED_ROWS
    queue_max: int = 1 << 30
    requests_max: int = 1 << 30
    steps_max: int = 1 << 30

    def __post_init__(self) -> None:
        """Refuse what is no model."""
        if self.layers < 1 or self.weight_bytes < 2 * self.end_bytes or self.running_max < 1 or self.queue_max < 0:
            raise ValueError(f"{self.name} has {self.layers} layers and {self.weight_bytes} bytes; that is no model")

    def stage_bytes(self, first: int, end: int) -> int:
        """Bytes of the weights of layers ``[first, end)``."""
        ends = (first == 0) + (end == self.layers)
        return (self.weight_bytes - 2 * self.end_bytes) * (end - first) // self.layers + ends * self.end_bytes

    def stage_kv_bytes(self, first: int, end: int) -> int:
        """Bytes that a token of context takes in layers ``[first, end)``."""
        return -(-self.kv_bytes_per_token * (end - first) // self.layers)

    def atoms(self, rows: int = PLANNED_ROWS, context: int = PLANNED_CONTEXT) -> tuple[AtomCost, ...]:
        """The layers as planning sees them: a decode step of ``rows`` requests with ``context`` tokens of context each."""
        layer_ns = round(self.times.step_s(rows, rows * context) * NS_PER_S / self.layers)
        return tuple(
            AtomCost(
                name=f"layer {layer}",
                compute_ns=layer_ns,
                weight_bytes=self.stage_bytes(layer, layer + 1),
                kv_bytes_per_token=self.stage_kv_bytes(layer, layer + 1),
                activation_bytes=rows * self.activation_bytes_per_token if layer + 1 < self.layers else 0,
                blocks=(layer,),
            )
            for layer in range(self.layers)
        )
