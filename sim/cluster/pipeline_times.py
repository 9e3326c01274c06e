"""How fast a pipeline of stages on devices of a map is: its speeds, hops, cycle, KV room and the requests it can serve.

Owns what placement comes to in time and memory, for the simulator and for systems that plan; both see the same numbers. What is
left out: the hop of a sampled token back to the first stage, and queues between stages (a cycle is one way through all).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...policies.cluster.cluster_map import ClusterMap
from ...policies.kv_room import StageRoom, kv_blocks
from ...policies.types import NS_PER_S
from ...runtime.interface import BLOCK_TOKENS
from .engine_times import StepTimes
from .served_model import ServedModel
from .system import StageAt

CONTEXT_CV = 0.8
"""By how much contexts of requests vary where only their mean is known: that of Azure's conversations."""
KV_BLOCKS_MAX = 1 << 24
"""Pages that are given to a replica with no end of memory."""


@dataclass(frozen=True, slots=True)
class PipelineTimes:
    """A pipeline's speed. ``stages`` is how many steps are under way in it: one for each stage, or fewer.

    ``speed_sum`` is a step's computing in all stages, as a multiple of the whole model's time at speed 1, ``speed_worst`` that in
    the slowest stage. ``hop_s`` are all hops of a step, to which each of its tokens adds ``hop_token_s``.
    """

    stages: int
    speed_sum: float
    speed_worst: float
    hop_s: float
    hop_token_s: float

    def cycle_s(
        self,
        model: ServedModel,
        decoding: int,
        context: float = 0.0,
        prefilling: int = 0,
        prefill_tokens: float = 0.0,
        prefill_square_s: float = 0.0,
        context_cv: float = 0.0,
    ) -> float:
        """One cycle with so many requests: `event_kernels.cycle_seconds`.

        ``context`` is over all that decode, and varies among them by ``context_cv``.
        """
        return float(
            _kernel()(
                table_of(model.times),
                model.times.context_s,
                self.stages,
                self.speed_sum,
                self.speed_worst,
                self.hop_s,
                self.hop_token_s,
                decoding,
                prefilling,
                context,
                (1 + context_cv**2) * context**2 / max(decoding, 1),
                prefill_tokens,
                prefill_tokens / max(prefilling, 1),
                prefill_square_s,
            )
        )

    def requests_per_s(self, model: ServedModel, input_tokens: float, output_tokens: float, kv_tokens: float) -> float:
        """The most requests of this size on average that the pipeline can serve: as many at once as KV room and the engine allow.

        A fluid estimate: each is prefilled for as many cycles as its prompt has chunks and decodes for as many as it has tokens; as
        prompts come at random, a cycle has none of them with the chance exp(-mean). Where prompts are most of the work, they fill
        the budgets of between all steps and as many as are hit by as many random ones: the mean of the two. At 1 to 16 stages, on
        Azure's conversations and code, it is up to 17 % off what is simulated.
        """
        context = input_tokens + output_tokens / 2
        at_once = max(1.0, min(running_max(model, self.stages), kv_tokens / (context + BLOCK_TOKENS)))
        chunks = float(np.ceil(input_tokens / model.limits.step_tokens_max))
        cycles = chunks + max(output_tokens - 1, 0)
        prefilling = min(at_once * chunks / cycles, self.stages)
        decoding = max(1, round(at_once - prefilling))
        mixed = 1.0 - float(np.exp(-prefilling))
        together = max(1, round(prefilling / mixed))
        tokens = input_tokens / chunks
        square_s = model.times.square_s * input_tokens * tokens * together
        held = decoding * context
        plain_s = self.cycle_s(model, decoding, held, context_cv=CONTEXT_CV)
        mixed_s = self.cycle_s(model, decoding, held, together, tokens * together, square_s, CONTEXT_CV)
        bound_by_rows = at_once / cycles / (mixed * mixed_s + (1 - mixed) * plain_s)
        return min(bound_by_rows, self._prompts_per_s(model, input_tokens))

    def _prompts_per_s(self, model: ServedModel, input_tokens: float) -> float:
        room = float(model.limits.step_tokens_max)
        steps = self.stages * (1 - (1 - 1 / self.stages) ** self.stages / 2)
        square_s = model.times.square_s * input_tokens * room * steps
        cycle_s = self.cycle_s(model, 0, 0.0, max(1, round(steps)), room * steps, square_s)
        return steps * room / input_tokens / cycle_s


def running_max(model: ServedModel, stages: int) -> int:
    """Requests that a pipeline of so many stages runs at once: as many in each step as one stage would."""
    return min(min(model.running_max, model.limits.step_rows_max) * stages, model.requests_max)


def pipeline_times(
    cluster: ClusterMap, model: ServedModel, stages: Sequence[StageAt], shared: Callable[[int], float] | None = None
) -> PipelineTimes:
    """What these stages come to. ``shared`` says by what other stages on a device slow one there, 0 for none."""
    shares = []
    for stage in stages:
        slowed = 1.0 + float(cluster.slowdown[stage.device]) + (shared(stage.device) if shared else 0.0)
        shares.append((stage.end - stage.first) / model.layers * slowed / float(cluster.speed[stage.device]))
    links = [cluster.link(a.device, b.device) for a, b in pairwise(stages)]
    factor = model.times.depth_factor(len(stages))
    return PipelineTimes(
        stages=min(len(stages), model.steps_max),
        speed_sum=sum(shares) * factor,
        speed_worst=max(shares) * factor,
        hop_s=sum(link.latency_ns for link in links) / NS_PER_S,
        hop_token_s=sum(model.activation_bytes_per_token / link.bytes_per_s for link in links),
    )


def kv_room(
    cluster: ClusterMap,
    model: ServedModel,
    stages: Sequence[StageAt],
    present: Sequence[StageAt] = (),
    present_kv_tokens: int = 0,
) -> int:
    """Tokens of context that fit beside the weights of ``stages`` while ``present`` ones still serve, as the product counts them.

    Raises `policies.kv_room.NoRoomError` with the sentence that says what is missing.
    """
    rooms = []
    for stage in stages:
        here = next((other for other in present if other.device == stage.device), StageAt(stage.device, 0, 0))
        kept = max(0, min(stage.end, here.end) - max(stage.first, here.first))
        new_bytes = model.stage_bytes(stage.first, stage.end) - overlap_bytes(model, stage, here)
        pages = [(stage.end - stage.first - kept, 0), (kept, present_kv_tokens // BLOCK_TOKENS)]
        layers = tuple((BLOCK_TOKENS * model.stage_kv_bytes(0, layers), held) for layers, held in pages)
        rooms.append(StageRoom(int(cluster.free_bytes[stage.device]) - new_bytes, layers))
    return kv_blocks(rooms, KV_BLOCKS_MAX) * BLOCK_TOKENS


def overlap_bytes(model: ServedModel, one: StageAt, other: StageAt) -> int:
    """Bytes of the weights that both hold, 0 where they are on different devices."""
    first, end = max(one.first, other.first), min(one.end, other.end)
    return model.stage_bytes(first, end) if one.device == other.device and first < end else 0


@cache
def table_of(times: StepTimes) -> NDArray[np.float64]:
    """`StepTimes.table`, once."""
    return times.table()


def _kernel() -> Any:
    from .event_kernels import cycle_seconds

    return cycle_seconds
