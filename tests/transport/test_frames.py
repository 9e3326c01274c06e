"""The envelope: round trips, and every lie a peer could tell in it."""

import struct

import pytest
from flexpipe.transport.frames import (
    FRAME_VERSION,
    PART_ALIGNMENT_BYTES,
    PARTS_MAX,
    SEPARATE_BYTES_MIN,
    FrameKind,
    Hello,
    decode_frame,
    decode_hello,
    encode_frame,
    encode_hello,
)
from flexpipe.transport.interface import FrameError
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 1 << 20


def over_the_wire(segments):
    return [memoryview(bytes(segment)) for segment in segments]


def envelope(magic=b"FP", version=FRAME_VERSION, kind=2, count=0, sequence=1, consumed=0, rest=b""):
    return [memoryview(struct.pack("<2sBBIQQ", magic, version, kind, count, sequence, consumed) + rest)]


@given(
    st.sampled_from(FrameKind),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.lists(st.binary(max_size=50) | st.just(b"x" * SEPARATE_BYTES_MIN), max_size=8),
)
def test_a_frame_comes_back_as_it_was(kind, sequence, consumed, parts):
    frame = decode_frame(over_the_wire(encode_frame(kind, sequence, consumed, parts)), LIMIT)
    assert (frame.kind, frame.sequence, frame.consumed) == (kind, sequence, consumed)
    assert [bytes(part) for part in frame.parts] == parts


def test_large_parts_are_referred_to_and_small_ones_share_the_envelope():
    large = bytearray(SEPARATE_BYTES_MIN)
    segments = encode_frame(FrameKind.MESSAGE, 1, 0, [b"a", large, b"b"])
    assert len(segments) == 2
    assert segments[1].obj is large


def test_small_parts_are_aligned_in_the_envelope():
    segments = over_the_wire(encode_frame(FrameKind.MESSAGE, 1, 0, [b"abc", b"defgh", b"i" * 9]))
    whole = bytes(segments[0])
    assert [whole.index(part) % PART_ALIGNMENT_BYTES for part in (b"abc", b"defgh", b"iii")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("segments", "sentence"),
    [
        ([], "no segments"),
        ([memoryview(b"FP")], "its header alone needs 24"),
        (envelope(magic=b"GE"), "not one of ours"),
        (envelope(version=9), "speaks frame version 9, this end 1"),
        (envelope(kind=77), "kind 77 is unknown"),
        (envelope(count=PARTS_MAX + 1), "the limit is 64"),
        (envelope(count=2**32 - 1), "the limit is 64"),
        (envelope(count=2, rest=bytes(15)), "table of 2 part sizes"),
        (envelope(rest=b"x"), "bytes follow its header"),
        ([*envelope(), memoryview(b"x")], "bytes follow its header"),
        (envelope(count=1, rest=struct.pack("<Q", 5)), "5 bytes was announced and 0 came"),
        (envelope(count=1, rest=struct.pack("<Q", 2**63)), "the link's limit"),
        (envelope(count=2, rest=struct.pack("<2Q", 2**64 - 1, 2**64 - 1)), "the link's limit"),
        (envelope(count=1, rest=struct.pack("<Q", SEPARATE_BYTES_MIN)), "announced and did not come"),
        ([*envelope(count=1, rest=struct.pack("<Q", SEPARATE_BYTES_MIN)), memoryview(b"short")], "and 5 came"),
        (envelope(count=1, rest=struct.pack("<Q", 1) + bytes(9)), "more bytes came"),
        ([*envelope(count=1, rest=struct.pack("<Q", 8) + bytes(8)), memoryview(b"x")], "more bytes came"),
    ],
)
def test_each_lie_is_found_out_with_a_sentence(segments, sentence):
    with pytest.raises(FrameError, match=sentence):
        decode_frame(segments, LIMIT)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_raises_nothing_but_frame_errors(segments):
    try:
        decode_frame([memoryview(segment) for segment in segments], LIMIT)
    except FrameError:
        return


@given(st.data())
def test_one_changed_byte_is_an_error_or_another_valid_frame(data):
    whole = bytearray(encode_frame(FrameKind.MESSAGE, 3, 2, [b"abc", b"de"])[0])
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        frame = decode_frame([memoryview(bytes(whole))], LIMIT)
    except FrameError:
        return
    assert sum(len(part) for part in frame.parts) <= len(whole)


def test_a_hello_comes_back_and_impossible_ones_are_refused():
    hello = Hello(2**64 - 1, 64, 1000, 0.25)
    assert (
        decode_hello(decode_frame(over_the_wire(encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(hello)])), LIMIT))
        == hello
    )
    for bad in (Hello(1, 0, 1, 1.0), Hello(1, 1, 0, 1.0), Hello(1, 1, 1, float("nan")), Hello(1, 1, 1, -1.0)):
        frame = decode_frame(over_the_wire(encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(bad)])), LIMIT)
        with pytest.raises(FrameError, match="impossible limits"):
            decode_hello(frame)
    with pytest.raises(FrameError, match="size of a hello"):
        decode_hello(decode_frame(over_the_wire(encode_frame(FrameKind.HELLO, 0, 0, [b"x"])), LIMIT))
