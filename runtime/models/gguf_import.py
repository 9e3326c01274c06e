"""GGUF to a Hugging Face folder: config, safetensors, tokenizer, chat template, generation config.

Owns the Llama family's conversion (tensor by tensor, bounded memory, llama.cpp's rotary permutation undone); other
families go through transformers' own GGUF reading, all in memory. Knows no cache and no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .gguf_file import GgufFile, read_gguf
from .gguf_tokenizer import special_token_id, write_tokenizer
from .model_folder import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    BrokenCheckpointError,
    MissingTensorError,
    Report,
    UnknownArchitectureError,
    first_line,
)
from .weight_writer import WeightWriter

_LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

FloatArray = npt.NDArray[np.float32]


def import_gguf(source: Path, folder: Path, *, report: Report, dtype: str = "float32") -> None:
    """Write the model in the GGUF file ``source`` into the existing, empty ``folder``.

    ``dtype`` ("float32", "float16", "bfloat16") is how the dequantised weights are stored. ``report`` counts bytes of
    the source in the phase "convert". Raises `ModelError`s; ``folder`` is then incomplete and must be thrown away.
    """
    gguf = read_gguf(source)
    write_tokenizer(gguf, folder)
    if gguf.architecture == "llama":
        config = _llama_config(gguf)
        _write_weights(_llama_weights(gguf, config, report), folder, dtype)
    else:
        config, weights = _through_transformers(gguf, report)
        _write_weights(weights, folder, dtype)
    config["dtype"] = dtype
    _write_json(folder / GENERATION_CONFIG_FILE, _generation_config(gguf))
    _write_json(folder / CONFIG_FILE, config)


def _write_weights(weights: Iterator[tuple[str, FloatArray]], folder: Path, dtype: str) -> None:
    with WeightWriter(folder, dtype) as writer:
        for name, values in weights:
            writer.add(name, values)


def _generation_config(gguf: GgufFile) -> dict[str, Any]:
    ends = [special_token_id(gguf, "eos"), special_token_id(gguf, "eot")]
    stops = list(dict.fromkeys(token_id for token_id in ends if token_id is not None))
    start = special_token_id(gguf, "bos")
    return ({"bos_token_id": start} if start is not None else {}) | ({"eos_token_id": stops} if stops else {})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _require_all(gguf: GgufFile, missing: list[str]) -> None:
    if missing:
        raise MissingTensorError(f"{gguf.path} lacks {len(missing)} tensors, first {missing[0]!r}; fetch it again")


# ---- Llama -----------------------------------------------------------------------------------------------------------


def _llama_config(gguf: GgufFile) -> dict[str, Any]:
    _refuse_llama_variants(gguf)
    _require_all(gguf, [name for name in ("token_embd.weight",) if name not in gguf.tensors])
    heads = int(_llama_field(gguf, "attention.head_count"))
    hidden = int(_llama_field(gguf, "embedding_length"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": int(_llama_field(gguf, "feed_forward_length")),
        "num_hidden_layers": int(_llama_field(gguf, "block_count", value_max=len(gguf.tensors))),
        "num_attention_heads": heads,
        "num_key_value_heads": int(_llama_field(gguf, "attention.head_count_kv", default=heads)),
        "head_dim": int(_llama_field(gguf, "rope.dimension_count", default=max(1, hidden // heads))),
        "hidden_act": "silu",
        "max_position_embeddings": int(_llama_field(gguf, "context_length")),
        "rms_norm_eps": _shortest(_llama_field(gguf, "attention.layer_norm_rms_epsilon")),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _shortest(_llama_field(gguf, "rope.freq_base", default=10000.0)),
        },
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": special_token_id(gguf, "bos"),
        "eos_token_id": special_token_id(gguf, "eos"),
        "pad_token_id": special_token_id(gguf, "padding"),
    }


def _llama_field(gguf: GgufFile, key: str, *, default: float | None = None, value_max: float = 2**31) -> float:
    value = gguf.metadata.get(f"llama.{key}", default)
    if not isinstance(value, int | float) or not 0 < value <= value_max:
        raise UnknownArchitectureError(
            f"{gguf.path} says llama.{key} = {value}, which fits no Llama model; use the model's Hugging Face folder"
        )
    return value


def _refuse_llama_variants(gguf: GgufFile) -> None:
    """llama.cpp files several families under "llama"; what this conversion would get wrong is refused by name."""
    variant = None
    if gguf.metadata.get("llama.expert_count", 0):
        variant = "a mixture of experts"
    elif "rope_freqs.weight" in gguf.tensors or gguf.metadata.get("llama.rope.scaling.type", "none") != "none":
        variant = "scaled rotary frequencies"
    elif any(name.endswith(".bias") for name in gguf.tensors):
        variant = "biases"
    if variant is not None:
        raise UnknownArchitectureError(
            f"{gguf.path} is a Llama model with {variant}, which is not converted from GGUF; "
            "use the model's Hugging Face folder instead"
        )


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06, as the original config had it."""
    return float(str(np.float32(value)))


def _llama_tensors(config: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name -> (checkpoint name, shape), for every tensor that the family needs."""
    hidden, mlp, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (mlp, hidden),
        "ffn_up": (mlp, hidden),
        "ffn_down": (hidden, mlp),
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": ("model.embed_tokens.weight", (vocabulary, hidden))
    }
    for layer in range(config["num_hidden_layers"]):
        for stored, module in _LLAMA_LAYER.items():
            tensors[f"blk.{layer}.{stored}.weight"] = (f"model.layers.{layer}.{module}.weight", shapes[stored])
    tensors["output_norm.weight"] = ("model.norm.weight", (hidden,))
    if not config["tie_word_embeddings"]:
        tensors["output.weight"] = ("lm_head.weight", (vocabulary, hidden))
    return tensors


def _llama_weights(gguf: GgufFile, config: dict[str, Any], report: Report) -> Iterator[tuple[str, FloatArray]]:
    wanted = _llama_tensors(config)
    _require_all(gguf, [name for name in wanted if name not in gguf.tensors])
    total = sum(len(gguf.tensors[name].data) for name in wanted)
    done = 0
    for name, (checkpoint_name, shape) in wanted.items():
        tensor = gguf.tensors[name]
        if tensor.shape != shape:
            raise BrokenCheckpointError(
                f"{gguf.path}: the tensor {name!r} has shape {tensor.shape} where the header asks for {shape}; "
                "fetch it again"
            )
        values = tensor.dequantize()
        if name.endswith(".attn_q.weight"):
            values = _undo_rotary_permutation(values, config["num_attention_heads"])
        elif name.endswith(".attn_k.weight"):
            values = _undo_rotary_permutation(values, config["num_key_value_heads"])
        yield checkpoint_name, values
        done += len(tensor.data)
        report("convert", done, total)


def _undo_rotary_permutation(values: FloatArray, heads: int) -> FloatArray:
    """Rows back from llama.cpp's order to transformers'.

    Rotary embedding turns pairs of a head's rows. transformers pairs row i with row i + half, llama.cpp row 2i with row
    2i + 1, so its converter interleaves the two halves of every head. ``values`` [heads * head_dim, hidden].
    """
    rows, columns = values.shape
    half = rows // heads // 2
    return np.ascontiguousarray(values.reshape(heads, half, 2, columns).swapaxes(1, 2)).reshape(rows, columns)


# ---- every other family ----------------------------------------------------------------------------------------------


def _through_transformers(gguf: GgufFile, report: Report) -> tuple[dict[str, Any], Iterator[tuple[str, FloatArray]]]:
    """Config and weights by transformers' own mapping. The whole model is in memory as float32 at once."""
    report("convert", 0, 0)
    try:
        torch, transformers = import_module("torch"), import_module("transformers")
        load = import_module("transformers.modeling_gguf_pytorch_utils").load_gguf_checkpoint
        config = transformers.AutoConfig.for_model(**load(str(gguf.path))["config"])
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        tensors: dict[str, Any] = load(str(gguf.path), return_tensors=True, model_to_load=model)["tensors"]
    except Exception as error:  # transformers refuses a family with whatever its mapping ran into
        raise UnknownArchitectureError(
            f"{gguf.path} is of the family {gguf.architecture!r}, which cannot be converted from GGUF ({first_line(error)}); "
            "use the model's Hugging Face folder instead"
        ) from error
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    _require_all(gguf, [name for name in model.state_dict() if name not in tensors and name not in tied])
    described: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    described["architectures"] = [type(model).__name__]
    return described, ((name, np.asarray(tensor.numpy(), np.float32)) for name, tensor in tensors.items())
