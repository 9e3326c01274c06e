"""One worker's part in handing KV pages over for one epoch: what to send when, what to take, when it is done.

Rules:
 1. Before the cut a donor sends full, live blocks that changed since they were last sent, layer by layer, and votes when what
    is left of them is small. It goes on after its vote: blocks fill while the others get ready. Half-full ones wait.
 2. After the cut no old step runs any more. The donor sends every live block that changed before it and since it was last sent,
    then an end. Steps of the new epoch, which this worker may run meanwhile, write to none of the pages that it gives.
 3. An acquirer takes what was agreed (epoch, layer, size, blocks, checksum) and refuses all else by name; refused pages are
    sent again, at most ``refusals_max`` times in all.
 4. This worker is across when its own cut has come, every end it owes was sent, every end it is due came, and no page that it
    refused is still missing. It resends on refusal even then.
 5. Of several transfers each has one run under way at most. A broken link before the end is a failure.
 6. No socket, no thread, no clock here: events in, instructions out. What comes after a failure changes nothing.

    before the cut --own cut--> finishing --all ends sent and here, nothing missing--> across
          '-- a link broke, refused too often --> failed <--'
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..runtime.interface import BLOCK_TOKENS, Int32Array
from .messages import CopyTotals, Open, PageRun, PagesRefused, Transfer
from .page_ledger import BlocksAtCut, Bools, Int64Array, PageLedger, blocks_in


class HandoffState(enum.Enum):
    """Where this worker's part is."""

    BEFORE_CUT = "before the cut"
    FINISHING = "finishing"
    ACROSS = "across"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class HandoffLimits:
    """``run_bytes_max``: pages in one message. ``remaining_bytes_max``: what may be left at the vote.

    ``refusals_max``: runs that an acquirer may refuse in one epoch. ``copy_share_max``: the share of its time that copying may
    take before the cut, so that it gives way to steps.
    """

    run_bytes_max: int = 1024 * 1024
    remaining_bytes_max: int = 4 * 1024 * 1024
    refusals_max: int = 8
    copy_share_max: float = 0.1


DEFAULT_HANDOFF_LIMITS = HandoffLimits()


# --- events: ``transfer`` is a place in `Open.transfers` --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The links are open."""


@dataclass(frozen=True, slots=True)
class RunSent:
    """`SendRun` ended well."""

    transfer: int


@dataclass(frozen=True, slots=True)
class EndSent:
    """`SendEnd` ended well."""

    transfer: int


@dataclass(frozen=True, slots=True)
class StepEnded:
    """A step ran; it may have filled blocks."""


@dataclass(frozen=True, slots=True)
class CutCame:
    """The last old step of this worker has run; ``live`` as in `messages.Cut`."""

    live: bytes


@dataclass(frozen=True, slots=True)
class RunRefused:
    """An acquirer refused a run."""

    transfer: int
    refusal: PagesRefused


@dataclass(frozen=True, slots=True)
class RunCame:
    """A run arrived. With no ``fault`` (see `HandoffMachine.wrong_with`; or a wrong checksum) its pages are in their places."""

    transfer: int
    run: PageRun
    fault: str


@dataclass(frozen=True, slots=True)
class EndCame:
    """A donor sent its end."""

    transfer: int


@dataclass(frozen=True, slots=True)
class LinkBroke:
    """The link of a transfer is lost."""

    transfer: int
    sentence: str


Event = Begin | RunSent | EndSent | StepEnded | CutCame | RunRefused | RunCame | EndCame | LinkBroke

# --- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendRun:
    """Send pages. Answered by `RunSent` or `LinkBroke`. ``filled`` (uint8) says how many tokens each block holds."""

    transfer: int
    layer: int
    blocks: Int32Array
    filled: bytes
    page_bytes: int
    hurried: bool


@dataclass(frozen=True, slots=True)
class SendEnd:
    """Send the end of a transfer. Answered by `EndSent` or `LinkBroke`."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell a donor that a run was not what was agreed."""

    transfer: int
    refusal: PagesRefused


@dataclass(frozen=True, slots=True)
class Vote:
    """This worker is ready for the cut."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far copying before the cut has come."""

    sent_bytes: int
    remaining_bytes: int


@dataclass(frozen=True, slots=True)
class Across:
    """All that this worker owes was sent and all that it is due is here."""

    copied: CopyTotals


@dataclass(frozen=True, slots=True)
class Fail:
    """The handoff cannot come to its end."""

    sentence: str


Instruction = SendRun | SendEnd | Refuse | Vote | Progress | Across | Fail


@dataclass(slots=True)
class _Giving:
    """A transfer that this worker gives. ``copied[i]`` holds, by block, the version of layer i that was sent last."""

    transfer: Transfer
    copied: Int64Array
    next_layer: int = 0
    rounds: int = 0
    under_way: bool = False
    end_sent: bool = False


@dataclass(slots=True)
class _Taking:
    """A transfer that this worker takes. ``missing`` holds refused (layer, block) that did not come again yet."""

    transfer: Transfer
    ended: bool = False
    missing: set[tuple[int, int]] = field(default_factory=set)


@dataclass(slots=True)
class _Totals:
    sent_bytes: int = 0
    resent_bytes: int = 0
    final_bytes: int = 0
    residual_tokens: int = 0
    refusals: int = 0


class HandoffMachine:
    """See the module's rules. ``ledger`` is the worker's own; it is read, and told of pages that arrive."""

    def __init__(self, opened: Open, worker: int, ledger: PageLedger, limits: HandoffLimits) -> None:
        self.state = HandoffState.BEFORE_CUT
        self._epoch = opened.epoch
        self._blocks = opened.kv_blocks
        self._precopy = opened.precopy
        self._ledger = ledger
        self._limits = limits
        ledger.ensure(opened.kv_blocks)
        self._known = len(ledger.filled)  # blocks of the epoch before may be more than of this one
        self._live = blocks_in(opened.live, self._known)
        self._opened_at = ledger.clock
        self._pages: PageLedger | BlocksAtCut = ledger
        self._voted = False
        self._totals = _Totals()
        self._giving = {
            place: _Giving(transfer, np.zeros((len(transfer.layers), self._known), np.int64))
            for place, transfer in enumerate(opened.transfers)
            if transfer.donor == worker
        }
        self._taking = {
            place: _Taking(transfer) for place, transfer in enumerate(opened.transfers) if transfer.acquirer == worker
        }
        self._handlers: dict[type, Callable[..., list[Instruction]]] = {
            Begin: lambda _: self._go_on(),
            StepEnded: lambda _: self._go_on(),
            RunSent: self._run_sent,
            EndSent: self._end_sent,
            CutCame: self._cut_came,
            RunRefused: self._run_refused,
            RunCame: self._run_came,
            EndCame: self._end_came,
            LinkBroke: self._link_broke,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event."""
        if self.state is HandoffState.FAILED:
            return []
        return self._handlers[type(event)](event)

    def wrong_with(self, transfer: int, run: PageRun, size: int) -> str:
        """What in an arrived run of ``size`` bytes is not what was agreed, "" where all is; before anything is written."""
        agreed = self._taking[transfer].transfer
        if run.epoch != self._epoch:
            return f"it is of epoch {run.epoch}, this transfer of epoch {self._epoch}"
        if run.layer not in agreed.layers:
            return f"layer {run.layer} is none of the layers {list(agreed.layers)} that were agreed"
        page_bytes = agreed.page_bytes[agreed.layers.index(run.layer)]
        if run.page_bytes != page_bytes:
            return f"its pages have {run.page_bytes} bytes, those of layer {run.layer} have {page_bytes}"
        if not run.blocks or len(run.blocks) % 4 or len(run.filled) != len(run.blocks) // 4:
            return f"it names {len(run.blocks)} bytes of blocks and {len(run.filled)} fill levels"
        blocks = np.frombuffer(run.blocks, np.int32)
        if not 0 <= blocks.min() <= blocks.max() < self._blocks:
            return f"it names blocks {blocks.min()} to {blocks.max()}; there are {self._blocks}"
        if size != len(blocks) * page_bytes:
            return f"{len(blocks)} pages of {page_bytes} bytes came with {size} bytes"
        return ""

    @property
    def totals(self) -> CopyTotals:
        """What was sent so far."""
        totals = self._totals
        rounds = max((giving.rounds for giving in self._giving.values()), default=0)
        return CopyTotals(totals.sent_bytes, totals.resent_bytes, totals.final_bytes, rounds, totals.residual_tokens)

    # --- giving ---

    def _go_on(self) -> list[Instruction]:
        """Send what may be sent now on every transfer that is idle, and vote when little is left."""
        runs = [run for place in self._giving for run in self._next(place)]
        return [*runs, *self._vote()]

    def _run_sent(self, event: RunSent) -> list[Instruction]:
        giving = self._giving[event.transfer]
        giving.under_way = False
        return [*self._next(event.transfer), *self._progress(), *self._vote(), *self._across()]

    def _next(self, place: int) -> list[Instruction]:
        giving = self._giving[place]
        if giving.under_way:
            return []
        if self.state is HandoffState.BEFORE_CUT and not self._precopy:
            return []
        wanted = self._wanted()
        layers = len(giving.transfer.layers)
        for step in range(layers):
            index = (giving.next_layer + step) % layers
            blocks = np.flatnonzero(wanted & (giving.copied[index] < self._pages.version[: self._known]))
            if len(blocks):
                return [self._send(place, giving, index, blocks)]
        if self.state is HandoffState.BEFORE_CUT or giving.end_sent:
            return []
        giving.under_way = giving.end_sent = True
        return [SendEnd(place)]

    def _wanted(self) -> Bools:
        """Blocks to be sent if they changed: full live ones before the cut, all live ones after it."""
        pages, known = self._pages, self._known
        if self.state is not HandoffState.BEFORE_CUT:
            return self._live
        alive = self._live | (pages.version[:known] > self._opened_at)
        full: Bools = alive & (pages.filled[:known] == BLOCK_TOKENS)
        full[self._blocks :] = False  # their holders are begun anew before the cut
        return full

    def _send(self, place: int, giving: _Giving, index: int, blocks: Int64Array) -> SendRun:
        page_bytes = giving.transfer.page_bytes[index]
        blocks = blocks[: max(1, self._limits.run_bytes_max // page_bytes)]
        pages, totals = self._pages, self._totals
        size = len(blocks) * page_bytes
        again = (giving.copied[index, blocks] >= pages.life[blocks]) & (giving.copied[index, blocks] > 0)
        totals.sent_bytes += size
        totals.resent_bytes += int(again.sum()) * page_bytes
        if self.state is not HandoffState.BEFORE_CUT:
            totals.final_bytes += size
        giving.copied[index, blocks] = pages.version[blocks]
        giving.rounds += index < giving.next_layer or giving.rounds == 0
        giving.next_layer = index
        giving.under_way = True
        filled = pages.filled[blocks].astype(np.uint8).tobytes()
        hurried = self.state is not HandoffState.BEFORE_CUT
        layer = giving.transfer.layers[index]
        return SendRun(place, layer, blocks.astype(np.int32), filled, page_bytes, hurried)

    def _remaining_bytes(self) -> int:
        wanted, version = self._wanted(), self._pages.version[: self._known]
        return sum(
            int(np.count_nonzero(wanted & (giving.copied[index] < version))) * page_bytes
            for giving in self._giving.values()
            for index, page_bytes in enumerate(giving.transfer.page_bytes)
        )

    def _progress(self) -> list[Instruction]:
        if self.state is not HandoffState.BEFORE_CUT or self._voted:
            return []
        return [Progress(self._totals.sent_bytes, self._remaining_bytes())]

    def _vote(self) -> list[Instruction]:
        if self._voted or self.state is not HandoffState.BEFORE_CUT:
            return []
        if self._precopy and self._giving and self._remaining_bytes() > self._limits.remaining_bytes_max:
            return []
        self._voted = True
        return [Vote()]

    def _cut_came(self, event: CutCame) -> list[Instruction]:
        self.state = HandoffState.FINISHING
        self._live = blocks_in(event.live, self._known)
        self._pages = self._ledger.at_cut()
        self._totals.residual_tokens = self._residual_tokens()
        sends = [run for place in self._giving for run in self._next(place)]
        return [*sends, *self._across()]

    def _residual_tokens(self) -> int:
        """The most tokens of one request whose KV goes after the cut."""
        pages, known = self._pages, self._known
        left = np.zeros(known, bool)
        for giving in self._giving.values():
            left |= (giving.copied < pages.version[:known]).any(axis=0)
        left &= self._live
        if not left.any():
            return 0
        _, owners = np.unique(pages.owner[:known][left], return_inverse=True)
        return int(np.bincount(owners, pages.filled[:known][left]).max())

    def _end_sent(self, event: EndSent) -> list[Instruction]:
        self._giving[event.transfer].under_way = False
        return [*self._next(event.transfer), *self._across()]

    def _run_refused(self, event: RunRefused) -> list[Instruction]:
        giving, refusal = self._giving[event.transfer], event.refusal
        self._totals.refusals += 1
        if self._totals.refusals > self._limits.refusals_max:
            return self._fail(f"worker {giving.transfer.acquirer} refused pages too often: {refusal.sentence}")
        blocks = np.frombuffer(refusal.blocks, np.int32)
        if refusal.layer not in giving.transfer.layers or (
            len(blocks) and not 0 <= blocks.min() <= blocks.max() < self._known
        ):
            return self._fail(f"worker {giving.transfer.acquirer} refused pages that it was not given")
        giving.copied[giving.transfer.layers.index(refusal.layer), blocks] = 0
        return self._next(event.transfer)

    # --- taking ---

    def _run_came(self, event: RunCame) -> list[Instruction]:
        taking, run = self._taking[event.transfer], event.run
        blocks = np.frombuffer(run.blocks[: len(run.blocks) // 4 * 4], np.int32)
        places = {(run.layer, block) for block in blocks.tolist()}
        if event.fault:
            taking.missing |= {place for place in places if self._is_due(taking.transfer, *place)}
            return [Refuse(event.transfer, PagesRefused(self._epoch, run.layer, run.blocks, event.fault))]
        taking.missing -= places
        self._ledger.arrived(blocks, np.frombuffer(run.filled, np.uint8))
        return self._across()

    def _is_due(self, transfer: Transfer, layer: int, block: int) -> bool:
        return layer in transfer.layers and 0 <= block < self._blocks

    def _end_came(self, event: EndCame) -> list[Instruction]:
        self._taking[event.transfer].ended = True
        return self._across()

    # --- the end ---

    def _across(self) -> list[Instruction]:
        if self.state is not HandoffState.FINISHING:
            return []
        given = all(giving.end_sent and not giving.under_way for giving in self._giving.values())
        taken = all(taking.ended and not taking.missing for taking in self._taking.values())
        if not (given and taken):
            return []
        self.state = HandoffState.ACROSS
        return [Across(self.totals)]

    def _link_broke(self, event: LinkBroke) -> list[Instruction]:
        taking = self._taking.get(event.transfer)
        if self.state is HandoffState.ACROSS or (taking is not None and taking.ended and not taking.missing):
            return []
        return self._fail(event.sentence)

    def _fail(self, sentence: str) -> list[Instruction]:
        self.state = HandoffState.FAILED
        return [Fail(sentence)]
