"""Daemons that want to lead, without anything to lead: their duties tick, as streams would, and write a journal."""

import io
import json

import trio
from flexpipe.actors.cluster.cluster_store import Candidate
from flexpipe.actors.cluster.leadership import Leadership
from flexpipe.actors.cluster.leadership_machine import LEADS
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.journal import JournalError, JournalRecord
from flexpipe.actors.route import Route, StagePlacement

TICK_S = 0.1
PIPELINE = "smollm2"


def planned(epoch, strategy="precopy"):
    return JournalRecord("planned", epoch, Route(epoch, (StagePlacement(0, 0, 5, "n1/cpu:0", 1),)), strategy)


def commit(epoch):
    return JournalRecord("commit", epoch, kv_blocks=7)


class Deputy:
    """One candidate. ``claims`` are all that it ever led with, ``ticks`` counts those of its duties."""

    def __init__(self, name, store):
        self.name = name
        self.claims = []
        self.journal = None
        self.ticks = 0
        self.is_on_duty = False
        self._store = store
        self._log = io.StringIO()
        self.leadership = self._new_leadership()

    def _new_leadership(self):
        log = EventLog(self._log, clock=trio.current_time)
        return Leadership(self._store, Candidate(self.name, f"tcp://{self.name}@127.0.0.1:1"), self._lead, log)

    def start_anew(self):
        """As after the death of its process."""
        self.leadership = self._new_leadership()

    @property
    def state(self):
        return self.leadership.machine.state

    @property
    def terms(self):
        return [claim.record.term for claim in self.claims]

    def logged(self, event):
        lines = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    async def _lead(self, claim):
        self.claims.append(claim)
        try:
            async with claim.journal(PIPELINE) as self.journal:
                self.is_on_duty = True
                while True:
                    await trio.sleep(TICK_S)
                    self.ticks += 1
                    await self._decide(claim.record.term)
        finally:
            self.is_on_duty = False

    async def _decide(self, term):
        """What it does at each tick: nothing."""

    async def until(self, *states, seconds=20.0):
        """Wait for one of these states; for leading until the duties have begun, too."""
        await until(lambda: self.state in states and (self.is_on_duty or self.state not in LEADS), seconds)

    async def tick(self, count, seconds=20.0):
        """Wait for so many ticks of the duties more."""
        end = self.ticks + count
        await until(lambda: self.ticks >= end, seconds)


class Scribe(Deputy):
    """A candidate that decides epochs for as long as it leads, each under the name and term of who did."""

    async def _decide(self, term):
        try:
            epoch = (await self.journal.read()).highest_epoch + 1
            await self.journal.write(planned(epoch, f"{self.name} in {term}"))
            await self.journal.write(commit(epoch))
        except JournalError:
            pass


async def until(condition, seconds=20.0):
    """Look until ``condition`` holds, for a bounded time."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)
