"""Whether this process leads, and what it may do meanwhile.

Rules:
 1. Nobody leads without a claim that the store granted; a claim is made where nobody is seen to lead.
 2. That nobody is seen to lead right after the store was silent says nothing of the leader: it could not keep its claim alive. So
    it is left ``ttl_s`` to make its claim anew before others make theirs.
 3. A leader whose store is silent stays a leader (*blind*): streams go on, nothing can be decided. Nobody else can win either.
 4. A claim that lapsed is made anew, in its old term, where nobody led since; where somebody did, the leader steps down.
 5. A leader that hears of a higher term, from the store or from any peer, steps down at once, whatever it knows of its claim.
 6. Who stepped down makes no claim before all of its duties have ended, and gives its claim back after they have.
 7. One question to the store at a time. No store, no clock here: events in, instructions out. What comes too late changes nothing.

    following --nobody leads--> candidate --won--> leading <--store back / store lost--> blind
        ^  '---somebody leads------'                  '---claim lost, higher term, stop---' |
        '------------------------------duties ended-- stepped down <------------------------'
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

from ..transitions import Transitions
from .leadership_events import (
    BeginDuties,
    ClaimRefused,
    ClaimWon,
    DutiesEnded,
    EndDuties,
    Entered,
    Event,
    Finish,
    Instruction,
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
    Timer,
    TimerFired,
    Unanswered,
)

RETRY_S_MAX = 1.0
"""From a question that was not answered, or a claim that was refused, to the next; a sixth of a claim's life where that is less."""


class LeadershipState(enum.Enum):
    """Where a process stands."""

    FOLLOWING = "following"
    CANDIDATE = "candidate"
    LEADING = "leading"
    BLIND = "leading without its store"
    STEPPED_DOWN = "stepped down"
    RETIRED = "retired"


class Deed(enum.Enum):
    """What only a leader may do."""

    SERVE = "serve requests"
    CHANGE = "begin a change"


_FOLLOWING, _CANDIDATE, _LEADING = LeadershipState.FOLLOWING, LeadershipState.CANDIDATE, LeadershipState.LEADING
_BLIND, _STEPPED_DOWN, _RETIRED = LeadershipState.BLIND, LeadershipState.STEPPED_DOWN, LeadershipState.RETIRED
LEADS = frozenset({_LEADING, _BLIND})

MAY = {
    _LEADING: frozenset({Deed.SERVE, Deed.CHANGE}),
    _BLIND: frozenset({Deed.SERVE}),
}
"""What a leader may do in each state; in the others it may do nothing. That nothing is *decided* without a claim is the
store's care: a record is written only while the claim stands."""

LEADERSHIP_TRANSITIONS = Transitions(
    "whether a daemon leads",
    _FOLLOWING,
    {
        (_FOLLOWING, "nobody leads"): _CANDIDATE,
        (_CANDIDATE, "somebody leads"): _FOLLOWING,
        (_CANDIDATE, "store lost"): _FOLLOWING,
        (_CANDIDATE, "won"): _LEADING,
        (_LEADING, "store lost"): _BLIND,
        (_BLIND, "store back"): _LEADING,
        **{(state, "claim lost"): _STEPPED_DOWN for state in (_LEADING, _BLIND)},
        **{(state, "higher term"): _STEPPED_DOWN for state in (_LEADING, _BLIND)},
        **{(state, "stop"): _STEPPED_DOWN for state in (_LEADING, _BLIND)},
        (_FOLLOWING, "stop"): _RETIRED,
        (_CANDIDATE, "stop"): _RETIRED,
        (_STEPPED_DOWN, "duties ended"): _FOLLOWING,
        (_STEPPED_DOWN, "duties ended for good"): _RETIRED,
    },
)


class LeadershipOrderError(Exception):
    """Our own driver told of something that cannot be now; nothing was changed."""


class LeadershipMachine:
    """See the module's rules. ``ttl_s`` is the store's, possibly infinite."""

    def __init__(self, ttl_s: float) -> None:
        self.state = _FOLLOWING
        self.term = 0
        self.sentence = "nothing was heard of the store yet"
        self._grace_s = ttl_s if math.isfinite(ttl_s) else 0.0
        self._beat_s = ttl_s / 3
        self._retry_s = min(ttl_s / 6, RETRY_S_MAX)
        self._numbers: dict[Timer, int] = {"claim": 0, "keep-alive": 0}
        self._was_silent = False
        self._vacant = False  # nobody was seen to lead
        self._wait_s = 0.0
        self._asked: type[Instruction] | None = None  # what the store was asked and has not answered
        self._holds_claim = False
        self._stopping = False
        self._handlers: dict[type, Callable[..., list[Instruction]]] = {
            LeaderSeen: self._leader_seen,
            StoreSilent: self._store_silent,
            ClaimWon: self._claim_won,
            ClaimRefused: self._claim_refused,
            Kept: self._kept,
            Lapsed: self._lapsed,
            Overtaken: self._overtaken,
            Unanswered: self._unanswered,
            Resigned: self._resigned,
            TermHeard: self._term_heard,
            DutiesEnded: self._duties_ended,
            StopAsked: self._stop_asked,
            TimerFired: self._timer_fired,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event. Raises `LeadershipOrderError`, with nothing changed, for an answer to what was not asked."""
        return self._handlers[type(event)](event)

    def may(self, deed: Deed) -> bool:
        """Whether this process may do that now."""
        return deed in MAY.get(self.state, frozenset())

    # --- following, and wanting to lead ---

    def _leader_seen(self, event: LeaderSeen) -> list[Instruction]:
        record = event.record
        self._vacant = record is None
        self._wait_s = self._grace_s if self._was_silent else 0.0
        self._was_silent = False
        if self.state in LEADS:
            return self._term_heard(TermHeard(record.term, record.name)) if record is not None else []
        if self.state is _CANDIDATE and record is not None:
            return self._go("somebody leads", f"{record.name} leads")
        return self._next()

    def _store_silent(self, event: StoreSilent) -> list[Instruction]:
        self._was_silent, self._vacant = True, False
        return self._go("store lost", event.sentence) if self.state is _CANDIDATE else []

    def _claim_won(self, event: ClaimWon) -> list[Instruction]:
        self._answered(MakeClaim)
        self._holds_claim = True
        if self.state is _RETIRED:
            return self._next()
        # The watch may have told meanwhile that somebody leads, which is this process, or that the store is silent.
        again = self._go("nobody leads", "the claim was granted") if self.state is _FOLLOWING else []
        self.term = event.term
        won = self._go("won", "the claim was granted")
        return [*again, *won, BeginDuties(event.term), self._set("keep-alive", self._beat_s)]

    def _claim_refused(self, _: ClaimRefused) -> list[Instruction]:
        """Whoever leads will be seen, unless it is gone before."""
        self._answered(MakeClaim)
        return [self._set("claim", self._retry_s)] if self.state is _CANDIDATE else self._next()

    # --- leading ---

    def _kept(self, _: Kept) -> list[Instruction]:
        self._answered(KeepAlive, Reclaim)
        if self.state not in LEADS:
            return self._next()
        back = self._go("store back", "the claim stands") if self.state is _BLIND else []
        return [*back, self._set("keep-alive", self._beat_s)]

    def _lapsed(self, _: Lapsed) -> list[Instruction]:
        self._answered(KeepAlive)
        return self._ask(Reclaim()) if self.state in LEADS else self._next()

    def _overtaken(self, event: Overtaken) -> list[Instruction]:
        self._answered(Reclaim)
        self._holds_claim = False
        return self._step_down("claim lost", event.sentence) if self.state in LEADS else self._next()

    def _unanswered(self, event: Unanswered) -> list[Instruction]:
        self._answered(MakeClaim, KeepAlive, Reclaim)
        if self.state is _CANDIDATE:
            return [self._set("claim", self._retry_s)]
        if self.state not in LEADS:
            return self._next()
        blind = self._go("store lost", event.sentence) if self.state is _LEADING else []
        return [*blind, self._set("keep-alive", self._retry_s)]

    def _term_heard(self, event: TermHeard) -> list[Instruction]:
        if self.state not in LEADS or event.term <= self.term:
            return []
        return self._step_down(
            "higher term", f"{event.peer} says that term {event.term} has begun; this was {self.term}"
        )

    def _step_down(self, cause: str, sentence: str) -> list[Instruction]:
        return [*self._go(cause, sentence), EndDuties(sentence)]

    # --- the end ---

    def _stop_asked(self, event: StopAsked) -> list[Instruction]:
        self._stopping = True
        if self.state in LEADS:
            return self._step_down("stop", event.sentence)
        if self.state in (_FOLLOWING, _CANDIDATE):
            return [*self._go("stop", event.sentence), *self._next()]
        return []

    def _duties_ended(self, _: DutiesEnded) -> list[Instruction]:
        """Who ends its duties unasked wants to lead no more."""
        if self.state not in LEADS | {_STEPPED_DOWN}:
            raise LeadershipOrderError(f"duties ended while this process was {self.state.value}")
        stepped = []
        if self.state in LEADS:
            self._stopping = True
            stepped = self._go("stop", "its duties ended")
        ended = self._go("duties ended for good" if self._stopping else "duties ended", self.sentence)
        return [*stepped, *ended, *self._next()]

    def _resigned(self, _: Resigned) -> list[Instruction]:
        self._answered(Resign)
        return self._next()

    def _next(self) -> list[Instruction]:
        """What is due for who does not lead, once the store is asked nothing."""
        if self._asked is not None or self.state not in (_FOLLOWING, _RETIRED):
            return []
        if self._holds_claim:
            self._holds_claim = False
            return self._ask(Resign())
        if self.state is _RETIRED:
            return [Finish()]
        if not self._vacant:
            return []
        return [*self._go("nobody leads", "nobody is seen to lead"), self._set("claim", self._wait_s)]

    # --- clocks, and the store ---

    def _timer_fired(self, event: TimerFired) -> list[Instruction]:
        if event.number != self._numbers[event.timer] or self._asked is not None:
            return []
        match event.timer:
            case "claim" if self.state is _CANDIDATE:
                return self._ask(MakeClaim())
            case "keep-alive" if self.state in LEADS:
                return self._ask(KeepAlive())
            case _:
                return []

    def _set(self, timer: Timer, after_s: float) -> SetTimer:
        self._numbers[timer] += 1
        return SetTimer(timer, self._numbers[timer], after_s)

    def _ask(self, question: Instruction) -> list[Instruction]:
        self._asked = type(question)
        return [question]

    def _answered(self, *questions: type[Instruction]) -> None:
        if self._asked not in questions:
            raise LeadershipOrderError("the store answered what it was not asked")
        self._asked = None

    def _go(self, cause: str, sentence: str) -> list[Instruction]:
        self.state = LEADERSHIP_TRANSITIONS.after(self.state, cause)
        self.sentence = sentence
        return [Entered(self.state.value, self.term, sentence)]
