"""One worker's part in handing KV pages over for one epoch: what to send when, what to take, when it is done.

Rules:
 1. A donor sends nothing before its acquirer's welcome. Before the cut it sends full, live blocks that changed since they were
    last sent, layer by layer, and goes on after its vote: blocks fill while the others get ready. Half-full ones wait.
 2. A worker votes once its links are open, every acquirer welcomed it, and little of what it could send is left. Without
    pre-copy nothing is sent before the cut, so nothing need be waited for.
 3. After the cut no old step runs any more. The donor sends every live block that changed before it and since it was last sent,
    then an end. Steps of the new epoch, which this worker may run meanwhile, write to none of the pages that it gives.
 4. An acquirer takes what was agreed (epoch, layer, size, blocks, checksum; after an end only what it refused before) and
    refuses all else by name. Refused pages are sent again. One refusal too many is the end: the acquirer counts it first.
 5. This worker is across when its own cut has come, every end that it owes was sent, every end that it is due came, and no page
    that it refused is still missing. It sends refused pages again even then.
 6. A transfer has one run under way before the cut, some after it, never two with the same page. One that breaks before this
    worker is across is a failure, unless all of it is here already. What comes after a failure, or after this worker gave up,
    changes nothing.
 7. What a peer does wrong ends in a failure with a sentence; what our own driver does wrong (`_LEGAL`) raises and changes nothing.
    No socket, no thread, no clock here: events in, instructions out.

    before the cut --own cut--> finishing --all ends sent and here, nothing missing--> across
          |  '-- a transfer broke, refused too often --> failed <--'                      |
          '------------------------ given up: from everywhere -----------------------------'
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..runtime.interface import BLOCK_TOKENS
from .handoff_events import (
    Across,
    Begin,
    CutCame,
    EndCame,
    EndSent,
    Event,
    Fail,
    GivenUp,
    Instruction,
    Progress,
    Refuse,
    RunCame,
    RunRefused,
    RunSent,
    StepEnded,
    TransferBroke,
    Vote,
    Welcomed,
)
from .handoff_transfers import Giving, Pages, SentPages, Taking
from .messages import CopyTotals, Open, PageRun, PagesRefused
from .page_ledger import Int64Array, PageLedger, blocks_in
from .transitions import Transitions


@dataclass(frozen=True, slots=True)
class HandoffLimits:
    """``run_bytes_max`` before the cut and ``hurried_run_bytes_max`` after it: pages of one message, of however many layers.

    ``runs_under_way_max``: runs of one transfer that may be under way after the cut, so that copying out, sending and copying
    in go on side by side. ``remaining_bytes_max``: what may be left at the vote.
    ``refusals_max``: runs of one transfer that an acquirer may refuse. ``copy_share_max`` (above 0): the share of one
    core's time that the donors of a change together may copy before the cut, so that copying gives way to steps; what it costs
    their acquirers is about twice that.
    """

    run_bytes_max: int = 4 * 1024 * 1024
    hurried_run_bytes_max: int = 4 * 1024 * 1024
    runs_under_way_max: int = 3
    remaining_bytes_max: int = 4 * 1024 * 1024
    refusals_max: int = 8
    copy_share_max: float = 0.02


DEFAULT_HANDOFF_LIMITS = HandoffLimits()


class HandoffState(enum.Enum):
    """Where this worker's part is."""

    BEFORE_CUT = "before the cut"
    FINISHING = "finishing"
    ACROSS = "across"
    FAILED = "failed"
    GIVEN_UP = "given up"


class HandoffOrderError(Exception):
    """Our own driver told of something that cannot be now; nothing was changed."""


_BEFORE, _FINISHING, _ACROSS = HandoffState.BEFORE_CUT, HandoffState.FINISHING, HandoffState.ACROSS
_GOING_ON = frozenset({_BEFORE, _FINISHING, _ACROSS})
_LEGAL: dict[type, frozenset[HandoffState]] = {
    Begin: frozenset({_BEFORE}),
    StepEnded: _GOING_ON,
    CutCame: frozenset({_BEFORE}),
    RunSent: _GOING_ON,
    EndSent: frozenset({_FINISHING, _ACROSS}),
    Welcomed: _GOING_ON,
    RunRefused: _GOING_ON,
    RunCame: _GOING_ON,
    EndCame: _GOING_ON,
    TransferBroke: _GOING_ON,
    GivenUp: _GOING_ON,
}
"""In which states an event may come; in the two others every event is silently too late."""


HANDOFF_TRANSITIONS = Transitions(
    "one worker's handoff of pages",
    _BEFORE,
    {
        (_BEFORE, "own cut"): _FINISHING,
        (_FINISHING, "all sent, all here"): _ACROSS,
        (_BEFORE, "transfer broke"): HandoffState.FAILED,
        (_FINISHING, "transfer broke"): HandoffState.FAILED,
        (_BEFORE, "given up"): HandoffState.GIVEN_UP,
        (_FINISHING, "given up"): HandoffState.GIVEN_UP,
        (_ACROSS, "given up"): HandoffState.GIVEN_UP,
    },
)


@dataclass(slots=True)
class _Vote:
    begun: bool = False
    cast: bool = False


class HandoffMachine:
    """See the module's rules. ``ledger`` is the worker's own; it is read, and told of pages that arrive."""

    def __init__(
        self, opened: Open, worker: int, ledger: PageLedger, limits: HandoffLimits = DEFAULT_HANDOFF_LIMITS
    ) -> None:
        self.state = HandoffState.BEFORE_CUT
        self._epoch = opened.epoch
        self._blocks = opened.kv_blocks
        self._precopy = opened.precopy
        self._ledger = ledger
        self._limits = limits
        ledger.ensure(opened.kv_blocks)
        self._known = known = len(ledger.filled)  # blocks of the epoch before may be more than of this one
        self._live = blocks_in(opened.live, known)
        self._opened_at = ledger.clock
        self._pages: Pages = ledger
        self._vote_state = _Vote()
        self._sent = SentPages()
        self._residual_tokens = 0
        self._giving: dict[int, Giving] = {}
        self._taking: dict[int, Taking] = {}
        for place, transfer in enumerate(opened.transfers):
            if transfer.donor == worker:
                self._giving[place] = Giving(place, transfer, known)
            elif transfer.acquirer == worker:
                self._taking[place] = Taking(transfer, opened.epoch, opened.kv_blocks)
        self._handlers: dict[type, Callable[..., list[Instruction]]] = {
            Begin: self._begin,
            StepEnded: self._step_ended,
            CutCame: self._cut_came,
            RunSent: self._run_sent,
            EndSent: self._end_sent,
            GivenUp: self._given_up,
            Welcomed: self._welcomed,
            RunRefused: self._run_refused,
            RunCame: self._run_came,
            EndCame: self._end_came,
            TransferBroke: self._transfer_broke,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event. Raises `HandoffOrderError`, with nothing changed, where it cannot be now."""
        if self.state in (HandoffState.FAILED, HandoffState.GIVEN_UP):
            return []
        if self.state not in _LEGAL[type(event)]:
            raise HandoffOrderError(f"{type(event).__name__} came {self.state.value} in epoch {self._epoch}")
        return self._handlers[type(event)](event)

    @property
    def gives(self) -> tuple[int, ...]:
        """The transfers whose donor this worker is."""
        return tuple(self._giving)

    @property
    def takes(self) -> tuple[int, ...]:
        """The transfers whose acquirer this worker is."""
        return tuple(self._taking)

    @property
    def totals(self) -> CopyTotals:
        """What was sent so far."""
        sent = self._sent
        rounds = max((giving.rounds for giving in self._giving.values()), default=0)
        return CopyTotals(sent.sent_bytes, sent.resent_bytes, sent.final_bytes, rounds, self._residual_tokens)

    # --- before the cut ---

    def _begin(self, _: Begin) -> list[Instruction]:
        if self._vote_state.begun:
            raise HandoffOrderError(f"Begin came twice in epoch {self._epoch}")
        self._vote_state.begun = True
        return self._vote()

    def _welcomed(self, event: Welcomed) -> list[Instruction]:
        giving = self._given(event.transfer)
        if event.welcome.epoch != self._epoch or giving.welcomed:
            what = f"welcomed epoch {event.welcome.epoch}, {'again' if giving.welcomed else f'not {self._epoch}'}"
            return self._fail(f"worker {giving.transfer.acquirer} {what}")
        giving.welcomed = True
        return [*self._next(event.transfer), *self._vote()]

    def _step_ended(self, _: StepEnded) -> list[Instruction]:
        if self.state is not HandoffState.BEFORE_CUT:
            return []
        return [*(send for place in self._giving for send in self._next(place)), *self._vote()]

    def _vote(self) -> list[Instruction]:
        vote = self._vote_state
        if vote.cast or not vote.begun or not all(giving.welcomed for giving in self._giving.values()):
            return []
        if self._precopy and self._remaining_bytes() > self._limits.remaining_bytes_max:
            return []
        vote.cast = True
        return [Vote()]

    def _progress(self) -> list[Instruction]:
        if self.state is not HandoffState.BEFORE_CUT or self._vote_state.cast:
            return []
        under_way = sum(giving.under_way_bytes for giving in self._giving.values())
        return [Progress(self._sent.sent_bytes - under_way, self._remaining_bytes())]

    def _remaining_bytes(self) -> int:
        wanted = self._wanted()
        return sum(giving.remaining_bytes(wanted, self._pages) for giving in self._giving.values())

    # --- giving ---

    def _wanted(self) -> Int64Array:
        """Blocks to be sent where they are unsent: full live ones before the cut, all live ones after it. Ascending."""
        if self.state is not HandoffState.BEFORE_CUT:
            return np.flatnonzero(self._live)
        end = self._blocks  # holders of blocks beyond are begun anew before the cut
        alive = self._live[:end] | (self._pages.version[:end] > self._opened_at)
        return np.flatnonzero(alive & (self._pages.filled[:end] == BLOCK_TOKENS))

    def _next(self, place: int) -> list[Instruction]:
        """What this transfer is to send now."""
        giving, limits, hurried = self._giving[place], self._limits, self.state is not HandoffState.BEFORE_CUT
        if not hurried and not self._precopy:
            return []
        run_bytes_max = limits.hurried_run_bytes_max if hurried else limits.run_bytes_max
        sends: list[Instruction] = []
        while giving.may_send(limits.runs_under_way_max if hurried else 1):
            run = giving.send_run(self._wanted(), self._pages, self._sent, run_bytes_max, hurried=hurried)
            if run is None:
                break
            sends.append(run)
        if hurried and giving.may_send(1) and not giving.end_sent:
            sends.append(giving.send_end())
        return sends

    def _run_sent(self, event: RunSent) -> list[Instruction]:
        giving = self._given(event.transfer)
        if not giving.runs:
            raise HandoffOrderError(f"RunSent came for transfer {event.transfer}, which sends no run")
        giving.runs.popleft()  # after the cut perhaps another one: only how many there are matters then
        return [*self._next(event.transfer), *self._progress(), *self._vote()]

    def _end_sent(self, event: EndSent) -> list[Instruction]:
        giving = self._given(event.transfer)
        if not giving.ending:
            raise HandoffOrderError(f"EndSent came for transfer {event.transfer}, which sends no end")
        giving.ending, giving.end_sent = False, True
        return [*self._next(event.transfer), *self._across()]

    def _run_refused(self, event: RunRefused) -> list[Instruction]:
        giving, refusal = self._given(event.transfer), event.refusal
        who = f"worker {giving.transfer.acquirer}"
        if refusal.epoch != self._epoch or not giving.take_back(refusal):
            return self._fail(f"{who} refused pages that it was not given: {refusal.sentence}")
        if giving.refusals > self._limits.refusals_max:
            return self._fail(f"{who} refused pages {giving.refusals} times, at last because {refusal.sentence}")
        return self._next(event.transfer)

    # --- the cut ---

    def _cut_came(self, event: CutCame) -> list[Instruction]:
        if not self._vote_state.cast:
            raise HandoffOrderError(f"the cut to epoch {self._epoch} came before this worker's vote")
        self._go("own cut")
        self._live = blocks_in(event.live, self._known)
        self._pages = self._ledger.at_cut()
        for taking in self._taking.values():
            taking.cut(self._live)
        self._residual_tokens = self._count_residual_tokens()
        return [*(send for place in self._giving for send in self._next(place)), *self._across()]

    def _count_residual_tokens(self) -> int:
        """The most tokens of one request whose KV goes after the cut."""
        wanted, pages = self._wanted(), self._pages
        left = np.zeros(len(wanted), bool)
        for giving in self._giving.values():
            left |= giving.unsent_blocks(wanted, pages)
        blocks = wanted[left]
        if not len(blocks):
            return 0
        # Blocks whose owner is not known count one by one.
        owners = np.where(pages.owner[blocks] < 0, -1 - np.arange(len(blocks)), pages.owner[blocks])
        _, requests = np.unique(owners, return_inverse=True)
        return int(np.bincount(requests, pages.filled[blocks]).max())

    # --- taking ---

    def wrong_with(self, transfer: int, run: PageRun, size: int) -> str:
        """What in an arrived run of ``size`` bytes is not what was agreed, "" where all is; before anything is written."""
        return self._taken(transfer).wrong_with(run, size)

    def _run_came(self, event: RunCame) -> list[Instruction]:
        taking, run = self._taken(event.transfer), event.run
        if event.fault:
            return self._refuse(event.transfer, taking, run, event.fault)
        taking.came(run)
        for part in run.pages:
            self._ledger.arrived(part.block_numbers, np.frombuffer(part.filled, np.uint8))
        return self._across()

    def _refuse(self, place: int, taking: Taking, run: PageRun, fault: str) -> list[Instruction]:
        taking.refused(run)
        refusal: Instruction = Refuse(place, PagesRefused(self._epoch, run.pages, fault))
        if taking.refusals <= self._limits.refusals_max:
            return [refusal]
        who = f"worker {taking.transfer.donor}"
        return [refusal, *self._fail(f"pages of {who} were refused {taking.refusals} times, at last because {fault}")]

    def _end_came(self, event: EndCame) -> list[Instruction]:
        taking = self._taken(event.transfer)
        if taking.ended or event.epoch != self._epoch:
            return self._fail(f"worker {taking.transfer.donor} sent an end of epoch {event.epoch} that was not due")
        taking.ended = True
        return self._across()

    # --- the end ---

    def _across(self) -> list[Instruction]:
        if self.state is not HandoffState.FINISHING:
            return []
        given = all(giving.end_sent for giving in self._giving.values())
        if not given or not all(taking.complete for taking in self._taking.values()):
            return []
        self._go("all sent, all here")
        return [Across(self.totals)]

    def _transfer_broke(self, event: TransferBroke) -> list[Instruction]:
        taking = self._taking.get(event.transfer)
        return [] if taking is not None and taking.complete else self._fail(event.sentence)

    def _fail(self, sentence: str) -> list[Instruction]:
        """Nothing can fail any more for a worker that is across: what others still miss they say themselves."""
        if self.state is HandoffState.ACROSS:
            return []
        self._go("transfer broke")
        return [Fail(sentence)]

    def _given_up(self, _: GivenUp) -> list[Instruction]:
        self._go("given up")
        return []

    def _go(self, cause: str) -> None:
        self.state = HANDOFF_TRANSITIONS.after(self.state, cause)

    def _given(self, place: int) -> Giving:
        if place not in self._giving:
            raise HandoffOrderError(f"transfer {place} of epoch {self._epoch} is not one that this worker gives")
        return self._giving[place]

    def _taken(self, place: int) -> Taking:
        if place not in self._taking:
            raise HandoffOrderError(f"transfer {place} of epoch {self._epoch} is not one that this worker takes")
        return self._taking[place]
