"""A journal in memory: the simulated disk. It survives the coordinator that writes to it, and can be full."""

from __future__ import annotations

import trio

from ..actors.journal import JournalError, JournalRecord, JournalState, RecordKind, fold


class MemoryJournal:
    """See `journal.Journal`. ``write_s`` is how long a write takes; ``full`` makes every write fail while it is set."""

    def __init__(self, *, write_s: float = 0.0) -> None:
        self.records: list[JournalRecord] = []
        self.full = False
        self._failing: set[RecordKind] = set()
        self._write_s = write_s

    def fail_next(self, kind: RecordKind) -> None:
        """Let the disk be full for the next record of this kind."""
        self._failing.add(kind)

    async def write(self, record: JournalRecord) -> None:
        """See `Journal.write`."""
        with trio.CancelScope(shield=True):  # what was handed to the disk gets there, whoever dies meanwhile
            await trio.sleep(self._write_s)
            self._append(record)
        await trio.lowlevel.checkpoint_if_cancelled()

    def _append(self, record: JournalRecord) -> None:
        if record in self.records:
            return
        fold([*self.records, record])
        if self.full or record.kind in self._failing:
            self._failing.discard(record.kind)
            raise JournalError("the journal in memory cannot be written: the disk is full; make room and try again")
        self.records.append(record)

    async def read(self) -> JournalState:
        """See `Journal.read`."""
        await trio.lowlevel.checkpoint()
        return fold(self.records)
