"""Typed messages: what is sent comes back equal; what is garbage ends in one error, at a cost its own size bounds."""

import tracemalloc

import msgpack
import msgspec
import pytest
from flexpipe.transport.codec import Codec, CodecLimits
from flexpipe.transport.interface import FrameError
from hypothesis import given
from hypothesis import strategies as st


class Base(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    pass


class Point(msgspec.Struct, frozen=True, array_like=True):
    x: int
    y: float | None = None


class Plan(Base, tag=True):
    step: int
    rows: tuple[int, ...]
    table: bytes
    points: tuple[Point, ...] = ()
    pairs: tuple[tuple[int, float], ...] = ()


class Note(Base, tag=True):
    text: str
    inner: Plan | None = None


Kinds = Plan | Note
CODEC: Codec[Kinds] = Codec(Kinds)

WIRE_INTEGERS = st.integers(-(2**63), 2**64 - 1)
points = st.builds(Point, st.integers(-(2**63), 2**63 - 1), st.none() | st.floats(allow_nan=False))
plans = st.builds(
    Plan,
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(-(2**31), 2**31)).map(tuple),
    st.binary(),
    st.lists(points).map(tuple),
    st.lists(st.tuples(st.integers(0, 99), st.floats(allow_nan=False))).map(tuple),
)
messages = plans | st.builds(Note, st.text(), st.none() | plans)


@given(messages)
def test_a_message_comes_back_equal_from_bytes_and_from_a_view(message):
    data = CODEC.encode(message)
    assert CODEC.decode(data) == message
    assert CODEC.decode(memoryview(data)) == message


plain = st.recursive(
    st.none() | st.booleans() | WIRE_INTEGERS | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | WIRE_INTEGERS | st.binary(), inner),
    max_leaves=20,
)


@given(
    st.binary(max_size=300)
    | plain.filter(lambda value: not isinstance(value, dict) or "kind" not in value).map(msgpack.packb)
)
def test_garbage_raises_nothing_but_frame_errors(data):
    with pytest.raises(FrameError):
        CODEC.decode(data)


@given(messages, st.data())
def test_a_damaged_message_is_a_frame_error_or_a_valid_message(message, data):
    whole = bytearray(CODEC.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = CODEC.decode(bytes(whole))
    except FrameError:
        return
    assert isinstance(decoded, Plan | Note)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdc\xff\xff" * 900,  # arrays of 65,535 that hold arrays of 65,535 that hold ...
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xde\xff\xff" * 900,
        b"\x91" * 100_000,
        b"\xc9\xff\xff\xff\xff\x01",
    ],
)
def test_a_header_that_announces_the_moon_allocates_nothing(data):
    with pytest.raises(FrameError):
        CODEC.decode(data)  # the first call warms caches
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            CODEC.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000


LIMITS = CodecLimits(
    message_bytes_max=500, string_bytes_max=10, binary_bytes_max=20, array_items_max=3, map_items_max=8
)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (Note("x" * 11), "max_str_len"),
        (Plan(1, (), b"x" * 21), "max_bin_len"),
        (Plan(1, (1, 2, 3, 4), b""), "max_array_len"),
    ],
)
def test_each_length_limit_holds(message, sentence):
    with pytest.raises(FrameError, match=sentence):
        Codec(Kinds, LIMITS).decode(CODEC.encode(message))


def test_the_limit_of_the_whole_holds_both_ways():
    large = Plan(1, (), b"x" * 600)
    with pytest.raises(FrameError, match=r"Plan is 6\d\d bytes long, the limit is 500"):
        Codec(Kinds, LIMITS).encode(large)
    with pytest.raises(FrameError, match=r"6\d\d bytes long, the limit is 500"):
        Codec(Kinds, LIMITS).decode(CODEC.encode(large))


@pytest.mark.parametrize(
    ("plain_message", "sentence"),
    [
        ({"kind": "Plan", "step": "one", "rows": [], "table": b""}, "Expected `int`, got `str`"),
        ({"kind": "Plan", "step": 1, "rows": [], "table": b"", "extra": 1}, "unknown field"),
        ({"kind": "Missile"}, "Missile"),
        ({"step": 1}, "kind"),
        ({b"kind": "Note", "text": "x"}, "kind"),
    ],
)
def test_a_well_formed_value_of_the_wrong_shape_is_named(plain_message, sentence):
    with pytest.raises(FrameError, match=sentence):
        CODEC.decode(msgpack.packb(plain_message))


def test_bytes_after_the_message_are_refused():
    with pytest.raises(FrameError):
        CODEC.decode(CODEC.encode(Note("x")) + b"\x00")
