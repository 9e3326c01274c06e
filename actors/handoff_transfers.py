"""The two ends of one transfer of pages as `handoff_machine` keeps them: what is unsent here, what is missing there.

Knows pages and bytes, neither states nor votes. Arrays are [layers of the transfer, blocks].
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..runtime.interface import BLOCK_TOKENS
from .handoff_events import SendEnd, SendRun
from .messages import PageRun, PagesRefused, Transfer
from .page_ledger import BlocksAtCut, Bools, Int64Array, PageLedger

Pages = PageLedger | BlocksAtCut


@dataclass(slots=True)
class SentPages:
    """Counters over the transfers that one worker gives."""

    sent_bytes: int = 0
    resent_bytes: int = 0
    final_bytes: int = 0


class Giving:
    """The donor's end of the transfer at ``place``, of ``blocks`` blocks."""

    def __init__(self, place: int, transfer: Transfer, blocks: int) -> None:
        self.transfer = transfer
        self.rounds = 0
        self.refusals = 0
        self.welcomed = False
        self.runs: deque[SendRun] = deque()  # under way, oldest first
        self.ending = False  # the end is under way
        self.end_sent = False
        self._place = place
        self._sent: Int64Array = np.zeros((len(transfer.layers), blocks), np.int64)  # the version sent last
        self._refused: Bools = np.zeros(self._sent.shape, bool)  # since it was sent last
        self._layer = 0  # place of the layer that this round has come to
        self._in_round = False

    def may_send(self, runs_max: int) -> bool:
        """Whether one more run may be under way. Runs before the cut go alone: a page must not overtake its older copy."""
        if not self.welcomed or self.ending:
            return False
        return not self.runs or (self.runs[0].hurried and len(self.runs) < runs_max)

    @property
    def under_way_bytes(self) -> int:
        """Pages that are being sent: counted as sent already, not yet gone."""
        return sum(len(run.blocks) * run.page_bytes for run in self.runs)

    def remaining_bytes(self, wanted: Int64Array, pages: Pages) -> int:
        """Bytes of ``wanted`` blocks that are unsent or under way."""
        counts = self._unsent(slice(None), wanted, pages).sum(axis=1)
        return int(counts @ np.asarray(self.transfer.page_bytes, np.int64)) + self.under_way_bytes

    def unsent_blocks(self, wanted: Int64Array, pages: Pages) -> Bools:
        """Which of ``wanted`` are unsent in some layer."""
        return np.asarray(self._unsent(slice(None), wanted, pages).any(axis=0))

    def send_run(
        self, wanted: Int64Array, pages: Pages, counted: SentPages, run_bytes_max: int, *, hurried: bool
    ) -> SendRun | None:
        """The next run of unsent pages among ``wanted``, layer by layer; None, and the round is over, where there is none."""
        layers = len(self.transfer.layers)
        for step in range(layers):
            layer = (self._layer + step) % layers
            blocks = wanted[self._unsent(layer, wanted, pages)]
            if len(blocks):
                self.rounds += not self._in_round or layer < self._layer
                self._in_round, self._layer = True, layer
                page_bytes = self.transfer.page_bytes[layer]
                blocks = blocks[: max(1, run_bytes_max // page_bytes)]
                self._count(layer, blocks, pages, counted, hurried=hurried)
                filled = pages.filled[blocks].astype(np.uint8).tobytes()
                number = self.transfer.layers[layer]
                run = SendRun(self._place, number, blocks.astype(np.int32), filled, page_bytes, hurried)
                self.runs.append(run)
                return run
        self._in_round, self._layer = False, 0
        return None

    def send_end(self) -> SendEnd:
        """The end."""
        self.ending = True
        return SendEnd(self._place)

    def take_back(self, refusal: PagesRefused) -> bool:
        """The acquirer refused these pages: they are unsent. False, and nothing changed, where it was not given such pages."""
        layers, blocks = self.transfer.layers, _blocks_of(refusal.blocks)
        known = refusal.layer in layers and len(blocks) * 4 == len(refusal.blocks) > 0
        if not known or not 0 <= blocks.min() <= blocks.max() < self._sent.shape[1]:
            return False
        self._refused[layers.index(refusal.layer), blocks] = True
        self.refusals += 1
        return True

    def _unsent(self, layer: int | slice, blocks: Int64Array, pages: Pages) -> Bools:
        unsent: Bools = (self._sent[layer, blocks] < pages.version[blocks]) | self._refused[layer, blocks]
        return unsent

    def _count(self, layer: int, blocks: Int64Array, pages: Pages, counted: SentPages, *, hurried: bool) -> None:
        """These pages are sent from now on. One sent before in the same life of its block is sent again."""
        page_bytes, before = self.transfer.page_bytes[layer], self._sent[layer, blocks]
        again = np.count_nonzero((before > 0) & (before >= pages.life[blocks]))
        counted.sent_bytes += len(blocks) * page_bytes
        counted.resent_bytes += int(again) * page_bytes
        counted.final_bytes += len(blocks) * page_bytes if hurried else 0
        self._sent[layer, blocks] = pages.version[blocks]
        self._refused[layer, blocks] = False


class Taking:
    """The acquirer's end of a transfer into ``blocks`` blocks."""

    def __init__(self, transfer: Transfer, epoch: int, blocks: int) -> None:
        self.transfer = transfer
        self.refusals = 0
        self.ended = False
        self._epoch = epoch
        self._blocks = blocks
        self._live: Bools = np.ones(blocks, bool)
        self._missing: Bools = np.zeros((len(transfer.layers), blocks), bool)  # refused, and did not come again yet

    @property
    def complete(self) -> bool:
        """All is here; to be asked after `cut`."""
        return self.ended and not self._missing.any()

    def cut(self, live: Bools) -> None:
        """Only ``live`` blocks matter from now on: a refused page of another one never comes again."""
        self._live = live[: self._blocks]
        self._missing &= self._live

    def came(self, run: PageRun) -> None:
        """The pages of a run with which nothing was wrong are in their places."""
        self._missing[self.transfer.layers.index(run.layer), _blocks_of(run.blocks)] = False

    def refused(self, run: PageRun) -> None:
        """A run was refused: what it should have brought is missing. After the end that is known already."""
        self.refusals += 1
        if not self.ended and run.layer in self.transfer.layers:
            blocks = _blocks_of(run.blocks)
            due = blocks[(blocks >= 0) & (blocks < self._blocks)]
            self._missing[self.transfer.layers.index(run.layer), due] = self._live[due]

    def wrong_with(self, run: PageRun, size: int) -> str:
        """What in a run of ``size`` bytes is not what was agreed, "" where all is."""
        agreed = self.transfer
        if run.epoch != self._epoch:
            return f"it is of epoch {run.epoch}, this transfer of epoch {self._epoch}"
        if run.layer not in agreed.layers:
            return f"layer {run.layer} is none of the layers {list(agreed.layers)} that were agreed"
        layer = agreed.layers.index(run.layer)
        page_bytes = agreed.page_bytes[layer]
        if run.page_bytes != page_bytes:
            return f"its pages have {run.page_bytes} bytes, those of layer {run.layer} have {page_bytes}"
        if not run.blocks or len(run.blocks) % 4 or len(run.filled) != len(run.blocks) // 4:
            return f"it names {len(run.blocks)} bytes of blocks and {len(run.filled)} fill levels"
        blocks, filled = _blocks_of(run.blocks), np.frombuffer(run.filled, np.uint8)
        if not 0 <= blocks[0] <= blocks[-1] < self._blocks or (blocks[1:] <= blocks[:-1]).any():
            return f"its blocks are not ascending ones below {self._blocks}: {blocks[:8].tolist()}"
        if not 1 <= filled.min() <= filled.max() <= BLOCK_TOKENS:
            return f"a block holds 1 to {BLOCK_TOKENS} tokens, not {filled.min()} to {filled.max()}"
        if size != len(blocks) * page_bytes:
            return f"{len(blocks)} pages of {page_bytes} bytes came with {size} bytes"
        if self.ended and not self._missing[layer, blocks].all():
            return f"its transfer had ended, and blocks {blocks[:8].tolist()} were not refused before"
        return ""


def _blocks_of(data: bytes) -> npt.NDArray[np.int32]:
    """The whole int32 in bytes that a peer sent."""
    return np.frombuffer(data[: len(data) // 4 * 4], np.int32)
