"""Maps in files: what is read, what is written and read again, and every file that is none."""

import gzip
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from flexpipe.policies.cluster.cluster_map import cluster_map
from flexpipe.policies.cluster.device_facts import DeviceFacts, MapError, NodeFacts
from flexpipe.sim.map_file import document, read_map

GIB = 1 << 30
TABLE = """node,model,gpu_idx,free_milli,node_free_cpu_milli
a,T4,0,250,1000
a,T4,1,1000,1000
b,V100M32,0,0,500
"""


def written(tmp_path, text, name="map.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_table_states_shares_of_the_models_memory(tmp_path):
    told = read_map(written(tmp_path, TABLE))
    assert told.device_names == ("a/0", "a/1", "b/0")
    assert told.free_bytes.tolist() == [4 * GIB, 16 * GIB, 0]
    assert told.total_bytes.tolist() == [16 * GIB, 16 * GIB, 32 * GIB]
    assert told.speed[2] > told.speed[0]


def test_a_packed_table_is_the_same(tmp_path):
    packed = read_map(written(tmp_path, gzip.compress(TABLE.encode()), "map.csv.gz"))
    assert np.array_equal(packed.free_bytes, read_map(written(tmp_path, TABLE)).free_bytes)


def test_racks_are_runs_of_nodes_unless_the_table_names_them(tmp_path):
    assert read_map(written(tmp_path, TABLE)).racks == 1
    assert read_map(written(tmp_path, TABLE), nodes_of_a_rack=1).rack_names == ("rack-0", "rack-1")
    named = TABLE.replace("milli\n", "milli,rack\n").replace("1000\n", "1000,east\n").replace("500\n", "500,west\n")
    assert read_map(written(tmp_path, named)).rack_names == ("east", "west")


def test_memory_that_the_user_states_goes_first(tmp_path):
    told = read_map(written(tmp_path, TABLE.replace("V100M32", "Z9")), {"Z9": 5 * GIB, "T4": 8 * GIB})
    assert told.total_bytes.tolist() == [8 * GIB, 8 * GIB, 5 * GIB]


def test_a_map_that_was_written_reads_as_itself(tmp_path):
    facts = DeviceFacts("a/0", "a", 8 * GIB, 5 * GIB, model="T4", island="0", speed=0.5, slowdown=0.25)
    nodes = [NodeFacts("a", "east", 1e9, 2e9), NodeFacts("b", "west")]
    told = cluster_map([facts, replace(facts, name="a/1", island="1"), replace(facts, name="b/0", node="b")], nodes)
    again = read_map(written(tmp_path, msgspec.json.encode(document(told)), "map.json"))
    assert document(again) == document(told)
    assert again.distance(0, 1) == told.distance(0, 1)


def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(MapError, match=r"nowhere\.csv cannot be read as a map"):
        read_map(tmp_path / "nowhere.csv")
    with pytest.raises(MapError, match="cannot be read"):
        read_map(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "lacks the columns node, model, gpu_idx, free_milli"),
        ("node,model\na,T4\n", "lacks the columns gpu_idx, free_milli"),
        (TABLE.splitlines()[0] + "\n", "an empty map"),
        (TABLE.replace("250", "nan"), "line 2: free_milli is nan"),
        (TABLE.replace("250", "-1"), "line 2: free_milli is -1"),
        (TABLE.replace("250", "1001"), "line 2: free_milli is 1001"),
        (TABLE.replace("250", "inf"), "line 2: free_milli is inf"),
        (TABLE.replace("250", "many"), "line 2: could not convert"),
        (TABLE.replace("250", ""), "line 2: a row needs node, model, gpu_idx, free_milli"),
        (TABLE + "c\n", "line 5: a row needs"),
        (TABLE + "a,T4,1,0,0\n", "two devices are called 'a/1'"),
        (TABLE.replace("V100M32", "Z9"), "line 4: nobody knows how much memory a Z9 has; say it with --gpu-memory"),
        (b"\xff\xfe\x00", "cannot be read as a map"),
        (b"\x1f\x8b broken", "cannot be read as a map"),
        (gzip.compress(TABLE.encode())[:-9], "cannot be read as a map"),
        ("{", "is no map"),
        ("{}", "is no map"),
        ('{"devices": 3}', "is no map"),
        ('{"devices": [{"name": "a", "node": "n", "total_bytes": 5, "free_bytes": 6}]}', "no more can be free"),
        ('{"devices": [{"name": "a", "node": "n", "total_bytes": -5, "free_bytes": -6}]}', "-5 bytes of total"),
        ('{"devices": [{"name": "a", "node": "n", "total_bytes": NaN, "free_bytes": 0}]}', "is no map"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_map_is_refused_in_one_sentence(tmp_path, content, sentence):
    with pytest.raises(MapError, match=sentence) as refusal:
        read_map(written(tmp_path, content))
    assert "\n" not in str(refusal.value)


def test_a_node_is_in_one_rack(tmp_path):
    torn = "node,model,gpu_idx,free_milli,rack\na,T4,0,1,east\na,T4,1,1,west\n"
    with pytest.raises(MapError, match="line 3: node a is in east and in west"):
        read_map(written(tmp_path, torn))
