"""Numbers and names as people read them."""

import pytest
from flexpipe.commands.console import ranges, size, span, stage_table


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


def stage(replica, number):
    return {
        "replica": replica, "stage": number, "state": "serving", "pid": 7, "device": "cpu:0", "first_atom": "embed",
        "last_atom": "head", "weight_bytes": 0, "peak_rss_bytes": 0, "kv_pages_used": 0, "kv_pages_free": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "names"), [([(0, 0), (0, 1)], ["0", "1"]), ([(0, 0), (1, 0), (1, 1)], ["0.0", "1.0", "1.1"])]
)
def test_stages_are_numbered_within_their_replica_where_there_are_several(stages, names):
    table = stage_table([stage(*which) for which in stages])
    assert list(table.columns[0].cells) == names
