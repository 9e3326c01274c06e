# ruff: noqa: ARG001 - the functions are names with signatures
"""The operators that lowered graphs are made of: the language between the passes and a device's backend.

The functions below are names, not computations: passes put them into graphs as targets, and a `Backend` has a method of
the same name for each. Knows no program, no checkpoint, no batch.

Shapes: a value of T tokens is ``[1, T, ...]``, or ``[T, ...]`` in flat graphs (`passes.flat`); an operator may be given
any tensor whose elements lie token by token (a view with another last axis), because the weight or the layer tells it
the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import torch

from .interface import RaggedBatch
from .kv_pages import KvLayer
from .program import AttentionLayer

Tensor = torch.Tensor


def _named(name: str) -> NoReturn:
    raise NotImplementedError(f"{name} is a name for a backend's operator; it has to be bound before it is called")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis."""
    _named("rms_norm")


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis."""
    _named("layer_norm")


def linear(x: Tensor, weight: Any) -> Tensor:
    """A linear layer with its bias and activation: ``weight`` is what `pack_linear` or `pack_gated` made of them."""
    _named("linear")


def linear_add(x: Tensor, weight: Any, residual: Tensor) -> Tensor:
    """``residual + linear(x, weight)``."""
    _named("linear_add")


def gated(x: Tensor, activation: str) -> Tensor:
    """``activation(x[..., :M]) * x[..., M:]`` for x ``[..., 2 M]``; "silu", "gelu" or "gelu_tanh"."""
    _named("gated")


def attend(
    step: Any,
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
    """Rotate query and key (where ``cos`` is given), append key and value to the layer's pages, attend causally.

    ``query`` [1, T, query heads * key dim], ``key`` and ``value`` likewise with the KV heads; rows may lie apart (a slice
    of a wider tensor). ``cos`` and ``sin`` hold T rows of the rotated width r (halves rotate against each other, as in
    Llama; what lies beyond r stays). ``window``, ``softcap`` and ``sinks`` as in ``flexpipe::attend``. Gives
    the query's shape with query heads * value dim.
    """
    _named("attend")


def expert_linear(hidden: Tensor, weight: Any, experts: Tensor) -> Tensor:
    """Each token through the linear layers that ``experts`` [T, K] names: [T, 1 or K, in] to [T, K, out]."""
    _named("expert_linear")


class Backend(Protocol):
    """A device's computation of every operator above (methods of the same names), and what goes with them.

    ``batch_invariant`` promises that a row's bits depend on neither its neighbours nor its place in the batch.
    """

    name: str
    batch_invariant: bool

    def pack_linear(self, weight: Tensor, bias: Tensor | None, activation: str) -> Any:
        """``activation(x @ weight.T + bias)`` in the form that `linear` wants, for ``weight`` [out, in], ``bias`` [out].

        Activations: "none", "relu", "silu", "gelu", "gelu_tanh". The result has ``nbytes``; it may keep or copy its parts.
        """
        ...

    def pack_gated(
        self, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str
    ) -> Any:
        """The same for a gated pair: ``activation(x @ gate.T + gate_bias) * (x @ up.T + up_bias)``."""
        ...

    def pack_experts(self, weight: Tensor, bias: Tensor | None, transposed: bool) -> Any:
        """The same for ``weight`` [experts, out, in], or [experts, in, out] where ``transposed``."""
        ...

    def page_elements(self, geometry: AttentionLayer) -> int:
        """Numbers in one page of a layer, in this backend's own layout."""
        ...

    def use_threads(self, threads: int) -> None:
        """Compute with so many threads from now on; never called during a step."""
        ...

    def step(self, batch: RaggedBatch, tokens: int) -> Any:
        """What `attend` needs to know of a step, computed once; ``tokens`` >= ``batch.tokens`` where it is padded."""
        ...


OPERATORS: Sequence[Any] = (rms_norm, layer_norm, linear, linear_add, gated, attend, expert_linear)
"""All names, in the order above."""
