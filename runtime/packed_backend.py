"""The lowered operators on the CPU's packed kernels (`kernels`), in fp32. Batch-invariant bit for bit.

Owns the step from the graph's ``[1, T, ...]`` tensors to the kernels' rows. Importing it imports (and on first use of a
version compiles) the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .interface import EngineError, RaggedBatch
from .kernels.attention import AttentionPlan, PageLayout, attend, plan_attention
from .kernels.elementwise import layer_norm, rms_norm, rotate
from .kernels.linear import PackedLinear, freeze, pack_gated, pack_linear, thaw
from .kernels.threads import set_threads
from .kv_pages import KvLayer
from .program import AttentionLayer
from .torch_backend import ACTIVATIONS

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """One packed linear layer for each expert."""

    layers: tuple[PackedLinear, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that all of them hold."""
        return sum(layer.nbytes for layer in self.layers)


class PackedStep:
    """One step's attention plans, made when a layer first needs one of its shape."""

    __slots__ = ("batch", "device", "plans", "samples", "tables", "tokens")

    def __init__(self, batch: RaggedBatch) -> None:
        self.batch = batch
        self.tokens = batch.tokens
        self.samples = len(batch.sample_tokens)
        self.device = torch.device("cpu")
        self.plans: dict[int, AttentionPlan] = {}
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}

    def plan(self, group: int) -> AttentionPlan:
        """The plan for layers with ``group`` query heads a KV head."""
        plan = self.plans.get(group)
        if plan is None:
            batch = self.batch
            plan = self.plans[group] = plan_attention(batch.positions, batch.row_starts, batch.block_tables, group)
        return plan

    def rows(self, table: Tensor) -> Tensor:
        """A rotary table [1, 1, T, R] as [T, R]; every layer asks for the same few."""
        known = self.tables.get(id(table))
        if known is None:
            known = self.tables[id(table)] = (table, table.view(self.tokens, -1))
        return known[1]


class PackedBackend:
    """See `lowered.Backend`. Computes with ``threads`` kernel threads and keeps torch at one beside them."""

    name = "packed"
    batch_invariant = True

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(1)
        set_threads(threads)

    def use_threads(self, threads: int) -> None:
        """The kernels' own; torch keeps its one."""
        set_threads(threads)

    def pack_linear(self, weight: Tensor, bias: Tensor | None, activation: str) -> PackedLinear:
        """The kernels' panels; the stored weight is dropped by the caller."""
        return pack_linear(weight, bias, activation)

    def pack_gated(
        self, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str
    ) -> PackedLinear:
        """Both halves in one set of panels."""
        return pack_gated(gate, up, activation, gate_bias, up_bias)

    def pack_experts(self, weight: Tensor, bias: Tensor | None, transposed: bool) -> PackedExperts:
        """Each expert for itself."""
        matrices = (matrix.t().contiguous() if transposed else matrix for matrix in weight)
        return PackedExperts(
            tuple(pack_linear(matrix, None if bias is None else bias[place]) for place, matrix in enumerate(matrices))
        )

    def freeze(self, weight: Any) -> tuple[str, dict[str, int], list[Any], list[Any]]:
        """Form, facts, arrays and parts of a packed weight (`warm_weights.SharedForm`)."""
        if isinstance(weight, PackedExperts):
            return "experts", {}, [], list(weight.layers)
        facts, arrays = freeze(weight)
        return "linear", facts, arrays, []

    def thaw(self, form: str, facts: dict[str, int], arrays: list[Any], parts: list[Any]) -> Any:
        """The packed weight that `freeze` described."""
        return PackedExperts(tuple(parts)) if form == "experts" else thaw(facts, arrays)

    def page_elements(self, geometry: AttentionLayer) -> int:
        """As the kernels lay pages out (`PageLayout`)."""
        return _layout(geometry).floats_per_page

    def step(self, batch: RaggedBatch, tokens: int) -> PackedStep:
        """Plans are made on demand."""
        if tokens != batch.tokens:
            raise EngineError("The packed kernels take steps as they are; padding them was a mistake of the caller")
        return PackedStep(batch)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Over the last axis of [T, n], [T, H, n], or either with a leading one."""
        if x.dim() == 2 or (x.dim() == 3 and x.shape[0] != 1):
            return rms_norm(x, weight, eps)  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.shape[-1]) if x.dim() == 3 else x[0]
        normalised: Tensor = rms_norm(rows, weight, eps)
        return normalised.view(x.shape)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """Over the last axis."""
        weight = torch.ones(x.shape[-1]) if weight is None else weight
        if x.dim() == 2:
            return layer_norm(x, weight, bias, eps)  # type: ignore[no-any-return]
        normalised: Tensor = layer_norm(x.reshape(-1, x.shape[-1]), weight, bias, eps)
        return normalised.view(x.shape)

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """Packed panels with bias and activation inside."""
        if x.dim() == 2:
            return weight(x)  # type: ignore[no-any-return]
        result: Tensor = weight(x.reshape(-1, weight.inputs))
        leading = x.shape[:-1] if x.shape[-1] == weight.inputs else (1, -1)
        return result.view(*leading, weight.outputs)

    def linear_add(self, x: Tensor, weight: PackedLinear, residual: Tensor) -> Tensor:
        """The residual is added as results are stored."""
        if x.dim() == 2 and residual.dim() == 2:
            return weight(x, residual=residual)  # type: ignore[no-any-return]
        result: Tensor = weight(x.reshape(-1, weight.inputs), residual=residual.reshape(-1, weight.outputs))
        return result.view(residual.shape)

    def gated(self, x: Tensor, activation: str) -> Tensor:
        """Torch's own; only experts come here."""
        gate, up = x.chunk(2, -1)
        return ACTIVATIONS[activation](gate) * up

    def expert_linear(self, hidden: Tensor, weight: PackedExperts, experts: Tensor) -> Tensor:
        """Expert by expert, each over the tokens that chose it."""
        tokens, chosen = experts.shape
        hidden = hidden.expand(tokens, chosen, hidden.shape[-1])
        out = hidden.new_empty(tokens, chosen, weight.layers[0].outputs)
        for expert in torch.unique(experts).tolist():
            where = experts == expert
            out[where] = weight.layers[expert](hidden[where])
        return out

    def attend(
        self,
        step: PackedStep,
        layer: KvLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Rotate in place, write the pages, attend to them where they lie."""
        if sinks is not None:
            raise EngineError("The packed kernels do not know attention sinks; serve this model with plain torch")
        shape, tokens = layer.geometry, step.tokens
        leading = query.shape[:-1]
        query = query.view(tokens, shape.query_heads, shape.key_dim)
        key = key.view(tokens, shape.kv_heads, shape.key_dim)
        value = value.view(tokens, shape.kv_heads, shape.value_dim)
        if cos is not None and sin is not None:
            rotate(query, key, step.rows(cos), step.rows(sin))
        plan = step.plan(shape.query_heads // shape.kv_heads)
        out: Tensor = attend(query, key, value, layer.pages, _layout(shape), plan, scale, window, softcap or 0.0)
        return out.view(*leading, -1)


_layouts: dict[tuple[int, int, int], PageLayout] = {}


def _layout(geometry: AttentionLayer) -> PageLayout:
    """The kernels' page layout of a layer; one object for each geometry."""
    key = geometry.kv_heads, geometry.key_dim, geometry.value_dim
    if key not in _layouts:
        _layouts[key] = PageLayout(*key)
    return _layouts[key]
