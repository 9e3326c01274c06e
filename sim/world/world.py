"""One simulated history: the real actors over a simulated network, disk and engine, with visitors, an operator and faults.

`run_history` makes a `Scenario` happen and says what came of it. The same scenario, the same history, byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ...actors.change import Change, ChangePhase
from ...actors.coordinator_events import PipelineState, Refactor
from ...actors.journal import fold
from ...actors.refactor import RefactorRefusedError
from ...actors.route import StagePlacement
from ...transport.memory import MemoryNetwork
from ..virtual_time import run_virtual
from . import checks as rules
from .actors import LogLines, WorldEngine, WorldJournal, WorldLog
from .checks import Checks, Violation
from .faults import Faults
from .house import Daemon, WorkerHouse
from .mutations import NOTHING_PLANTED, Mutation
from .scenario import Reshape, Scenario, Visit
from .visitor import Visitor

PROMPT_S_MAX = 8.0
"""So long after the last harm everything must have ended: no timeout of the protocol (20 s here) may be what ends it."""
SILENT_S_MAX = 60.0
"""The same where somebody fell silent: that is noticed after 10 s, and a recovery may have to try again."""
LOOK_S = 0.25
"""What does not announce itself is looked at so often."""
HISTORY_S_MAX = 600.0
"""No history is longer in virtual time."""
WRITE_S = 0.002
"""How long a record takes to the disk."""

_PHASE_NAMES = {
    ChangePhase.PLANNING: "plan",
    ChangePhase.LOADING: "load",
    ChangePhase.ROOM: "load",
    ChangePhase.OPENING: "copy",
    ChangePhase.COMMITTING: "commit",
    ChangePhase.SWITCHING: "switch",
    ChangePhase.RELEASING: "release",
    ChangePhase.CLOSING: "release",
    ChangePhase.ABORTING: "abort",
}


@dataclass(slots=True)
class History:
    """What came of a scenario. ``injected`` counts faults by (phase, kind); ``visits`` and ``changes`` count outcomes."""

    seed: int
    violation: Violation | None = None
    injected: Counter[tuple[str, str]] = field(default_factory=Counter)
    visits: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    log: str = ""


def run_history(scenario: Scenario, mutation: Mutation = NOTHING_PLANTED, *, log: bool = False) -> History:
    """Let a scenario happen. Raises nothing that an actor can cause: that is a violation too."""
    history = History(scenario.seed)
    lines = LogLines() if log else None

    async def main() -> None:
        world = World(scenario, mutation, history, lines)
        try:
            await world.run()
        finally:
            history.virtual_s = trio.current_time()
            history.violation = world.checks.violation
            history.injected = world.faults.injected

    try:
        run_virtual(main, scenario.seed, HISTORY_S_MAX)
    except Exception as error:
        history.violation = history.violation or Violation(rules.BUG, history.virtual_s, _innermost(error))
    history.log = "".join(lines.text) if lines else ""
    return history


class World:
    """See the module. The `Victims` of its faults."""

    def __init__(self, scenario: Scenario, mutation: Mutation, history: History, lines: LogLines | None) -> None:
        self.scenario = scenario
        self.network = MemoryNetwork(scenario.seed, scenario.weather)
        self.journal = WorldJournal(write_s=WRITE_S)
        self.checks = Checks()
        self.faults = Faults(scenario, self, self.checks)
        self.journal.hand, self.journal.checks = self.faults, self.checks
        self.visitors: list[Visitor] = []
        self.daemon: Daemon | None = None
        self._mutation = mutation
        self._history = history
        self._lines = lines
        self._log = WorldLog(lines, self.checks, "world")
        self._phase = ""
        self._moved = trio.lowlevel.ParkingLot()
        self._house: WorkerHouse | None = None

    # --- the history ---

    async def run(self) -> None:
        """From the first start of the pipeline until all is quiet again, or a rule is broken."""
        async with trio.open_nursery() as nursery:
            self._house = WorkerHouse(self, nursery, self._mutation)
            nursery.start_soon(self._end_when_broken, nursery.cancel_scope)
            await nursery.start(self.faults.run)
            nursery.start_soon(self._look)
            nursery.start_soon(self._keep_daemon)
            if await self._within_bounds(self._serves, "the pipeline never served"):
                await self._live()
            nursery.cancel_scope.cancel()

    async def _live(self) -> None:
        self.follow()
        async with trio.open_nursery() as nursery:
            for visit in self.scenario.visits:
                self._welcome(visit, nursery)
            nursery.start_soon(self._operate)
            await self._all_ends()
            nursery.cancel_scope.cancel()

    async def _all_ends(self) -> None:
        if await self._within_bounds(self._all_over, ""):
            await self._within_bounds(lambda: not self._house_rules(), "")
        if self.checks.violation is not None:
            return
        waiting = [str(place) for place, visitor in enumerate(self.visitors) if not visitor.outcome]
        coordinator = self.daemon.coordinator if self.daemon else None
        if waiting or coordinator is None or not self._all_over():
            state = coordinator.machine.state.value if coordinator else "without coordinator"
            change = coordinator.machine.change if coordinator else None
            making = f", epoch {change.epoch} is {change.phase.value}" if change else ""
            who = f"visitors {', '.join(waiting)} wait; " if waiting else ""
            self.checks.violated(
                rules.ENDS, f"{self._quiet_s_max():g} s after the last fault {who}the pipeline is {state}{making}"
            )
        elif untidy := self._house_rules():
            self.checks.violated(rules.IDLE, untidy)

    def _all_over(self) -> bool:
        changes = self._history.changes.total()
        return (
            all(visitor.outcome for visitor in self.visitors)
            and changes == len(self.scenario.reshapes)
            and self.faults.quiet
            and self._serves()
        )

    def _quiet_s_max(self) -> float:
        return SILENT_S_MAX if self.faults.silenced else PROMPT_S_MAX

    async def _within_bounds(self, holds: Callable[[], bool], sentence: str) -> bool:
        """Wait until something holds; False, and a violation (where it has a sentence), where it does not come to hold."""
        while not holds():
            late_s = trio.current_time() - self.faults.last_harm_s - self._quiet_s_max()
            if self.faults.quiet and late_s >= 0:
                if sentence:
                    self.checks.violated(rules.ENDS, sentence)
                return False
            await self._moved.park()
        return True

    async def _look(self) -> None:
        """What does not announce itself is noticed all the same."""
        while True:
            await trio.sleep(LOOK_S)
            self._moved.unpark_all()

    async def _end_when_broken(self, scope: trio.CancelScope) -> None:
        await self.checks.broken.wait()
        self._log.emit("rule_violated", rule=self.checks.violation.checker, sentence=self.checks.violation.sentence)  # type: ignore[union-attr]
        scope.cancel()

    # --- who acts ---

    async def _keep_daemon(self) -> None:
        """A daemon that crashes is started anew."""
        assert self._house is not None
        while True:
            self.daemon = Daemon(self, self._house, self._mutation)
            await self.daemon.live()
            self.daemon = None
            await trio.sleep(self.scenario.restart_s)

    def _welcome(self, visit: Visit, nursery: trio.Nursery) -> None:
        visitor = Visitor(visit, self)
        self.visitors.append(visitor)
        nursery.start_soon(visitor.come)

    async def wait_for_phase(self, phase: str) -> None:
        """See `Street`."""
        await self._wait_for(lambda: phase in ("", self.phase()))

    def visit_ended(self, outcome: str) -> None:
        """A visitor is done."""
        self._history.visits[outcome] += 1
        self._moved.unpark_all()

    async def _operate(self) -> None:
        """Ask for one change after the other, each when the one before is over."""
        for reshape in self.scenario.reshapes:
            await trio.sleep(reshape.after_s)
            outcome = ""
            while not outcome:
                await self._wait_for(self._serves)
                outcome = await self._reshape(reshape)
                if not outcome:
                    await trio.sleep(LOOK_S)
            self._history.changes[outcome] += 1
            self._moved.unpark_all()

    async def _reshape(self, reshape: Reshape) -> str:
        """Ask for a change and wait for its end; "" where it has to be asked for again."""
        assert self.daemon is not None
        coordinator = self.daemon.coordinator
        assert coordinator is not None
        machine = coordinator.machine
        if reshape.strategy == "restart":
            self.checks.severe = True
        stages = _stages(reshape, machine.route.stages, machine.roster.next_worker, self.scenario.model.atoms)
        try:
            coordinator.refactor(Refactor(machine.epoch, stages, reshape.strategy, reshape.allow_preempt))
        except RefactorRefusedError:
            return ""
        epoch = machine.highest_epoch
        await self._wait_for(self._serves)
        state = fold(self.journal.records)
        return "done" if state.committed is not None and state.committed.epoch == epoch else "given up"

    async def _wait_for(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._moved.park()

    # --- what is so ---

    def follow(self) -> None:
        """Something happened at the coordinator."""
        phase = self.phase()
        if phase != self._phase:
            self._phase = phase
            if self.visitors or phase != "recovery":
                self.faults.entered(phase)
        self._moved.unpark_all()

    def _serves(self) -> bool:
        coordinator = self.daemon.coordinator if self.daemon else None
        return (
            coordinator is not None
            and coordinator.machine.state is PipelineState.SERVING
            and coordinator.machine.change is None
        )

    def _change(self) -> Change | None:
        coordinator = self.daemon.coordinator if self.daemon else None
        return coordinator.machine.change if coordinator else None

    def _house_rules(self) -> str:
        """What is not as it should be when all is quiet, "" where all is."""
        coordinator = self.daemon.coordinator if self.daemon else None
        if self.daemon is None or coordinator is None or self._house is None:
            return "nobody coordinates"
        counts = self.daemon.scheduler.counts()
        busy = (counts.waiting, counts.running, counts.steps_under_way, counts.kv_blocks_used)
        if any(busy):
            return "{} requests wait, {} run, {} steps are under way, {} blocks are held".format(*busy)
        state = fold(self.journal.records)
        if state.committed is None or not state.released or state.committed.route != coordinator.machine.route:
            return f"the journal is not where the coordinator is: {state}"
        return self._house.untidy(coordinator.machine.route, counts.kv_blocks)

    # --- what the faults ask for ---

    @property
    def engines(self) -> dict[int, WorldEngine]:
        """The engines of workers that live."""
        assert self._house is not None
        return self._house.engines

    def phase(self) -> str:
        """See `Victims`."""
        coordinator = self.daemon.coordinator if self.daemon else None
        if coordinator is None:
            return self._phase
        machine = coordinator.machine
        if machine.state in (PipelineState.WAITING, PipelineState.STARTING):
            return "recovery"
        change = machine.change
        if change is None:
            return "serving"
        return "recovery" if change.base is None else _PHASE_NAMES[change.phase]

    def routes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See `Victims`."""
        coordinator = self.daemon.coordinator if self.daemon else None
        if coordinator is None:
            return (), ()
        change, route = coordinator.machine.change, coordinator.machine.route
        if change is None:
            return route.workers, route.workers
        return (change.base or route).workers, change.route.workers

    def living(self) -> list[int]:
        """See `Victims`."""
        assert self._house is not None
        return sorted(self._house.actors)

    def kill(self, worker: int) -> None:
        """See `Victims`."""
        assert self._house is not None
        self._house.processes[worker].signal(kill=True)

    def crash_coordinator(self) -> None:
        """See `Victims`."""
        if self.daemon is not None:
            self.daemon.crash_coordinator()

    def crash_daemon(self) -> None:
        """See `Victims`."""
        if self.daemon is not None:
            self.daemon.crash()

    def send_a_client_away(self, choice: float) -> bool:
        """See `Victims`."""
        present = [visitor for visitor in self.visitors if visitor.is_served]
        if present:
            present[int(choice * len(present))].leave()
        return bool(present)

    def note(self, fault: str, phase: str, target: str) -> None:
        """See `Victims`."""
        self._log.emit("fault_injected", fault=fault, phase=phase, target=target)

    def log(self, process: str) -> WorldLog:
        """The log of a process."""
        return WorldLog(self._lines, self.checks, process)


def _stages(
    reshape: Reshape, old: tuple[StagePlacement, ...], next_worker: int, atoms: int
) -> tuple[StagePlacement, ...]:
    """The placements of a change. Places that the old route does not have get new workers."""
    edges = (0, *reshape.cuts, atoms)
    stages = []
    for place, keep in enumerate(reshape.keeps):
        if 0 <= keep < len(old):
            worker = old[keep].worker
        else:
            worker, next_worker = next_worker, next_worker + 1
        stages.append(StagePlacement(worker, edges[place], edges[place + 1], f"device:{worker}", 1))
    return tuple(stages)


def _innermost(error: BaseException) -> str:
    """The first of the exceptions that came together, and where it was raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {where}: {error}"
