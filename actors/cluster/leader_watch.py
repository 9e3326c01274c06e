"""Who leads, as the store tells: asks again for as long as the store is silent, and lets who follows the leader wait for the next.

Owns the asking again. While the store is silent the last leader that was seen stays known: it goes on serving.
"""

from __future__ import annotations

from typing import NoReturn, Protocol

import trio

from ..event_log import EventLog
from .cluster_store import ClusterStore, LeaderRecord, StoreRefusedError, StoreUnavailableError
from .leader_cell import LeaderCell
from .leader_source import LeaderAt

RETRY_S = 0.2
"""From a watch that ended to the next."""


class WatchListener(Protocol):
    """Hears what is seen, in order, at once."""

    def leader_seen(self, record: LeaderRecord | None) -> None:
        """Who leads, after every change and after every silence."""
        ...

    def store_silent(self, sentence: str) -> None:
        """The store says nothing any more."""
        ...


class LeaderWatch:
    """A `node_agent.LeaderSource`. ``run`` must be running."""

    def __init__(self, store: ClusterStore, log: EventLog, listener: WatchListener | None = None) -> None:
        self._store = store
        self._log = log
        self._listener = listener
        self._cell = LeaderCell()
        self._is_silent = False
        self._has_answered = False

    @property
    def leader(self) -> LeaderRecord | None:
        """Who leads; None where nobody was seen to."""
        return self._cell.value

    async def changed(self) -> None:
        """Wait for another leader, or for none."""
        await self._cell.changed()

    async def next_leader(self, known: LeaderAt | None) -> LeaderAt:
        """See `LeaderSource.next_leader`. Another term makes another leader."""
        while True:
            record = self.leader
            found = None if record is None else LeaderAt(record.address, record.term)
            if found is not None and found != known:
                await trio.lowlevel.checkpoint()
                return found
            await self._cell.changed()

    async def run(self) -> NoReturn:
        """Watch. Raises `StoreRefusedError` where the store never answered otherwise."""
        while True:
            try:
                await self._store.watch(self._saw)
            except StoreUnavailableError as error:
                self._lost(str(error))
            except StoreRefusedError as error:
                if not self._has_answered:
                    raise
                self._lost(str(error))
            await trio.sleep(RETRY_S)

    def _saw(self, record: LeaderRecord | None) -> None:
        self._has_answered = True
        if self._is_silent:
            self._is_silent = False
            self._log.emit("store_answers")
        if record is not None and record != self.leader:
            self._log.emit("leader_seen", leader=record.name, term=record.term)
        self._cell.set(record)
        if self._listener is not None:
            self._listener.leader_seen(record)

    def _lost(self, sentence: str) -> None:
        if self._is_silent:
            return
        self._is_silent = True
        self._log.emit("store_silent", sentence=sentence)
        if self._listener is not None:
            self._listener.store_silent(sentence)
