"""Numbers and names as people read them."""

import pytest
from flexpipe.commands.console import ranges, size, span


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.0 KiB"),
        (98 * 2**20, "98.0 MiB"),
        (270 * 2**20, "270 MiB"),
        (2**31, "2.0 GiB"),
    ],
)
def test_sizes_have_three_figures(count, text):
    assert size(count) == text


@pytest.mark.parametrize(("numbers", "text"), [([], "-"), ([3], "3"), ([0, 1, 2, 7, 9, 10], "0-2, 7, 9-10")])
def test_layers_are_named_in_ranges(numbers, text):
    assert ranges(numbers) == text


def test_a_run_of_atoms_is_named_by_its_ends():
    assert span("embed", "layers.11.mlp") == "embed…11.mlp"
    assert span("layers.4.attention", "layers.4.attention") == "4.attn"
