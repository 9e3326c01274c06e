"""How a lowered graph's weights come from the checkpoint's: plain values that passes compose and loading carries out.

A recipe names the weight slots that it reads and how their tensors become one. Loading runs one recipe after the other,
so that no more than one weight exists in its stored and its final form at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .lowered import Backend

ReadSlot = Callable[[str], torch.Tensor]
"""Gives the stored tensor of a weight slot, in memory of its own."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A stored tensor as it is."""

    name: str

    def build(self, read: ReadSlot, backend: Backend) -> torch.Tensor:  # noqa: ARG002 - all recipes are built alike
        """Read it."""
        return read(self.name)


@dataclass(frozen=True, slots=True)
class Computed:
    """A constant expression over other recipes: ``target(*args, **kwargs)``, recipes among the arguments built first."""

    target: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def build(self, read: ReadSlot, backend: Backend) -> torch.Tensor:
        """Evaluate it."""
        arguments = [_built(argument, read, backend) for argument in self.args]
        result: torch.Tensor = self.target(*arguments, **self.kwargs)
        return result.contiguous()


@dataclass(frozen=True, slots=True)
class Stacked:
    """Several tensors joined along their first axis: the weights of merged linear layers."""

    parts: Sequence[Recipe]

    def build(self, read: ReadSlot, backend: Backend) -> torch.Tensor:
        """Read and join them."""
        return torch.cat([part.build(read, backend) for part in self.parts])


Recipe = Slot | Computed | Stacked


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear layer's weight and bias in the backend's own form."""

    weight: Recipe
    bias: Recipe | None
    activation: str = "none"

    def build(self, read: ReadSlot, backend: Backend) -> Any:
        """Read and pack them."""
        weight, bias = (_built(part, read, backend) for part in (self.weight, self.bias))
        return backend.pack_linear(weight, bias, self.activation)


@dataclass(frozen=True, slots=True)
class PackedGated:
    """Two linear layers of one input, the first one's activation times the second, in the backend's own form."""

    gate: Recipe
    up: Recipe
    gate_bias: Recipe | None
    up_bias: Recipe | None
    activation: str

    def build(self, read: ReadSlot, backend: Backend) -> Any:
        """Read and pack them."""
        gate, up, gate_bias, up_bias = (
            _built(part, read, backend) for part in (self.gate, self.up, self.gate_bias, self.up_bias)
        )
        return backend.pack_gated(gate, up, gate_bias, up_bias, self.activation)


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """The linear layers of all experts in the backend's own form."""

    weight: Recipe
    bias: Recipe | None
    transposed: bool

    def build(self, read: ReadSlot, backend: Backend) -> Any:
        """Read and pack them."""
        weight, bias = (_built(part, read, backend) for part in (self.weight, self.bias))
        return backend.pack_experts(weight, bias, self.transposed)


AnyRecipe = Recipe | PackedLinear | PackedGated | PackedExperts


def _built(argument: Any, read: ReadSlot, backend: Backend) -> Any:
    return argument.build(read, backend) if isinstance(argument, Slot | Computed | Stacked) else argument
