"""`flexpipe map` as a person or a script meets it: pictures, facts, files, and every wrong argument in one sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.actors.discovery import discover_node
from flexpipe.commands.map import show_map
from flexpipe.commands.map_drawing import draw, svg_text
from flexpipe.commands.map_terminal import NODE_ROWS_MAX, RACK_ROWS_MAX, terminal_picture
from flexpipe.commands.map_words import FREE_CLASSES, free_classes, summary_lines
from flexpipe.policies.cluster.cluster_map import cluster_map
from flexpipe.policies.cluster.device_facts import DeviceFacts, NodeFacts
from flexpipe.policies.cluster.map_summary import summarise
from flexpipe.sim.synthetic_map import SyntheticMap
from recorded_nvml import four_a10_on_two_sockets
from rich.console import Console

GIB = 1 << 30


def cluster(*free_percents, island=lambda place: ""):
    return cluster_map(
        [
            DeviceFacts(f"g{place}", "node", 100 * GIB, percent * GIB, island=island(place))
            for place, percent in enumerate(free_percents)
        ]
    )


def printed(picture, width=100):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


def test_a_device_is_a_cell_whose_glyph_says_how_much_is_free():
    assert "··░░▒▒▓▓██" in printed(terminal_picture(cluster(0, 20, 30, 60, 90)))


@pytest.mark.parametrize(("percent", "place"), [(0, 0), (1, 1), (24, 1), (25, 2), (50, 3), (84, 3), (85, 4), (100, 4)])
def test_classes_begin_where_they_say(percent, place):
    assert free_classes(cluster(percent)).tolist() == [place]
    assert FREE_CLASSES[place].least <= percent / 100


def test_islands_of_a_node_stand_apart():
    assert "████ ████" in printed(terminal_picture(discover_node(library=four_a10_on_two_sockets())))


def test_a_large_cluster_is_drawn_by_racks_and_a_very_large_one_by_groups_of_them():
    large = printed(terminal_picture(SyntheticMap("random", 0.7, NODE_ROWS_MAX + 1).draw()))
    assert "rack-1" in large
    assert "node-" not in large
    huge = printed(terminal_picture(SyntheticMap("random", 0, 32 * (RACK_ROWS_MAX + 1)).draw()))
    assert "rack-0…1" in huge
    assert len(huge.splitlines()) == RACK_ROWS_MAX + 2


@pytest.mark.parametrize("nodes", [NODE_ROWS_MAX, 1000, 20 * 32 * RACK_ROWS_MAX])
def test_a_picture_fits_eighty_columns(nodes):
    devices = [DeviceFacts(f"{node}/{gpu}", f"node-{node:05d}", 80 * GIB, 0) for node in range(nodes) for gpu in (0, 7)]
    racks = [NodeFacts(f"node-{node:05d}", f"rack-{node // 32}") for node in range(nodes)]
    lines = printed(terminal_picture(cluster_map(devices, racks)), width=80).splitlines()
    assert all(line.rstrip().endswith("0 B") for line in lines[1:-1])


def test_the_summary_counts_what_the_picture_shows():
    told = summarise(cluster(100, 90, 50, 0), [40 * GIB, 60 * GIB])
    assert summary_lines(told) == [
        "4 devices, 1 node, 1 rack: 240 GiB free of 400 GiB (60%), the largest piece 100 GiB",
        "devices wholly free: 1 (25%); at least 85% free: 2 (50%)",
        "nodes with at least 1, 4, 8 devices 85% free: 1, 0, 0 of 1",
        "free memory in pieces too small: 0% for stages of 40.0 GiB, 21% for stages of 60.0 GiB",
    ]
    assert summary_lines(summarise(cluster_map([]))) == ["no devices"]


def test_facts_for_machines_are_a_map_that_is_read_again(tmp_path, capsys):
    assert show_map(synthetic="fgd:60", nodes=20, json=True) == 0
    first = capsys.readouterr().out
    (tmp_path / "map.json").write_text(first)
    assert show_map(from_file=tmp_path / "map.json", json=True) == 0
    assert capsys.readouterr().out == first
    facts = json.loads(first)
    assert facts["summary"]["devices"] == len(facts["devices"])
    assert facts["summary"]["nodes"] == 20


def test_named_devices_are_shown_with_what_was_stated_for_them(capsys):
    assert show_map(devices="cpu:2x2GiB,cpu:1x512MiB", stage_sizes="1GiB") == 0
    said = capsys.readouterr().out
    assert re.search(r"cpu:2\s+CPU\s+512 MiB\s+512 MiB", said)
    assert "4.5 GiB free of 4.5 GiB (100%)" in said
    assert "11% for stages of 1.0 GiB" in said


def squares_of(path):
    return path.get("d").count("M")


def test_the_svg_has_a_square_for_each_device_and_each_class_of_the_legend():
    told = SyntheticMap("random", 0.7, 60).draw()
    root = ET.fromstring(svg_text(draw(told, "a <title> & more", ["a line"])))
    paths = {path.get("fill"): path for path in root.iter("{http://www.w3.org/2000/svg}path")}
    counts = np.bincount(free_classes(told), minlength=len(FREE_CLASSES))
    assert [squares_of(paths[each.on_paper]) for each in FREE_CLASSES] == (counts + 1).tolist()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <title> & more", "a line", "rack-0", "rack-1"} <= set(texts)


@pytest.mark.parametrize("told", [cluster_map([]), cluster(5), SyntheticMap("bestfit", 0.5, 500).draw()])
def test_every_square_lies_inside_the_drawing_and_none_on_another(told):
    drawing = draw(told, "title", ["line"])
    far = drawing.corners + drawing.sides[:, None]
    assert (drawing.corners >= 0).all()
    assert (far <= [drawing.width, drawing.height]).all()
    assert len(np.unique(drawing.corners, axis=0)) == len(drawing.corners) == told.devices + len(FREE_CLASSES)
    assert all(label.x < drawing.width and label.y < drawing.height for label in drawing.labels)


def test_both_kinds_of_picture_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    show_map(synthetic="random:50", nodes=10, svg=tmp_path / "map.svg", png=tmp_path / "map.png")
    assert (tmp_path / "map.svg").read_text().startswith("<svg")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"synthetic": "random:70", "devices": "cpu:1"}, "--synthetic and --devices name different maps"),
        ({"synthetic": "sorted:70"}, "is no synthetic map"),
        ({"synthetic": "random:70", "nodes": -3}, "of -3 nodes"),
        ({"devices": "cpu:1xnan"}, "states no memory that a worker could have"),
        ({"devices": "cpu:1", "stage_sizes": "0"}, "a stage has some bytes at least"),
        ({"devices": "cpu:1", "stage_sizes": "-4GiB"}, "'-4GiB' is no size"),
        ({"devices": "cpu:1", "svg": "/nowhere/map.svg"}, "cannot be written"),
        ({"from_file": "nowhere.csv"}, "cannot be read as a map"),
        ({"from_file": "nowhere.csv", "rack_nodes": 0}, "rack-nodes is 0"),
        ({"from_file": "nowhere.csv", "gpu_memory": ("T4",)}, "gpu-memory is 'T4'"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(options, sentence, tmp_path):
    paths = {name: Path(options[name]) for name in ("from_file", "svg") if name in options}
    with pytest.raises(ConfigError, match=sentence) as refusal:
        show_map(**(options | paths))
    assert "\n" not in str(refusal.value)


def test_misuse_ends_with_2_and_no_traceback(tmp_path):
    (tmp_path / "bad.csv").write_text("node,model,gpu_idx,free_milli\na,T4,0,nan\n")
    ended = subprocess.run(
        [sys.executable, "-m", "flexpipe.cli", "map", "--from", str(tmp_path / "bad.csv")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "line 2: free_milli is nan" in ended.stderr
    assert "Traceback" not in ended.stderr
