"""Heartbeats and silence as a table of moments."""

import pytest
from flexpipe.transport.liveness import Liveness, LivenessAction

WAIT, BEAT, LOST = LivenessAction.WAIT, LivenessAction.SEND_HEARTBEAT, LivenessAction.DECLARE_LOST


def run(*moments):
    """Play moments (time, "heard" | "sent" | "tick"); the actions of the ticks."""
    liveness = Liveness(heartbeat_interval_s=1.0, silence_s_max=4.0, now=0.0)
    actions = []
    for now, what in moments:
        if what == "tick":
            actions.append(liveness.tick(now))
        else:
            getattr(liveness, what)(now)
    return actions


@pytest.mark.parametrize(
    ("moments", "actions"),
    [
        ([(0.5, "tick")], [WAIT]),
        ([(1.0, "tick")], [BEAT]),
        ([(1.0, "tick"), (1.5, "tick"), (2.0, "tick")], [BEAT, WAIT, BEAT]),
        ([(0.9, "sent"), (1.0, "tick"), (1.9, "tick")], [WAIT, BEAT]),
        ([(1.0, "tick"), (2.0, "tick"), (3.0, "tick"), (4.0, "tick")], [BEAT, BEAT, BEAT, LOST]),
        ([(1.0, "tick"), (2.0, "tick"), (2.5, "heard"), (3.0, "tick"), (4.0, "tick")], [BEAT, BEAT, BEAT, BEAT]),
        # Asleep from 1 to 9: the peer cannot be blamed, and gets one interval to be heard.
        ([(1.0, "tick"), (9.0, "tick"), (9.5, "tick"), (10.0, "tick")], [BEAT, BEAT, WAIT, LOST]),
        ([(1.0, "tick"), (9.0, "tick"), (9.9, "heard"), (10.0, "tick")], [BEAT, BEAT, BEAT]),
    ],
)
def test_each_moment_has_its_action(moments, actions):
    assert run(*moments) == actions


def test_a_caller_that_sleeps_until_the_next_tick_always_finds_something_to_do():
    now = 1000.1
    liveness = Liveness(heartbeat_interval_s=0.1, silence_s_max=0.7, now=now)
    actions = []
    while LOST not in actions:
        now = liveness.next_tick_at
        actions.append(liveness.tick(now))
    assert WAIT not in actions
    assert actions.count(BEAT) >= 6
    assert liveness.silence_s(now) >= 0.7 - 1e-9


@pytest.mark.parametrize(("interval_s", "silence_s_max"), [(0, 1), (-1, 1), (0.6, 1)])
def test_limits_that_would_call_a_healthy_peer_lost_are_refused(interval_s, silence_s_max):
    with pytest.raises(ValueError, match="at most half"):
        Liveness(heartbeat_interval_s=interval_s, silence_s_max=silence_s_max, now=0)
