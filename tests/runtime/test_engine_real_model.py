"""SmolLM2's real weights: logits through pipelines of every depth against transformers' own, in fp32."""

import numpy as np
import pytest
import torch
from engine_harness import Request, load_stages, serve
from flexpipe.preparation import captured
from flexpipe.runtime.models.model_store import resolve
from flexpipe.runtime.program import load_program
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4
TEXTS = (
    "The capital of France is Paris, and the capital of Spain is",
    "def quicksort(values):\n    if len(values) <= 1:\n        return values\n",
    "Es war einmal ein König, der hatte drei Töchter; 日本語 🙂 and 12345 + 678 =",
)


@pytest.fixture(scope="module")
def model():
    """Folder, program file, and prompts with transformers' logits for every position."""
    folder = resolve("smollm2").path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    random = np.random.default_rng(0).integers(0, tokenizer.vocab_size, (3, 64)).tolist()
    prompts = [*(tokenizer(text)["input_ids"] for text in TEXTS), *random]
    with torch.inference_mode():
        expected = [reference(torch.tensor([prompt])).logits[0] for prompt in prompts]
    return folder, captured(folder), prompts, expected


@pytest.mark.parametrize("stages", range(1, 7))
def test_logits_equal_transformers_at_every_depth(model, stages):
    folder, program_file, prompts, expected = model
    atoms = len(load_program(program_file).atoms)
    # Uneven on purpose, and an odd atom cuts between attention and MLP.
    cuts = [
        0,
        *sorted(np.random.default_rng(stages).choice(np.arange(1, atoms), stages - 1, replace=False).tolist()),
        atoms,
    ]
    requests = [Request(prompt) for prompt in prompts]
    serve(load_stages(folder, program_file, cuts, threads=2), requests, seed=stages)
    for request, logits in zip(requests, expected, strict=True):
        assert torch.max(torch.abs(torch.stack(request.logits) - logits)) <= TOLERANCE
