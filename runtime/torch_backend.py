"""The lowered operators in plain torch: the reference for every other backend, and what CUDA runs.

On CPU in fp32, weights are repacked once for oneDNN where this torch offers it (1.5 to 1.8 times faster than `F.linear`
at batch 8). On CUDA: `F.linear`, fused norms and scaled-dot-product attention on gathered pages; written for GPUs but
not tested on one.

Attention here gathers each request's pages into fresh memory, which the packed CPU kernels avoid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from .interface import BLOCK_TOKENS, RaggedBatch
from .kv_pages import KvLayer
from .program import AttentionLayer

Tensor = torch.Tensor

ONEDNN_BATCH_HINT = 8
"""Rows that oneDNN lays its packed weights out for; the smallest batch where packing pays most."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True, slots=True)
class TorchLinear:
    """A weight [out, in], plain or in oneDNN's layout, with its bias."""

    weight: Tensor
    bias: Tensor | None
    width: int
    packed: bool
    activation: str
    gated: bool
    nbytes: int


@dataclass(frozen=True, slots=True)
class TorchExperts:
    """All experts' weights [experts, out, in] and biases [experts, out]."""

    weight: Tensor
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True)
class TorchStep:
    """One step's indices on the device. Tokens beyond ``real`` are padding: they write nothing and attend to nothing."""

    tokens: int
    samples: int
    real: int
    device: torch.device
    blocks: Tensor
    offsets: Tensor
    rows: tuple[tuple[int, int, int, Tensor], ...]
    """(first token, end token, context length after the step, its block ids) of each row."""


class TorchBackend:
    """See `lowered.Backend`. With ``each_token`` attention takes tokens one by one, so that chunking changes no bit."""

    name = "torch"
    batch_invariant = False

    def __init__(self, device: torch.device, dtype: torch.dtype, each_token: bool = False) -> None:
        self.device = device
        self.dtype = dtype
        self._each_token = each_token
        self._onednn = device.type == "cpu" and dtype == torch.float32 and _onednn_packs()

    def use_threads(self, threads: int) -> None:
        """Torch's pool, which is the process's."""
        torch.set_num_threads(threads)

    def pack_linear(self, weight: Tensor, bias: Tensor | None, activation: str) -> TorchLinear:
        """Repack for oneDNN, or keep."""
        return self._pack(weight, bias, activation, gated=False)

    def pack_gated(
        self, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str
    ) -> TorchLinear:
        """One stacked layer, whose halves `linear` multiplies."""
        biases = [torch.zeros(len(gate)) if bias is None else bias for bias in (gate_bias, up_bias)]
        bias = None if gate_bias is None and up_bias is None else torch.cat(biases)
        return self._pack(torch.cat((gate, up)), bias, activation, gated=True)

    def _pack(self, weight: Tensor, bias: Tensor | None, activation: str, gated: bool) -> TorchLinear:
        width, nbytes = weight.shape[1], weight.nbytes + (0 if bias is None else bias.nbytes)
        if self._onednn:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ONEDNN_BATCH_HINT)  # noqa: SLF001
        else:
            weight = weight.contiguous().to(self.device)
        return TorchLinear(weight, _on(bias, self.device), width, self._onednn, activation, gated, nbytes)

    def page_elements(self, geometry: AttentionLayer) -> int:
        """Keys [kv heads, BLOCK_TOKENS, key dim], then values [kv heads, BLOCK_TOKENS, value dim]."""
        return BLOCK_TOKENS * geometry.kv_heads * (geometry.key_dim + geometry.value_dim)

    def pack_experts(self, weight: Tensor, bias: Tensor | None, transposed: bool) -> TorchExperts:
        """Keep, turned into [experts, out, in]."""
        weight = weight.transpose(1, 2) if transposed else weight
        return TorchExperts(weight.contiguous().to(self.device), _on(bias, self.device))

    def step(self, batch: RaggedBatch, tokens: int) -> TorchStep:
        """Places of the step's tokens in the pages, and each row's context."""
        lengths = np.diff(batch.row_starts)
        row_of_token = np.repeat(np.arange(len(lengths)), lengths)
        blocks = batch.block_tables[row_of_token, batch.positions // BLOCK_TOKENS]
        tables = torch.from_numpy(batch.block_tables).to(self.device, torch.int64)
        rows = []
        for row, (first, end) in enumerate(
            zip(batch.row_starts[:-1].tolist(), batch.row_starts[1:].tolist(), strict=True)
        ):
            if end > first:
                context = int(batch.positions[end - 1]) + 1
                rows.append((first, end, context, tables[row, : -(-context // BLOCK_TOKENS)]))
        return TorchStep(
            tokens=tokens,
            samples=len(batch.sample_tokens),
            real=batch.tokens,
            device=self.device,
            blocks=torch.from_numpy(blocks.astype(np.int64)).to(self.device),
            offsets=torch.from_numpy((batch.positions % BLOCK_TOKENS).astype(np.int64)).to(self.device),
            rows=tuple(rows),
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """In fp32 whatever x is."""
        return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """Torch's own."""
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def linear(self, x: Tensor, weight: TorchLinear) -> Tensor:
        """``x`` [..., in] or a view of it with another last axis, to [..., out]."""
        x = x if x.shape[-1] == weight.width else x.reshape(-1, weight.width)
        if weight.packed:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.weight, weight.bias, "none", [], "")  # noqa: SLF001
        else:
            result = F.linear(x, weight.weight, weight.bias)
        if weight.gated:
            return self.gated(result, weight.activation)
        return result if weight.activation == "none" else ACTIVATIONS[weight.activation](result)

    def linear_add(self, x: Tensor, weight: TorchLinear, residual: Tensor) -> Tensor:
        """Two operators here."""
        return residual + self.linear(x, weight).view_as(residual)

    def gated(self, x: Tensor, activation: str) -> Tensor:
        """Two operators here."""
        gate, up = x.chunk(2, -1)
        product: Tensor = ACTIVATIONS[activation](gate) * up
        return product

    def expert_linear(self, hidden: Tensor, weight: TorchExperts, experts: Tensor) -> Tensor:
        """Expert by expert, each over the tokens that chose it."""
        tokens, chosen = experts.shape
        hidden = hidden.expand(tokens, chosen, hidden.shape[-1])
        out = hidden.new_empty(tokens, chosen, weight.weight.shape[1])
        for expert in torch.unique(experts).tolist():
            where = experts == expert
            bias = None if weight.bias is None else weight.bias[expert]
            out[where] = F.linear(hidden[where], weight.weight[expert], bias)
        return out

    def attend(
        self,
        step: TorchStep,
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
        """Row by row over gathered pages."""
        shape, leading = layer.geometry, query.shape[:-1]
        query = query.reshape(step.tokens, shape.query_heads, shape.key_dim)
        key = key.reshape(step.tokens, shape.kv_heads, shape.key_dim)
        value = value.reshape(step.tokens, shape.kv_heads, shape.value_dim)
        if cos is not None and sin is not None:
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        key_pages, value_pages = _split_pages(layer)
        key_pages[step.blocks, :, step.offsets] = key[: step.real].to(key_pages.dtype)
        value_pages[step.blocks, :, step.offsets] = value[: step.real].to(value_pages.dtype)
        out = query.new_zeros(step.tokens, shape.query_heads, shape.value_dim)
        for first, end, context, blocks in step.rows:
            keys = key_pages[blocks].transpose(0, 1).flatten(1, 2)
            values = value_pages[blocks].transpose(0, 1).flatten(1, 2)
            for start in range(first, end, 1 if self._each_token else end - first):
                stop = start + 1 if self._each_token else end
                seen = context - (end - stop)
                out[start:stop] = _attend_row(
                    query[start:stop], keys[:, :seen], values[:, :seen], scale, window, softcap, sinks
                )
        return out.reshape(*leading, -1)


def _split_pages(layer: KvLayer) -> tuple[Tensor, Tensor]:
    """Views of the keys [blocks, kv heads, BLOCK_TOKENS, D] and the values in a layer's pages."""
    shape = layer.geometry
    key_elements = BLOCK_TOKENS * shape.kv_heads * shape.key_dim
    keys = layer.pages[:, :key_elements].view(-1, shape.kv_heads, BLOCK_TOKENS, shape.key_dim)
    values = layer.pages[:, key_elements:].view(-1, shape.kv_heads, BLOCK_TOKENS, shape.value_dim)
    return keys, values


def _attend_row(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Causal attention of a row's last tokens: [n, Hq, Dk] over [Hkv, context, D] to [n, Hq, Dv]."""
    count, heads, _ = query.shape
    context = keys.shape[1]
    mask = _mask(count, context, window, query.device)
    if softcap is None and sinks is None:
        attended = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=True
        )
        return attended[0].transpose(0, 1)
    groups = heads // keys.shape[0]
    scores = torch.einsum("thd,hcd->htc", query, keys.repeat_interleave(groups, 0)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(heads, count, 1)], -1)
    shares = torch.softmax(scores.float(), -1)[..., :context].to(values.dtype)
    return torch.einsum("htc,hcd->thd", shares, values.repeat_interleave(groups, 0))


def _mask(count: int, context: int, window: int | None, device: torch.device) -> Tensor | None:
    """True where the i-th of the last ``count`` tokens may see token j; None where all may see all."""
    if count == 1 and (window is None or context <= window):
        return None
    places = torch.arange(context - count, context, device=device)[:, None]
    seen = torch.arange(context, device=device)[None]
    mask = seen <= places
    return mask if window is None else mask & (seen > places - window)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first r of the last axis of [T, H, D]; ``cos`` and ``sin`` hold [T, r]."""
    width = cos.shape[-1]
    cos, sin = cos.reshape(-1, 1, width), sin.reshape(-1, 1, width)
    turned = heads[..., :width].float()
    low, high = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-high, low), -1) * sin
    return (
        torch.cat((turned.to(heads.dtype), heads[..., width:]), -1)
        if width < heads.shape[-1]
        else turned.to(heads.dtype)
    )


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _onednn_packs() -> bool:
    """Whether this torch has the private operators that repack a linear weight; they may go in any release."""
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(2, 2), ONEDNN_BATCH_HINT)  # noqa: SLF001
        torch.ops.mkldnn._linear_pointwise(torch.ones(1, 2), weight, None, "none", [], "")  # noqa: SLF001
    except (AttributeError, RuntimeError):
        return False
    return True
