"""What must be true of the simulated world at every moment, and at its end. It watches; it changes nothing.

Each rule has a name; the first violation of a history is kept, with the moment and the place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import trio

from ...actors.block_ledger import LedgerError
from ...actors.journal import JournalState
from ...actors.scheduler_machine import SchedulerError, SchedulerMachine
from ...actors.stage_machine import StageMachine
from ..modelled_engine import ModelledEngine

OWNER = "one owner"
DECIDED = "nothing before its commit"
ASCENDING = "epochs never go back"
TOKENS = "each token once and right"
ENDS = "everything ends"
LEDGER = "every page has an owner"
MEMORY = "memory has its limits"
CAUSE = "nothing breaks without a cause"
IDLE = "an idle pipeline holds what it should"
BUG = "no actor breaks"

CHECKERS = {
    OWNER: "in an epoch an atom is served by one worker, the one that the journal's route names",
    DECIDED: "no worker serves an epoch, and the scheduler plans no step of it, before its commit is in the journal",
    ASCENDING: "no worker, scheduler, coordinator or journal goes back to an earlier epoch",
    TOKENS: "each token that a client gets is the faultless history's, at the next index, with the right finish",
    ENDS: "every request ends within a bounded time, every change too, and the pipeline serves again",
    LEDGER: "the scheduler's books balance after every event, and the blocks of a step under way are its requests'",
    MEMORY: "weights and pages of a worker fit its device, and it is asked for no more pages than it said would",
    CAUSE: "no pipeline is interrupted, no worker fails and no request is lost unless a fault of that severity was injected",
    IDLE: "when all is quiet each worker holds its atoms and all blocks of their pages, nobody else lives, and no block is held",
    BUG: "no actor raises what it does not promise",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, when, and how."""

    checker: str
    time_s: float
    sentence: str


@dataclass(slots=True)
class Checks:
    """One history's watch. ``severe``: a fault was injected that clients may feel; ``garbage``: one that a worker may die of."""

    violation: Violation | None = None
    severe: bool = False
    garbage: bool = False
    broken: trio.Event = field(default_factory=trio.Event)
    _epochs: dict[str, int] = field(default_factory=dict)
    _owners: dict[tuple[int, int], int] = field(default_factory=dict)
    _decided: dict[int, dict[int, range]] = field(default_factory=dict)

    def violated(self, checker: str, sentence: str) -> None:
        """Keep the first violation, and let the history end."""
        if self.violation is None:
            self.violation = Violation(checker, round(trio.current_time(), 6), sentence)
            self.broken.set()

    def epoch_is(self, who: str, epoch: int) -> None:
        """``who`` is at ``epoch``."""
        before = self._epochs.get(who, -1)
        if epoch < before and epoch > 0:  # a daemon that starts anew is at epoch 0: none
            self.violated(ASCENDING, f"{who} went from epoch {before} back to epoch {epoch}")
        self._epochs[who] = max(epoch, before)

    def journaled(self, state: JournalState) -> None:
        """A record was written; ``state`` is what all of them add up to."""
        if state.committed is not None:
            self.epoch_is("the journal", state.committed.epoch)
            stages = state.committed.route.stages
            self._decided[state.committed.epoch] = {stage.worker: stage.atoms for stage in stages}

    def planned_for(self, epoch: int) -> None:
        """The scheduler takes up an epoch."""
        self.epoch_is("the scheduler", epoch)
        if epoch not in self._decided:
            self.violated(DECIDED, f"the scheduler was told of epoch {epoch}, which the journal does not hold")

    def worker_serves(self, machine: StageMachine) -> None:
        """A worker handled an event."""
        epoch, worker = machine.epoch, machine.worker
        name = f"worker {worker}"
        if self._epochs.get(name, -1) == epoch:
            return
        self.epoch_is(name, epoch)
        decided = self._decided.get(epoch)
        if decided is None:
            self.violated(DECIDED, f"worker {worker} serves epoch {epoch}, which the journal does not hold")
            return
        atoms = machine.atoms
        if atoms != decided.get(worker, range(0)):
            self.violated(OWNER, f"worker {worker} serves atoms {atoms} in epoch {epoch}; its route is {decided}")
        for atom in atoms:
            if self._owners.setdefault((epoch, atom), worker) != worker:
                self.violated(OWNER, f"atom {atom} has two owners in epoch {epoch}")

    def books_balance(self, machine: SchedulerMachine) -> None:
        """The scheduler handled an event."""
        try:
            machine.check()
        except (LedgerError, SchedulerError) as error:
            self.violated(LEDGER, str(error))
        ledger = machine._ledger  # noqa: SLF001 - the world sees everything
        for plan, _ in machine._steps.values():  # noqa: SLF001
            tables = np.frombuffer(plan.block_tables, np.int32).reshape(len(plan.requests), -1).tolist()
            for request, table in zip(plan.requests, tables, strict=True):
                held = ledger.blocks_of(request)
                if [block for block in table if block >= 0] != held[: len(table) - table.count(-1)]:
                    self.violated(LEDGER, f"step {plan.step} writes to blocks {table}; request {request} holds {held}")

    def engine_used(self, worker: int, engine: ModelledEngine) -> None:
        """A worker's engine did something."""
        if engine.used_bytes() > engine.speed.memory_bytes:
            self.violated(
                MEMORY, f"worker {worker} uses {engine.used_bytes()} bytes of {engine.speed.memory_bytes} that it has"
            )

    def asked_too_much(self, worker: int, sentence: str) -> None:
        """A worker has not the memory that its own facts spoke of."""
        self.violated(MEMORY, f"worker {worker} was asked for more than it has: {sentence}")

    def worker_failed(self, name: str, sentence: str) -> None:
        """A worker ended itself."""
        if not self.garbage:
            self.violated(CAUSE, f"{name} failed: {sentence}")

    def interrupted(self, sentence: str) -> None:
        """The pipeline broke, and will be up again."""
        if not self.severe:
            self.violated(CAUSE, f"the pipeline was interrupted: {sentence}")

    def given_up(self, sentence: str) -> None:
        """The pipeline was given up for good."""
        self.violated(CAUSE, f"the pipeline was given up: {sentence}")

    def request_failed(self, kind: str, sentence: str) -> None:
        """A client got an explicit error after its request was taken."""
        self.violated(CAUSE, f"a request failed ({kind}): {sentence}")
