"""Transformers' own definition of a model, without its weights: parameters on the meta device, constants with values.

Owns the building and the export of that skeleton. Knows nothing of atoms, stages or checkpoints' files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .operators import IMPLEMENTATION, CaptureError, register_with_transformers

SERVABLE_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
"""The kinds of token mixing that `flexpipe::attend` can express, by transformers' names."""

TOKENS_MAX = 1 << 20
"""Upper end of the dynamic token axis told to torch.export; nothing is allocated by it."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """``tied`` maps a parameter to the one whose checkpoint tensor it shares; ``constants`` are non-persistent buffers."""

    model: PreTrainedModel
    tied: dict[str, str]
    constants: dict[str, torch.Tensor]


class _WeightsOnMeta(TorchFunctionMode):
    """Tensors made without values go to the meta device: they are weights. All others (rotary tables) stay real."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Redirect `torch.empty`, leave the rest alone."""
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)


class _Step(nn.Module):
    """The model as one step of a server sees it: flat tokens, explicit positions, the rows whose logits are wanted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, sample_tokens: torch.Tensor) -> torch.Tensor:
        """Int64 [1, T], [1, T] and [N] to logits [1, N, vocabulary]."""
        outcome = self.model(input_ids=token_ids, position_ids=positions, use_cache=False, logits_to_keep=sample_tokens)
        logits: torch.Tensor = outcome.logits
        return logits


def read_config(folder: Path) -> PretrainedConfig:
    """Read ``folder``/config.json. Raises `CaptureError` where it is missing, damaged, or of an unknown architecture."""
    if not (folder / "config.json").is_file():
        raise CaptureError(f"{folder} holds no config.json: give a Hugging Face model folder")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for a config that it cannot read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CaptureError(f"transformers cannot read {folder / 'config.json'}: {reason}") from error
    return config


def build_skeleton(config: PretrainedConfig) -> Skeleton:
    """Instantiate ``config``'s causal language model in fp32 without memory for weights. Raises `CaptureError`."""
    _refuse_unservable(config)
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if architecture is None:
        raise CaptureError(f"transformers has no causal language model for {config.model_type!r}: not supported")
    if not architecture._supports_attention_backend:  # noqa: SLF001 - transformers' flag has this name
        raise CaptureError(
            f"transformers does not let the attention of {architecture.__name__} be replaced: not supported"
        )
    register_with_transformers()
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation = IMPLEMENTATION  # noqa: SLF001 - transformers' documented way in has this name
    config._experts_implementation = IMPLEMENTATION  # noqa: SLF001
    factory: Any = AutoModelForCausalLM
    with _WeightsOnMeta():
        try:
            model = factory.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
        except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise CaptureError(f"transformers cannot build a {config.model_type!r} model: {error}") from error
    tied = _untie(model)
    constants = _take_constants(model)
    model.to("meta")
    return Skeleton(model, tied, constants)


def export_skeleton(skeleton: Skeleton) -> torch.export.ExportedProgram:
    """Trace one step over a dynamic number of tokens and of sampled rows. Raises `CaptureError`."""
    tokens = torch.zeros(1, 7, dtype=torch.long, device="meta")
    sampled = torch.zeros(3, dtype=torch.long, device="meta")
    many_tokens = torch.export.Dim("tokens", min=2, max=TOKENS_MAX)
    many_samples = torch.export.Dim("samples", min=1, max=TOKENS_MAX)
    dynamic = ({1: many_tokens}, {1: many_tokens}, {0: many_samples})
    try:
        return torch.export.export(
            _Step(skeleton.model), (tokens, tokens.clone(), sampled), dynamic_shapes=dynamic, strict=False
        )
    except CaptureError:
        raise
    except Exception as error:  # torch.export raises many types; all mean that this model does not trace
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CaptureError(f"torch.export cannot trace {type(skeleton.model).__name__}: {reason}") from error


def _refuse_unservable(config: PretrainedConfig) -> None:
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise CaptureError(f"{config.model_type!r} is an encoder-decoder model: only decoder-only models can be served")
    if getattr(config, "quantization_config", None) is not None:
        raise CaptureError(
            f"this {config.model_type!r} checkpoint is quantised: use one with plain weights, or a GGUF file"
        )
    strange = set(getattr(text, "layer_types", None) or ()) - SERVABLE_LAYER_TYPES
    if strange:
        raise CaptureError(f"{config.model_type!r} has layers of kind {', '.join(sorted(strange))}: not supported")
    if getattr(text, "attention_chunk_size", None):
        raise CaptureError(f"{config.model_type!r} attends within chunks (attention_chunk_size): not supported")


def _untie(model: nn.Module) -> dict[str, str]:
    """Give every tied parameter a tensor of its own, so that the graph says which use is which."""
    tied: dict[str, str] = {}
    for name, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        shared = getattr(module, leaf)
        if not isinstance(shared, nn.Parameter):
            continue
        setattr(module, leaf, nn.Parameter(torch.empty_like(shared, device="meta"), requires_grad=False))
        tied[name] = source
    return tied


def _take_constants(model: nn.Module) -> dict[str, torch.Tensor]:
    persistent = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name not in persistent and not buffer.is_meta}
