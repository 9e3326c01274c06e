"""The two operators that capture leaves whole: attention over paged KV, and linear layers chosen per token by a router.

Owns their torch schemas and shapes, and the hooks through which transformers calls them. They have no kernels here: a
captured program names them, and lowering (or the reference interpreter) supplies the computation.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.moe import ExpertsInterface

from ..interface import EngineError

IMPLEMENTATION = "flexpipe"
"""The name under which transformers knows our attention and our experts."""


class CaptureError(EngineError):
    """A model cannot be captured; the sentence says which part of it is not supported."""


@torch.library.custom_op("flexpipe::attend", mutates_args=())
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Append this step's keys and values to ``layer``'s KV, then attend causally over each request's own tokens.

    ``query`` [1, query heads, T, key dim], ``key`` [1, KV heads, T, key dim], ``value`` [1, KV heads, T, value dim] to
    [1, T, query heads, value dim], contiguous: the graph may view it. ``window`` is how many tokens are seen, the token
    itself included; ``softcap`` c replaces a score s by c * tanh(s / c); ``sinks`` [query heads] are scores that take
    part in the softmax without a value.
    """
    raise NotImplementedError("flexpipe::attend is captured, never run: lowering supplies its computation")


@attend.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,  # noqa: ARG001 - the schema's
    value: torch.Tensor,
    layer: int,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    window: int | None,  # noqa: ARG001
    softcap: float | None,  # noqa: ARG001
    sinks: torch.Tensor | None,  # noqa: ARG001
) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@torch.library.custom_op("flexpipe::expert_linear", mutates_args=())
def expert_linear(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, experts: torch.Tensor, transposed: bool
) -> torch.Tensor:
    """Apply to each token the linear layers that ``experts`` [T, K] names.

    ``hidden`` [T, 1 or K, in], ``weight`` [experts, out, in] ([experts, in, out] where ``transposed``), ``bias``
    [experts, out], to [T, K, out].
    """
    raise NotImplementedError("flexpipe::expert_linear is captured, never run: lowering supplies its computation")


@expert_linear.register_fake
def _(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,  # noqa: ARG001
    experts: torch.Tensor,
    transposed: bool,
) -> torch.Tensor:
    return hidden.new_empty(experts.shape[0], experts.shape[1], weight.shape[2 if transposed else 1])


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - transformers passes it; inference has none
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What a transformers attention module calls: one `attend`, or `CaptureError` where it needs more than that."""
    if attention_mask is not None or kwargs.get("position_bias") is not None:
        raise CaptureError("the model adds a bias or a mask of its own to its attention scores (ALiBi?): not supported")
    if not getattr(module, "is_causal", True):
        raise CaptureError("the model attends in both directions (an encoder): only decoder-only models can be served")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise CaptureError(f"{type(module).__name__} does not say which layer it is: its KV cache has no place")
    if value.shape[1] == 0 or query.shape[1] % key.shape[1] != 0:
        raise CaptureError(f"{query.shape[1]} query heads cannot share {key.shape[1]} KV heads evenly")
    scale = float(query.shape[-1]) ** -0.5 if scaling is None else float(scaling)
    window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
    attended: torch.Tensor = attend(query, key, value, layer, scale, window, softcap, kwargs.get("s_aux"))
    return attended, None


def experts_forward(
    module: Any, hidden: torch.Tensor, experts: torch.Tensor, expert_weights: torch.Tensor
) -> torch.Tensor:
    """What a transformers experts module calls: [T, hidden] through the K experts of each token, weighted and summed."""
    biased, transposed = module.has_bias, module.is_transposed
    name = "gate_up_proj" if module.has_gate else "up_proj"
    bias = getattr(module, f"{name}_bias") if biased else None
    inner = expert_linear(hidden.unsqueeze(1), getattr(module, name), bias, experts, transposed)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)  # noqa: SLF001 - transformers' hook
    outer = expert_linear(inner, module.down_proj, module.down_proj_bias if biased else None, experts, transposed)
    if module.has_post_expert_norm:
        outer = module.post_expert_norm(outer)
    mixed: torch.Tensor = (outer * expert_weights.unsqueeze(-1)).sum(dim=1).to(hidden.dtype)
    return mixed


def register_with_transformers() -> None:
    """Make `IMPLEMENTATION` known to transformers; without a mask of that name it builds none. Idempotent."""
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    ExpertsInterface.register(IMPLEMENTATION, experts_forward)
