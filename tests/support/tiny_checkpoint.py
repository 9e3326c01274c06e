"""A complete Hugging Face folder small enough for every test: random Llama weights, a trained tokenizer, a template.

Needs neither torch nor a network and takes well under a second, so gateway and daemon tests can make their own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 384
HIDDEN = 64
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
MLP = 128
CONTEXT_TOKENS = 512
WEIGHT_SCALE = 0.2
"""Large enough that the likeliest token changes with the prompt."""

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CORPUS = (
    "The pipeline is cut into stages, and a stage is a process that owns some layers of the model.",
    "When the demand changes, stages are split and merged while the requests go on: none of them is lost.",
    "A cache of keys and values moves to its new home page by page; naïve copies would stop the stream for seconds.",
    "Größe, façade, 東京, 🙂: text is more than ASCII, and 1 + 2 = 3.",
)


def write_tiny_checkpoint(
    folder: Path, *, layers: int = 4, seed: int = 0, context_tokens: int = CONTEXT_TOKENS
) -> Path:
    """Write the model into ``folder`` (made if missing) and return it; the same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": TURN_END,
            "pad_token": END,
            "unk_token": END,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [2]})
    write_json(folder / "config.json", tiny_config(layers, context_tokens))
    save_file(random_weights(layers, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def train_tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of `VOCABULARY_SIZE` tokens: 3 special ones, 256 bytes, the rest merged from `CORPUS`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=1,
        special_tokens=[END, TURN, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def tiny_config(layers: int, context_tokens: int = CONTEXT_TOKENS) -> dict[str, object]:
    """The model's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": context_tokens,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
    }


def random_weights(layers: int, seed: int) -> dict[str, np.ndarray]:
    """Every tensor of the model by its checkpoint name, float32."""
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY_SIZE, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.mlp.gate_proj.weight": (MLP, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (MLP, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, MLP),
        }
    weights = {name: WEIGHT_SCALE * generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    norms = [f"model.layers.{layer}.{kind}.weight" for layer in range(layers) for kind in NORMS]
    for name in [*norms, "model.norm.weight"]:
        weights[name] = 1 + WEIGHT_SCALE * generator.standard_normal(HIDDEN, np.float32)
    return weights


NORMS = ("input_layernorm", "post_attention_layernorm")


def write_json(path: Path, value: object) -> None:
    """Write ``value`` for people to read."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
