"""The tiny checkpoint as a GGUF file, written by the ``gguf`` package the way llama.cpp's converter does it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMAL, CONTROL = 1, 3


def write_tiny_gguf(path, folder, *, architecture="llama", weights=None, leave_out=(), tensors=None, extra=None):
    """Write the model in ``folder`` to ``path`` as F32 and return ``path``.

    ``weights`` by checkpoint name replace the folder's; GGUF tensors in ``leave_out`` are not written, those in
    ``tensors`` are added as they are; ``extra`` holds further whole-number metadata.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    _add_tokenizer(writer, folder)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, values in (weights or load_file(folder / "model.safetensors")).items():
        stored = _gguf_name(name)
        rotary_heads = heads.get(stored.split(".")[-2]) if architecture == "llama" else None
        if stored not in leave_out:
            writer.add_tensor(stored, interleave(values, rotary_heads) if rotary_heads else values)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def interleave(values, heads):
    """A head's rows 0, 1, ... half, half + 1, ... as 0, half, 1, half + 1, ...: llama.cpp pairs neighbours."""
    half = len(values) // heads // 2
    order = [head * 2 * half + side * half + i for head in range(heads) for i in range(half) for side in range(2)]
    return np.ascontiguousarray(values[order])


def _add_tokenizer(writer, folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    special = set(tokenizer.get_added_tokens_decoder())
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokenizer.id_to_token(index) for index in range(size)])
    writer.add_token_types([CONTROL if index in special else NORMAL for index in range(size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def _gguf_name(name):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, *rest = name.split(".")
    return f"blk.{layer}.{LAYER_NAMES['.'.join(rest[:-1])]}.weight"
