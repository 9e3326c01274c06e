"""The two ends of one transfer of pages as `handoff_machine` keeps them: what is unsent here, what is missing there.

Knows pages and bytes, neither states nor votes. Arrays are [layers of the transfer, blocks].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..runtime.interface import BLOCK_TOKENS
from .handoff_events import SendEnd, SendRun
from .layer_pages import LayerPages, size_of
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
        self._layer = 0  # place of the layer to which this round has come
        self._in_round = False

    def may_send(self, runs_max: int) -> bool:
        """Whether one more run may be under way. Runs before the cut go alone: a page must not overtake its older copy."""
        if not self.welcomed or self.ending:
            return False
        return not self.runs or (self.runs[0].hurried and len(self.runs) < runs_max)

    @property
    def under_way_bytes(self) -> int:
        """Pages that are being sent: counted as sent already, not yet gone."""
        return sum(size_of(run.pages) for run in self.runs)

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
        parts: list[LayerPages] = []
        room_bytes = run_bytes_max
        for layer, unsent in self._unsent_by_layer(wanted, pages):
            page_bytes = self.transfer.page_bytes[layer]
            blocks = unsent[: max(not parts, room_bytes // page_bytes)]
            if not len(blocks):
                break
            self._enter(layer)
            self._count(layer, blocks, pages, counted, hurried=hurried)
            filled = pages.filled[blocks].astype(np.uint8).tobytes()
            parts.append(LayerPages(self.transfer.layers[layer], page_bytes, blocks.astype(np.int32).tobytes(), filled))
            room_bytes -= len(blocks) * page_bytes
            if len(blocks) < len(unsent):
                break
        if not parts:
            self._in_round, self._layer = False, 0
            return None
        run = SendRun(self._place, tuple(parts), hurried)
        self.runs.append(run)
        return run

    def send_end(self) -> SendEnd:
        """The end."""
        self.ending = True
        return SendEnd(self._place)

    def take_back(self, refusal: PagesRefused) -> bool:
        """The acquirer refused these pages: they are unsent. False, and nothing changed, where it was not given such pages."""
        if not refusal.pages or not all(self._knows(part) for part in refusal.pages):
            return False
        for part in refusal.pages:
            self._refused[self.transfer.layers.index(part.layer), part.block_numbers] = True
        self.refusals += 1
        return True

    def _knows(self, part: LayerPages) -> bool:
        blocks = part.block_numbers
        is_whole = part.layer in self.transfer.layers and len(blocks) * 4 == len(part.blocks) > 0
        return is_whole and bool(0 <= blocks.min() <= blocks.max() < self._sent.shape[1])

    def _unsent_by_layer(self, wanted: Int64Array, pages: Pages) -> Iterator[tuple[int, Int64Array]]:
        """Places of layers with unsent blocks, each once, from the one to which this round has come."""
        first, layers = self._layer, len(self.transfer.layers)
        for layer in (*range(first, layers), *range(first)):
            blocks = wanted[self._unsent(layer, wanted, pages)]
            if len(blocks):
                yield layer, blocks

    def _enter(self, layer: int) -> None:
        """The round comes to ``layer``; behind the last one another begins."""
        self.rounds += not self._in_round or layer < self._layer
        self._in_round, self._layer = True, layer

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
        for part in run.pages:
            self._missing[self.transfer.layers.index(part.layer), part.block_numbers] = False

    def refused(self, run: PageRun) -> None:
        """A run was refused: what it should have brought is missing. After the end that is known already."""
        self.refusals += 1
        for part in run.pages if not self.ended else ():
            if part.layer in self.transfer.layers:
                blocks = part.block_numbers
                due = blocks[(blocks >= 0) & (blocks < self._blocks)]
                self._missing[self.transfer.layers.index(part.layer), due] = self._live[due]

    def wrong_with(self, run: PageRun, size: int) -> str:
        """What in a run of ``size`` bytes is not what was agreed, "" where all is."""
        if run.epoch != self._epoch:
            return f"it is of epoch {run.epoch}, this transfer of epoch {self._epoch}"
        layers = [part.layer for part in run.pages]
        if not layers or len(set(layers)) < len(layers):
            return f"it has pages of layers {layers}; it must have those of one or more, each once"
        if faults := [fault for part in run.pages if (fault := self._wrong_with(part))]:
            return faults[0]
        if size != size_of(run.pages):
            return f"{size_of(run.pages)} bytes of pages came with {size} bytes"
        return ""

    def _wrong_with(self, part: LayerPages) -> str:
        agreed = self.transfer
        if part.layer not in agreed.layers:
            return f"layer {part.layer} is none of the layers {list(agreed.layers)} that were agreed"
        layer = agreed.layers.index(part.layer)
        page_bytes = agreed.page_bytes[layer]
        if part.page_bytes != page_bytes:
            return f"its pages have {part.page_bytes} bytes, those of layer {part.layer} have {page_bytes}"
        if not part.blocks or len(part.blocks) % 4 or len(part.filled) != len(part.blocks) // 4:
            return f"it names {len(part.blocks)} bytes of blocks and {len(part.filled)} fill levels"
        blocks, filled = part.block_numbers, np.frombuffer(part.filled, np.uint8)
        if not 0 <= blocks[0] <= blocks[-1] < self._blocks or (blocks[1:] <= blocks[:-1]).any():
            return f"its blocks are not ascending ones below {self._blocks}: {blocks[:8].tolist()}"
        if not 1 <= filled.min() <= filled.max() <= BLOCK_TOKENS:
            return f"a block holds 1 to {BLOCK_TOKENS} tokens, not {filled.min()} to {filled.max()}"
        if self.ended and not self._missing[layer, blocks].all():
            return f"its transfer had ended, and blocks {blocks[:8].tolist()} were not refused before"
        return ""
