"""Who leads, event by event: the table, what a leader may do, and what random histories may never do."""

import itertools
import random

import pytest
from flexpipe.actors.cluster.cluster_store import LeaderRecord
from flexpipe.actors.cluster.leadership_events import (
    BeginDuties,
    ClaimRefused,
    ClaimWon,
    DutiesEnded,
    EndDuties,
    Entered,
    Finish,
    KeepAlive,
    Kept,
    Lapsed,
    LeaderSeen,
    MakeClaim,
    Overtaken,
    Reclaim,
    Resign,
    Resigned,
    SetTimer,
    StopAsked,
    StoreSilent,
    TermHeard,
    TimerFired,
    Unanswered,
)
from flexpipe.actors.cluster.leadership_machine import (
    LEADS,
    Deed,
    LeadershipMachine,
    LeadershipOrderError,
    LeadershipState,
)

TTL_S = 3.0
ME, OTHER = LeaderRecord("n1", "tcp://1", 5), LeaderRecord("n2", "tcp://2", 9)


def told(machine, *events):
    """What the last event brings about, less the log's part."""
    instructions = []
    for event in events:
        instructions = [i for i in machine.handle(event) if not isinstance(i, Entered)]
    return instructions


def fire(machine, timer):
    """Let the timer that was set last fire."""
    return told(machine, TimerFired(timer, machine._numbers[timer]))


def following():
    return LeadershipMachine(TTL_S)


def candidate():
    machine = following()
    (timer,) = told(machine, LeaderSeen(None))
    assert timer == SetTimer("claim", timer.number, 0.0)
    assert fire(machine, "claim") == [MakeClaim()]
    return machine


def leading(term=5):
    machine = candidate()
    begin, timer = told(machine, ClaimWon(term))
    assert begin == BeginDuties(term)
    assert timer == SetTimer("keep-alive", timer.number, 1.0)
    assert told(machine, LeaderSeen(ME)) == []
    return machine


def blind():
    machine = leading()
    assert fire(machine, "keep-alive") == [KeepAlive()]
    (timer,) = told(machine, Unanswered("etcd is silent"))
    assert timer == SetTimer("keep-alive", timer.number, 0.5)
    return machine


def stepped_down():
    machine = leading()
    told(machine, TermHeard(6, "n3"))
    return machine


def test_a_claim_is_made_at_once_where_nobody_is_seen_to_lead():
    machine = leading()
    assert (machine.state, machine.term) == (LeadershipState.LEADING, 5)


def test_who_sees_a_leader_makes_no_claim():
    machine = following()
    assert told(machine, LeaderSeen(OTHER)) == []
    assert machine.state is LeadershipState.FOLLOWING
    machine = candidate()
    assert told(machine, LeaderSeen(OTHER), ClaimRefused("n2 leads already")) == []
    assert machine.state is LeadershipState.FOLLOWING


def test_after_a_silence_of_the_store_the_old_leader_has_a_claims_life_to_come_back():
    machine = following()
    told(machine, LeaderSeen(OTHER), StoreSilent("no answer"))
    (timer,) = told(machine, LeaderSeen(None))
    assert timer.after_s == TTL_S
    assert told(machine, LeaderSeen(OTHER)) == []
    assert fire(machine, "claim") == []  # it came back
    (timer,) = told(machine, LeaderSeen(None))
    assert timer.after_s == 0.0


def test_a_refused_claim_is_tried_again_where_no_leader_is_seen():
    machine = candidate()
    (timer,) = told(machine, ClaimRefused("n2 leads already"))
    assert timer.after_s == 0.5
    assert fire(machine, "claim") == [MakeClaim()]


def test_a_leader_keeps_its_claim_alive():
    machine = leading()
    for _ in range(3):
        assert fire(machine, "keep-alive") == [KeepAlive()]
        (timer,) = told(machine, Kept())
        assert timer == SetTimer("keep-alive", timer.number, 1.0)
    assert machine.state is LeadershipState.LEADING


def test_a_leader_without_its_store_serves_and_changes_nothing():
    machine = blind()
    assert machine.may(Deed.SERVE)
    assert not machine.may(Deed.CHANGE)
    assert fire(machine, "keep-alive") == [KeepAlive()]
    told(machine, Kept())
    assert machine.state is LeadershipState.LEADING
    assert machine.may(Deed.CHANGE)


@pytest.mark.parametrize("make", [following, candidate, stepped_down])
def test_who_does_not_lead_may_do_nothing(make):
    assert not any(make().may(deed) for deed in Deed)


def test_a_claim_that_lapsed_is_made_anew_in_its_term():
    machine = blind()
    fire(machine, "keep-alive")
    assert told(machine, Lapsed("the lease ran out")) == [Reclaim()]
    told(machine, Kept())
    assert (machine.state, machine.term) == (LeadershipState.LEADING, 5)


@pytest.mark.parametrize("make", [leading, blind])
def test_who_was_overtaken_steps_down_and_wants_to_lead_again_once_its_duties_ended(make):
    machine = make()
    fire(machine, "keep-alive")
    told(machine, Lapsed("the lease ran out"))
    assert told(machine, Overtaken("n2 led since")) == [EndDuties("n2 led since")]
    assert machine.state is LeadershipState.STEPPED_DOWN
    assert told(machine, LeaderSeen(OTHER), LeaderSeen(None)) == []  # not yet
    (timer,) = told(machine, DutiesEnded())
    assert timer == SetTimer("claim", timer.number, 0.0)
    assert fire(machine, "claim") == [MakeClaim()]


@pytest.mark.parametrize("event", [LeaderSeen(OTHER), TermHeard(9, "n3")])
@pytest.mark.parametrize("make", [leading, blind])
def test_a_higher_term_from_anybody_ends_a_leadership_at_once(make, event):
    machine = make()
    (end,) = told(machine, event)
    assert isinstance(end, EndDuties)
    assert told(machine, DutiesEnded()) == [Resign()]
    assert told(machine, Resigned()) == []
    assert machine.state is LeadershipState.FOLLOWING


@pytest.mark.parametrize("event", [LeaderSeen(ME), LeaderSeen(None), TermHeard(5, "n3"), TermHeard(4, "n3")])
def test_ones_own_term_and_older_ones_end_nothing(event):
    machine = leading()
    assert told(machine, event) == []
    assert machine.state is LeadershipState.LEADING


def test_who_stops_ends_its_duties_then_gives_its_claim_back_then_finishes():
    machine = leading()
    fire(machine, "keep-alive")
    assert told(machine, StopAsked("the node is drained")) == [EndDuties("the node is drained")]
    assert told(machine, DutiesEnded()) == []  # the store is being asked
    assert told(machine, Kept()) == [Resign()]
    assert told(machine, Resigned()) == [Finish()]


def test_duties_that_end_by_themselves_end_it_all():
    machine = leading()
    assert told(machine, DutiesEnded()) == [Resign()]
    assert told(machine, Resigned()) == [Finish()]
    assert machine.state is LeadershipState.RETIRED


def test_a_claim_that_is_granted_to_who_stopped_meanwhile_is_given_back():
    machine = candidate()
    assert told(machine, StopAsked("bye")) == []
    assert told(machine, ClaimWon(5)) == [Resign()]
    assert told(machine, Resigned()) == [Finish()]


def test_who_follows_stops_at_once():
    assert told(following(), StopAsked("bye")) == [Finish()]


@pytest.mark.parametrize(
    "event", [ClaimWon(1), ClaimRefused(""), Kept(), Lapsed(""), Overtaken(""), Unanswered(""), Resigned()]
)
def test_an_answer_that_nobody_asked_for_is_our_bug_and_changes_nothing(event):
    machine = leading()
    with pytest.raises(LeadershipOrderError):
        machine.handle(event)
    assert machine.state is LeadershipState.LEADING
    assert fire(machine, "keep-alive") == [KeepAlive()]


def test_a_timer_that_was_set_before_another_one_is_too_late():
    machine = leading()
    number = machine._numbers["keep-alive"]
    fire(machine, "keep-alive")
    told(machine, Kept())
    assert told(machine, TimerFired("keep-alive", number)) == []


ANSWERS = {
    MakeClaim: (ClaimWon(0), ClaimRefused("no"), Unanswered("?")),
    KeepAlive: (Kept(), Lapsed("ran out"), Unanswered("?")),
    Reclaim: (Kept(), Overtaken("n2 led"), Unanswered("?")),
    Resign: (Resigned(),),
}


class History:
    """A machine, and what is under way around it."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.machine = LeadershipMachine(TTL_S)
        self.question = None
        self.timers = []
        self.duties = 0
        self.ended = False
        self._terms = itertools.count(1)

    def answer(self, place=None):
        """The store answers; the first answer of each kind is what was hoped for."""
        answers, self.question = ANSWERS[self.question], None
        answer = self.chance.choice(answers) if place is None else answers[place]
        self.tell(ClaimWon(next(self._terms)) if isinstance(answer, ClaimWon) else answer)

    def end_duties(self):
        self.duties -= 1
        self.tell(DutiesEnded())

    def tell(self, event):
        for instruction in self.machine.handle(event):
            match instruction:
                case MakeClaim() | KeepAlive() | Reclaim() | Resign():
                    assert self.question is None
                    self.question = type(instruction)
                case BeginDuties():
                    self.duties += 1
                case SetTimer(timer, number, _):
                    self.timers.append(TimerFired(timer, number))
                case Finish():
                    self.ended = True
        assert self.duties == (self.machine.state in LEADS | {LeadershipState.STEPPED_DOWN})

    def go_on(self):
        """Something that can happen now."""
        if self.question is not None and self.chance.random() < 0.5:
            return self.answer()
        if self.duties and self.machine.state is LeadershipState.STEPPED_DOWN and self.chance.random() < 0.5:
            return self.end_duties()
        if self.chance.random() < 0.003:
            return self.tell(StopAsked("bye"))
        seen = [LeaderSeen(None), LeaderSeen(LeaderRecord("n2", "a", next(self._terms))), StoreSilent("?")]
        return self.tell(self.chance.choice([*seen, TermHeard(self.chance.randrange(5), "n3"), *self.timers[-2:] * 3]))

    def settle(self):
        """From now on nothing goes wrong, and nobody else leads."""
        if self.question is not None:
            self.answer(0)
        elif self.machine.state is LeadershipState.STEPPED_DOWN:
            self.end_duties()
        elif self.machine.state is LeadershipState.FOLLOWING:
            self.tell(LeaderSeen(None))
        elif not self.ended:
            self.tell(self.timers[-1])


@pytest.mark.parametrize("seed", range(200))
def test_random_histories_ask_one_thing_at_a_time_and_get_stuck_nowhere(seed):
    history = History(seed)
    for _ in range(300):
        if history.ended:
            assert (history.question, history.machine.state) == (None, LeadershipState.RETIRED)
            return
        history.go_on()
    for _ in range(20):
        history.settle()
    assert history.machine.state in (LeadershipState.LEADING, LeadershipState.RETIRED)
