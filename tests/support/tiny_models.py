"""Small random-weight configs of every family that must be equal to transformers: what capture and engine tests share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from flexpipe.runtime.capturing.capture import capture
from flexpipe.runtime.program import Program
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

LAYERS = 4
VOCABULARY = 131

GROUPED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
"""The llama-like families' settings: 4 query heads of 16 on 2 KV heads."""

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
    ),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_positions=256, n_embd=64, n_layer=LAYERS, n_head=4),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=24),
    "gemma3": lambda: Gemma3TextConfig(
        **{**GROUPED, "pad_token_id": 0},
        head_dim=24,
        query_pre_attn_scalar=24,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
    ),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=8),
    "phi": lambda: PhiConfig(**{**GROUPED, "num_key_value_heads": 4}, partial_rotary_factor=0.5),
    "gpt_neox": lambda: GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
        rotary_pct=0.25,
    ),
    "mixtral": lambda: MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
}


@cache
def captured(family: str) -> Program:
    """The family's program, captured once per test run."""
    return capture(FAMILIES[family]())


def random_model(config: PretrainedConfig, seed: int = 0) -> torch.nn.Module:
    """Transformers' own eager model with seeded weights, norms and biases included, large enough to tell faults apart."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.05 if parameter.ndim > 1 else 0.1
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.normal_(centre, spread)
    return model
