"""Sealed frames: what comes through, and everything that must not."""

import pytest
from flexpipe.transport.interface import SEAL_BYTES, FrameError
from flexpipe.transport.seal import OPENING_BYTES_MAX, SEALED_BYTES_EXTRA, TAG_BYTES, Seal
from hypothesis import given
from hypothesis import strategies as st

SECRET = bytes(range(SEAL_BYTES))


def over_the_wire(segments):
    return [memoryview(bytes(segment)) for segment in segments]


def sent(source, target, *segments):
    return [bytes(segment) for segment in target.open(over_the_wire(source.seal(segments)))]


def pair(**limits):
    """Two ends that have said hello to each other."""
    one, two = Seal(SECRET, binds=True, **limits), Seal(SECRET, binds=False, **limits)
    assert sent(one, two, b"hello") == [b"hello"]
    assert sent(two, one, b"hello back") == [b"hello back"]
    return one, two


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=5))
def test_a_frame_comes_out_as_it_went_in_and_a_little_longer_on_its_way(segments):
    one, two = pair()
    sealed = one.seal(segments)
    assert sum(map(len, sealed)) - sum(map(len, segments)) == SEALED_BYTES_EXTRA + TAG_BYTES * (len(segments) - 1)
    assert [bytes(segment) for segment in two.open(over_the_wire(sealed))] == segments


def test_what_comes_out_may_be_written_to():
    one, two = pair()
    (opened,) = two.open(over_the_wire(one.seal([b"abc"])))
    opened[0] = 0


def test_nothing_that_was_said_shows_on_the_wire():
    one, _ = pair()
    words = b"a secret of some length"
    assert all(words not in bytes(segment) for segment in one.seal([words, words * 3000]))


@given(st.data())
def test_one_changed_bit_anywhere_is_found_out_and_changes_nothing(data):
    one, two = pair()
    sealed = [bytearray(segment) for segment in one.seal([b"first", b"x" * 100])]
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place][data.draw(st.integers(0, len(sealed[place]) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameError):
        two.open(over_the_wire(sealed))
    assert sent(one, two, b"goes on") == [b"goes on"]


def test_segments_cannot_be_left_out_added_or_exchanged():
    one, two = pair()
    sealed = one.seal([b"a" * 50, b"b" * 50, b"c" * 50])
    for wrong in (sealed[:2], [*sealed, sealed[2]], [sealed[0], sealed[2], sealed[1]], sealed[:1], []):
        with pytest.raises(FrameError):
            two.open(over_the_wire(wrong))


def test_a_frame_that_comes_twice_or_late_is_refused():
    one, two = pair()
    first, second = (over_the_wire(one.seal([word])) for word in (b"first", b"second"))
    two.open(second)
    for late in (second, first):
        with pytest.raises(FrameError, match="repeated or held back"):
            two.open(late)


def test_a_frame_cannot_be_turned_back_to_its_sender():
    one, two = pair()
    with pytest.raises(FrameError):
        one.open(over_the_wire(one.seal([b"mine"])))
    assert sent(two, one, b"yours") == [b"yours"]


def test_another_secret_opens_nothing():
    one, stranger = Seal(SECRET, binds=True), Seal(bytes(SEAL_BYTES), binds=False)
    with pytest.raises(FrameError, match="not sealed with this link's key"):
        sent(one, stranger, b"hello")


def test_a_recorded_link_cannot_be_played_to_an_end_that_lives_now():
    one, two = Seal(SECRET, binds=True), Seal(SECRET, binds=False)
    recorded = [over_the_wire(one.seal([b"hello"]))]
    two.open(recorded[0])
    sent(two, one, b"hello back")
    recorded += [over_the_wire(one.seal([b"pay 100"])) for _ in range(3)]
    again = Seal(SECRET, binds=False)
    again.open(recorded[0])  # a hello is all that an old link can say
    for frame in recorded[1:]:
        with pytest.raises(FrameError):
            again.open(frame)


def test_before_the_salts_are_exchanged_only_a_hello_comes_through():
    one, two = Seal(SECRET, binds=True), Seal(SECRET, binds=False)
    for early in ([b"x" * OPENING_BYTES_MAX], [b"a", b"b"]):
        with pytest.raises(FrameError, match="is no hello"):
            two.open(over_the_wire(one.seal(early)))


def test_a_frame_of_another_link_under_the_same_secret_is_refused():
    _, two = pair()
    other, _ = pair()
    with pytest.raises(FrameError, match="belongs to another link"):
        sent(other, two, b"x")


def test_an_old_hello_is_refused_once_the_ends_talk():
    one, two = Seal(SECRET, binds=True), Seal(SECRET, binds=False)
    first, second = (over_the_wire(one.seal([word])) for word in (b"hello", b"hello again"))
    two.open(first)
    sent(two, one, b"hello back")
    sent(one, two, b"talk")
    with pytest.raises(FrameError, match="generation 0 after 1"):
        two.open(second)


@pytest.mark.parametrize("limits", [{"rekey_frames": 3}, {"rekey_bytes": 1000}])
def test_keys_are_replaced_after_so_many_frames_or_bytes(limits):
    one, two = pair(**limits)
    for number in range(20):
        assert sent(one, two, bytes(400), bytes([number])) == [bytes(400), bytes([number])]
    assert one.generation >= 7
    assert sent(two, one, b"the other way") == [b"the other way"]
    assert two.generation == 1


def test_a_frame_larger_than_a_key_may_seal_takes_a_key_of_its_own():
    one, two = pair(rekey_bytes=10)
    for _ in range(3):
        assert sent(one, two, bytes(100)) == [bytes(100)]
    assert one.generation == 3


def test_an_old_key_is_gone_once_the_next_one_was_used():
    one, two = pair(rekey_frames=2)
    frames = [over_the_wire(one.seal([bytes([number])])) for number in range(4)]
    two.open(frames[1])
    two.open(frames[3])
    with pytest.raises(FrameError, match="generation 1 after 2"):
        two.open(frames[0])


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_raises_nothing_but_frame_errors(segments):
    _, two = pair()
    with pytest.raises(FrameError):
        two.open([memoryview(segment) for segment in segments])


def test_a_secret_of_another_size_is_refused():
    with pytest.raises(ValueError, match="a seal has 32 bytes, this one 5"):
        Seal(b"short", binds=True)
