"""Traces of arrivals: those that come with FlexPipe, a user's own, and files that are none."""

import gzip

import numpy as np
import pytest
from flexpipe.sim.arrival_trace import AZURE_CODE, TraceError, bundled, read_trace


def written(tmp_path, text, name="trace.csv"):
    file = tmp_path / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


def test_the_bundled_trace_has_the_requests_of_its_source():
    trace = bundled(AZURE_CODE)
    assert len(trace) == 8819
    assert trace.input_tokens.mean() == pytest.approx(2048, abs=1)
    assert trace.output_tokens.mean() == pytest.approx(27.9, abs=0.05)


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_file_may_be_gzipped_and_have_more_columns_in_any_order(tmp_path, name):
    trace = read_trace(written(tmp_path, "input_tokens,arrival_s,client,output_tokens\n7,0.5,x,3\n8,1.5,y,1\n", name))
    assert trace.arrival_s.tolist() == [0.5, 1.5]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([7, 8], [3, 1])


def test_a_trace_can_be_cut_hastened_and_shortened(tmp_path):
    trace = read_trace(written(tmp_path, "arrival_s,input_tokens,output_tokens\n1,64,9\n10,65,3\n12,1,1\n20,5,5\n"))
    short = trace.between(10, 20).faster(2).shorter(32, 4)
    assert short.arrival_s.tolist() == [0, 1]
    assert (short.input_tokens.tolist(), short.output_tokens.tolist()) == ([2, 1], [1, 1])
    assert np.array_equal(trace.arrival_s, [1, 10, 12, 20])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no columns arrival_s"),
        ("a,b\n1,2\n", "no columns arrival_s"),
        ("arrival_s,input_tokens,output_tokens\n", "no request"),
        ("arrival_s,input_tokens,output_tokens\n1,2\n", "line 2"),
        ("arrival_s,input_tokens,output_tokens\n1,2,3\nx,2,3\n", "line 3"),
        ("arrival_s,input_tokens,output_tokens\n2,2,3\n1,2,3\n", "order of arrival"),
        ("arrival_s,input_tokens,output_tokens\nnan,2,3\n", "no number"),
        ("arrival_s,input_tokens,output_tokens\n-1,2,3\n", "before time 0"),
        ("arrival_s,input_tokens,output_tokens\n1,0,3\n", "without tokens"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path, text, says):
    with pytest.raises(TraceError, match=says):
        read_trace(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "nothing.csv")
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(broken)


def test_a_bundled_trace_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(TraceError, match=AZURE_CODE):
        bundled("unheard_of")
