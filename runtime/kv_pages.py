"""The KV pages of the layers that one worker holds. Knows no scheduler: which block belongs to whom is others' business.

A page is one layer's keys and values of one block of 16 tokens (`interface.BLOCK_TOKENS`). All pages of a layer lie in
one array, each page in one contiguous run of bytes, so that a page changes its home with a single copy. How keys and
values lie inside a page is the backend's business; stages that exchange pages must run the same backend.

In host memory a layer's pages never move: each has address space of its own for more than it will ever need, so room is made
without a copy, and other threads may gather and scatter pages meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch

from .device_memory import DeviceMemory
from .interface import BLOCK_TOKENS, EngineError, Int32Array, OutOfMemoryError
from .mapped_memory import AddressSpace
from .program import AttentionLayer

LAYER_BYTES_MAX = 256 << 30
"""Address space of a layer where the host has more memory than this: 128 layers take 32 TiB of a process's 128."""

AHEAD_BLOCKS = 16
"""Blocks beyond those in use that have memory at least: what requests that need a new block in one step may take. The memory comes
in huge pages, so that small pages have more. A first write to a huge page takes 0.2 ms, and where the host of a virtual machine had
taken its memory back, 4 ms: with 15 layers, whose blocks fill up together, a step of 50 ms took 60 ms longer."""

Bytes = npt.NDArray[np.uint8]


class KvLayer:
    """One layer's pages: ``pages`` is [blocks, page elements].

    The object stays when its pages become more or fewer: lowered atoms hold on to it.
    """

    __slots__ = ("_device", "_dtype", "_space", "geometry", "page_bytes", "page_elements", "pages")

    def __init__(self, geometry: AttentionLayer, page_elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry = geometry
        self.page_elements = page_elements
        self.page_bytes = page_elements * dtype.itemsize
        self.pages = torch.empty(0, page_elements, dtype=dtype, device=device)
        self._dtype = dtype
        self._device = device
        self._space = AddressSpace(min(_host_bytes(), LAYER_BYTES_MAX)) if device.type == "cpu" else None

    def resize(self, blocks: int) -> None:
        """Hold ``blocks`` pages; those that exist keep their content, new ones are zero."""
        if self._space is not None:
            size = blocks * self.page_bytes
            self._space.discard(size)
            self.pages = torch.from_numpy(self._space.open(size)).view(self._dtype).view(blocks, self.page_elements)
            return
        pages = torch.zeros(blocks, self.page_elements, dtype=self._dtype, device=self._device)
        kept = min(blocks, len(self.pages))
        pages[:kept] = self.pages[:kept]
        self.pages = pages

    @property
    def backed(self) -> int:
        """How many of the first pages have physical memory behind them for sure."""
        held = len(self.pages)
        return held if self._space is None else min(held, self._space.backed // self.page_bytes)

    def back(self) -> None:
        """Put memory behind a piece more of them."""
        if self._space is not None:
            self._space.back()


RowCopy = Callable[[Bytes, Int32Array, Bytes], None]
"""Copies between pages [held, page bytes], at the places of blocks, and packed bytes; IndexError where one is not there."""


class KvPages:
    """The pages of the layers that this worker holds, each with as many as the epochs that it is of need, ``blocks`` at most.

    `reserve` and `drop` are called by one thread, `add`, `back`, `gather` and `scatter` by any, `back` by one at a time.
    """

    def __init__(
        self,
        attention: Iterable[AttentionLayer],
        page_elements: Callable[[AttentionLayer], int],
        dtype: torch.dtype,
        device: torch.device,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.layers: dict[int, KvLayer] = {}
        self.blocks = 0
        self._changing = threading.Lock()
        self._geometries = {geometry.layer: geometry for geometry in attention}
        self._page_elements = page_elements
        self._dtype = dtype
        self._device = device
        self._memory = memory or DeviceMemory(device)
        self._memory.count(self._held_bytes)
        self._copies = _row_copies() if device.type == "cpu" else None

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block takes over all layers that are here."""
        return sum(layer.page_bytes for layer in self.layers.values())

    @property
    def layout(self) -> str:
        """What two workers' pages must have in common besides the backend: numbers, tokens, and every layer's geometry."""
        shapes = sorted({(each.kv_heads, each.key_dim, each.value_dim) for each in self._geometries.values()})
        described = ", ".join(f"{heads} heads of {key}+{value}" for heads, key, value in shapes)
        return f"{str(self._dtype).removeprefix('torch.')}, {BLOCK_TOKENS} tokens, {described or 'no attention'}"

    def page_bytes(self, layer: int) -> int:
        """Bytes of one page of ``layer``."""
        return self._page_elements(self._geometries[layer]) * self._dtype.itemsize

    def make(self, layer: int) -> KvLayer:
        """The pages of ``layer``: those that are here, or new ones, without a block yet, for `add`."""
        geometry = self._geometries[layer]
        known = self.layers.get(layer)
        return known or KvLayer(geometry, self._page_elements(geometry), self._dtype, self._device)

    def add(self, layers: Iterable[KvLayer]) -> None:
        """Take layers in that `make` gave."""
        with self._changing:
            self.layers = self.layers | {layer.geometry.layer: layer for layer in layers}

    def reserve(self, layers: Iterable[int], blocks: int) -> int:
        """Have ``blocks`` pages in each of ``layers``, keeping content; the bytes of all pages that are here.

        Raises `OutOfMemoryError` before anything changed.

        Where there were more before, those stay until `drop`: steps of the epoch before may still name them.
        """
        if blocks < 0:
            raise EngineError(f"A worker cannot hold {blocks} KV blocks; ask for 0 or more")
        growing = [layer for layer in map(self.layers.__getitem__, layers) if blocks > len(layer.pages)]
        needed = sum((blocks - len(layer.pages)) * layer.page_bytes for layer in growing)
        free = self._memory.free_bytes() if needed else 0
        if needed > free:
            raise OutOfMemoryError(
                f"{blocks} KV blocks need {needed} bytes more, {self._memory.name} has {free} free; ask for fewer blocks or give "
                "the stage fewer layers"
            )
        try:
            for layer in growing:
                layer.resize(blocks)
        except MemoryError as error:
            raise OutOfMemoryError(f"{blocks} KV blocks of {len(growing)} layers do not fit: {error}") from error
        self.blocks = max(self.blocks, blocks)
        return self._held_bytes()

    def drop(self, keep: Iterable[int], blocks: int) -> int:
        """Let go of the pages of every layer that is not in ``keep``, and of blocks from ``blocks`` on in all.

        Gives the bytes that were reserved for them.
        """
        kept = set(keep)
        with self._changing:
            before = self.layers
            self.layers = {number: layer for number, layer in before.items() if number in kept}
        held = sum(layer.pages.nbytes for layer in before.values())
        self.blocks = min(self.blocks, blocks)
        for layer in self.layers.values():
            if len(layer.pages) > self.blocks:
                layer.resize(self.blocks)
        return held - sum(layer.pages.nbytes for layer in self.layers.values())

    def back(self, blocks: int, rest: Callable[[], None]) -> int:
        """Put physical memory behind the first ``blocks`` pages of every layer, and behind `AHEAD_BLOCKS` more.

        ``rest`` is called after each piece of it. Gives how many blocks may be in use before there is more to do.
        """
        enough = self.blocks
        for layer in tuple(self.layers.values()):
            while layer.backed < min(blocks + AHEAD_BLOCKS, len(layer.pages)):
                layer.back()
                rest()
            if layer.backed < len(layer.pages):
                enough = min(enough, layer.backed - AHEAD_BLOCKS)
        return enough

    def gather(self, layer: int, blocks: Int32Array, out: memoryview) -> None:
        """Copy pages into ``out``, one after another. Without the GIL, so that a step goes on beside it."""
        pages = self._pages(layer, blocks, out)
        if self._copies is not None:
            self._copy(self._copies[0], pages, blocks, out)
        else:
            found = pages[torch.from_numpy(blocks.astype(np.int64)).to(self._device)].cpu()
            out[:] = found.view(torch.uint8).numpy().data.cast("B")

    def scatter(self, layer: int, blocks: Int32Array, data: memoryview) -> None:
        """Put pages that lie in ``data`` one after another in the places of ``blocks``."""
        pages = self._pages(layer, blocks, data)
        if self._copies is not None:
            self._copy(self._copies[1], pages, blocks, data)
        else:
            packed = np.frombuffer(data, np.uint8).reshape(len(blocks), -1).copy()
            values = torch.from_numpy(packed).view(self._dtype).to(self._device)
            pages[torch.from_numpy(blocks.astype(np.int64)).to(self._device)] = values

    def _held_bytes(self) -> int:
        return sum(layer.pages.nbytes for layer in self.layers.values())

    def _copy(self, copy: RowCopy, pages: torch.Tensor, blocks: Int32Array, packed: memoryview) -> None:
        try:
            copy(pages.view(torch.uint8).numpy(), blocks, np.frombuffer(packed, np.uint8))
        except IndexError:
            raise _not_reserved(blocks, len(pages)) from None

    def _pages(self, layer: int, blocks: Int32Array, data: memoryview) -> torch.Tensor:
        """The pages of a layer, where ``blocks`` lie in them and ``data`` is as long as they are. Raises `EngineError`."""
        held = self.layers.get(layer)
        if held is None:
            raise EngineError(f"This worker does not hold layer {layer}; it holds {sorted(self.layers)}")
        pages = held.pages
        if len(blocks) == 0 or (self._copies is None and not 0 <= blocks.min() <= blocks.max() < len(pages)):
            raise _not_reserved(blocks, len(pages))
        if data.nbytes != len(blocks) * held.page_bytes:
            raise EngineError(f"{len(blocks)} pages of {held.page_bytes} bytes do not fit {data.nbytes} bytes")
        return pages


def _not_reserved(blocks: Int32Array, held: int) -> EngineError:
    return EngineError(f"KV blocks {blocks.tolist()[:8]} are not all among the {held} reserved ones")


def _row_copies() -> tuple[RowCopy, RowCopy]:
    """Gather and scatter in host memory: compiled, or numpy's own where kernels cannot be compiled (an eighth slower)."""
    try:
        from .kernels.page_copy import gather_rows, scatter_rows
    except Exception:  # as in `backends`: no LLVM for this CPU, an unwritable cache
        return _take_rows, _put_rows
    return gather_rows, scatter_rows


def _take_rows(pages: Bytes, blocks: Int32Array, packed: Bytes) -> None:
    _check(blocks, len(pages))
    np.take(pages, blocks, axis=0, out=packed.reshape(len(blocks), -1), mode="clip")


def _put_rows(pages: Bytes, blocks: Int32Array, packed: Bytes) -> None:
    _check(blocks, len(pages))
    pages[blocks] = packed.reshape(len(blocks), -1)


def _check(blocks: Int32Array, held: int) -> None:
    if not 0 <= blocks.min() <= blocks.max() < held:
        raise IndexError


def _host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
