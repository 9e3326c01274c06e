"""A journal in memory: the simulated disk. It survives the coordinator that writes to it, and can be full."""

from __future__ import annotations

import trio

from ..actors.journal import JournalError, JournalRecord, JournalState, fold


class MemoryJournal:
    """See `journal.Journal`. ``write_s`` is how long a write takes; ``full`` makes every write fail while it is set."""

    def __init__(self, *, write_s: float = 0.0) -> None:
        self.records: list[JournalRecord] = []
        self.full = False
        self._write_s = write_s

    async def write(self, record: JournalRecord) -> None:
        """See `Journal.write`."""
        with trio.CancelScope(shield=True):
            await trio.sleep(self._write_s)
        if record in self.records:
            return
        if self.full:
            raise JournalError("the journal cannot be written: database or disk is full")
        fold([*self.records, record])
        self.records.append(record)

    async def read(self) -> JournalState:
        """See `Journal.read`."""
        await trio.lowlevel.checkpoint()
        return fold(self.records)
