"""Every family, cut in every way, against transformers' own eager logits: largest difference 2e-4 in fp32."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from engine_harness import Request, load_stages, serve
from flexpipe.runtime.capturing.capture import capture
from flexpipe.runtime.program import load_program, save_program
from tiny_models import FAMILIES, VOCABULARY, random_model

TOLERANCE = 2e-4


class Family:
    """A saved random model, its program, and the logits that transformers computes for three requests."""

    def __init__(self, name, folder):
        model = random_model(FAMILIES[name]())
        model.save_pretrained(folder)
        self.folder = folder
        self.program_file = folder / "program.json"
        save_program(capture(folder), self.program_file)
        self.program = load_program(self.program_file)
        random = np.random.default_rng(5)
        self.prompts = [random.integers(2, VOCABULARY, length).tolist() for length in (41, 5, 23)]
        with torch.inference_mode():
            self.expected = [model(torch.tensor([prompt])).logits[0] for prompt in self.prompts]

    def largest_difference(self, cuts, seed=0, **options):
        stages = load_stages(self.folder, self.program_file, cuts, **options)
        requests = [Request(prompt) for prompt in self.prompts]
        serve(stages, requests, seed)
        return max(
            (torch.stack(request.logits) - expected).abs().max().item()
            for request, expected in zip(requests, self.expected, strict=True)
        )


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, tmp_path_factory):
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def partitions(atoms):
    """1 to 6 stages of even and uneven sizes; odd atom indices lie between a layer's attention and its MLP."""
    random = np.random.default_rng(atoms)
    for stages in range(1, min(6, atoms) + 1):
        inner = sorted(random.choice(np.arange(1, atoms), stages - 1, replace=False).tolist())
        yield [0, *inner, atoms]
    yield [0, 1, atoms - 1, atoms]


def test_every_partition_equals_transformers(family):
    for seed, cuts in enumerate(partitions(len(family.program.atoms))):
        difference = family.largest_difference(cuts, seed)
        assert difference <= TOLERANCE, f"{cuts}: {difference}"


def test_deterministic_mode_equals_transformers(family):
    atoms = len(family.program.atoms)
    assert family.largest_difference([0, atoms // 2, atoms], deterministic=True, step_tokens_max=32) <= TOLERANCE
