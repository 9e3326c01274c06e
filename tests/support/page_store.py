"""KV pages in memory, whose content says which token of which request and layer it is, and the plans that write them."""

import numpy as np
from flexpipe.actors.layer_pages import LayerPages, parts_of
from flexpipe.actors.messages import StepPlan
from flexpipe.runtime.interface import BLOCK_TOKENS
from flexpipe.runtime.page_checksum import page_checksum

TOKEN_BYTES = 4
PAGE_BYTES = BLOCK_TOKENS * TOKEN_BYTES


def int32(values):
    return np.asarray(values, np.int32).tobytes()


def layer_pages(layer, blocks, filled=None, page_bytes=PAGE_BYTES):
    """Pages of one layer, full ones where nothing else is said."""
    return LayerPages(layer, page_bytes, int32(blocks), bytes(filled or [BLOCK_TOKENS] * len(blocks)))


def plan_of(step, rows, epoch=0):
    """The plan of ``rows``: (request, first position, tokens, the request's blocks)."""
    tables = np.full((len(rows), max(len(blocks) for *_, blocks in rows)), -1, np.int32)
    positions, row_starts = [], [0]
    for place, (_, first, tokens, blocks) in enumerate(rows):
        tables[place, : len(blocks)] = blocks
        positions.extend(range(first, first + tokens))
        row_starts.append(len(positions))
    requests = tuple(request for request, *_ in rows)
    zeros = int32([0] * len(positions))
    return StepPlan(epoch, step, requests, zeros, int32(positions), int32(row_starts), tables.tobytes(), b"", ())


def live_bits(blocks, count):
    """`messages.Open.live` with these blocks."""
    bits = np.zeros(count, bool)
    bits[list(blocks)] = True
    return np.packbits(bits, bitorder="little").tobytes()


class PageStore:
    """The page half of `EnginePort`. What nothing was written to is garbage that differs from store to store."""

    def __init__(self, layers, blocks, garbage):
        self.pages = {layer: np.full((blocks, BLOCK_TOKENS), garbage, np.uint32) for layer in layers}

    def write(self, plan):
        """What a step leaves in its pages."""
        tables = np.frombuffer(plan.block_tables, np.int32).reshape(len(plan.requests), -1)
        starts = np.frombuffer(plan.row_starts, np.int32)
        positions = np.frombuffer(plan.positions, np.int32)
        for row, request in enumerate(plan.requests):
            for position in positions[starts[row] : starts[row + 1]].tolist():
                block = tables[row, position // BLOCK_TOKENS]
                for layer, pages in self.pages.items():
                    pages[block, position % BLOCK_TOKENS] = (layer + 1) * 10_000_000 + request * 10_000 + position

    def gather(self, pages):
        """The bytes of these pages."""
        return b"".join(self.pages[part.layer][part.block_numbers].tobytes() for part in pages)

    def scatter(self, pages, data):
        """Put pages in their places."""
        for part, its_data in parts_of(pages, memoryview(data)):
            self.pages[part.layer][part.block_numbers] = np.frombuffer(its_data, np.uint32).reshape(-1, BLOCK_TOKENS)

    async def gather_pages(self, pages, out):
        out[:] = self.gather(pages)
        return page_checksum(out)

    async def scatter_pages(self, pages, data, checksum):
        if page_checksum(data) != checksum:
            return False
        self.scatter(pages, data)
        return True

    def tokens(self, layer, blocks, count):
        """What the first ``count`` tokens of a request with these blocks left here."""
        return self.pages[layer][blocks].reshape(-1)[:count].tolist()
