"""The link protocol alone: two machines, no wire, hand-made times."""

import pytest
from flexpipe.transport.frames import FrameKind, Hello, encode_frame, encode_hello
from flexpipe.transport.interface import FrameError, LinkClosedError, LinkLimits, PeerLostError
from flexpipe.transport.link_machine import LinkMachine, LinkState

LIMITS = LinkLimits(credit_messages=4, message_bytes_max=1000, heartbeat_interval_s=1, silence_s_max=4)


def machine(session=1, limits=LIMITS, now=0.0):
    return LinkMachine("under test", limits, session, now)


def deliver(segments, to, now=0.0):
    return to.frame_received([memoryview(bytes(segment)) for segment in segments], now)


def send(source, target, parts, now=0.0):
    size = source.measure(parts)
    segments = source.encode_message(parts)
    source.message_sent(size, now)
    return deliver(segments, target, now)


def joined(limits=LIMITS):
    one, two = machine(1, limits), machine(2, limits)
    answer = deliver(one.connected(0.0), two)
    assert deliver(answer, one) is not None
    assert (one.state, two.state) == (LinkState.UP, LinkState.UP)
    return one, two


def test_credit_comes_with_the_peer_and_returns_as_messages_are_taken():
    one, two = machine(1), machine(2)
    assert one.credit_left == 0
    one, two = joined()
    for left in (3, 2, 1, 0):
        send(one, two, [b"x"])
        assert one.credit_left == left
    assert two.take(0.0)[1] is None
    _, credit = two.take(0.0)
    deliver(credit, one)
    assert one.credit_left == 2


def test_a_message_going_back_carries_the_credit():
    one, two = joined()
    send(one, two, [b"x"])
    two.take(0.0)
    send(two, one, [b"answer"])
    assert one.credit_left == 4


def test_a_lost_credit_frame_is_made_good_by_the_next_heartbeat():
    one, two = joined()
    for _ in range(4):
        send(one, two, [b"x"])
    for _ in range(4):
        two.take(0.0)
    deliver(two.tick(1.0), one, 1.0)
    assert one.credit_left == 4


def test_a_repeated_hello_of_the_same_peer_changes_nothing():
    one, two = joined()
    send(one, two, [b"x"])
    deliver(encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(Hello(1, 4, 1000, 1.0))]), two)
    assert two.state is LinkState.UP
    assert two.has_message


def test_another_process_at_the_address_ends_the_link():
    _, two = joined()
    deliver(encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(Hello(99, 4, 1000, 1.0))]), two)
    assert isinstance(two.receive_error(), PeerLostError)
    assert "another process" in str(two.receive_error())


def test_a_second_connection_ends_the_link():
    one, _ = joined()
    one.connected(0.0)
    assert "exactly two ends" in str(one.send_error())


def test_a_connection_that_dies_before_the_hello_is_not_the_peer():
    one = machine()
    one.connected(0.0)
    one.disconnected()
    assert one.state is LinkState.AWAITING
    assert one.connected(0.0) is not None


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ((FrameKind.MESSAGE, 2, 0, [b"x"]), "sequence number 2, 1 was expected"),
        ((FrameKind.MESSAGE, 0, 0, [b"x"]), "sequence number 0, 1 was expected"),
        ((FrameKind.HEARTBEAT, 1, 0), "sequence number 1, 0 was expected"),
        ((FrameKind.CREDIT, 0, 1), "claims to have consumed 1 messages"),
        ((FrameKind.GOODBYE, 0, 0, [b"x"]), "has no parts"),
    ],
)
def test_each_breach_of_the_protocol_loses_the_peer_with_a_sentence(frame, sentence):
    _, two = joined()
    deliver(encode_frame(*frame), two)
    assert two.state is LinkState.LOST
    assert isinstance(two.receive_error(), FrameError)
    assert isinstance(two.send_error(), PeerLostError)
    assert sentence in str(two.receive_error())


@pytest.mark.parametrize("kind", [kind for kind in FrameKind if kind is not FrameKind.HELLO])
def test_nothing_may_come_before_the_hello(kind):
    one = machine()
    deliver(encode_frame(kind, 0, 0), one)
    assert "before the peer's HELLO" in str(one.receive_error())


def test_a_peer_that_overruns_its_credit_is_lost():
    _, two = joined()
    for sequence in range(1, 6):
        if two.is_open:
            deliver(encode_frame(FrameKind.MESSAGE, sequence, 0, [b"x"]), two)
    assert "more than the 4 messages" in str(two.receive_error())
    assert two.statistics().waiting_messages == 4


def test_consumption_never_runs_backwards():
    one, two = joined()
    for _ in range(2):
        send(one, two, [b"x"])
    deliver(encode_frame(FrameKind.CREDIT, 0, 2), one)
    deliver(encode_frame(FrameKind.CREDIT, 0, 1), one)
    assert "claims to have consumed 1 messages after 2" in str(one.receive_error())


def test_a_peer_whose_heartbeats_are_too_rare_is_refused():
    one = machine(limits=LinkLimits(heartbeat_interval_s=0.1, silence_s_max=0.5))
    deliver(encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(Hello(2, 4, 1000, 0.3))]), one)
    assert "too rarely" in str(one.receive_error())


def test_the_smaller_message_limit_of_both_ends_holds():
    one, two = machine(1), machine(2, LinkLimits(message_bytes_max=10, heartbeat_interval_s=1, silence_s_max=4))
    deliver(two.connected(0.0), one)
    one.measure([b"x" * 10])
    with pytest.raises(FrameError, match="limit of 10"):
        one.measure([b"x" * 11])


def test_silence_is_counted_from_the_hello_on():
    one = machine()
    assert one.tick(1000.0) is None
    assert one.state is LinkState.AWAITING
    deliver(encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(Hello(2, 4, 1000, 1.0))]), one, 1000.5)
    for now in (1001.5, 1002.5, 1003.5):
        assert one.tick(now) is not None
    one.tick(1004.5)
    assert "nothing was heard for 4.00 s" in str(one.receive_error())


def test_what_arrived_before_a_loss_can_still_be_taken_and_after_a_close_cannot():
    one, two = joined()
    send(one, two, [b"last words"])
    two.disconnected()
    assert two.has_message
    assert two.close(0.0) is None
    assert not two.has_message
    assert isinstance(two.receive_error(), LinkClosedError)
