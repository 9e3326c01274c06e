"""A case in the simulated world: the real actors on a virtual clock, with engines that take calibrated times.

Owns the composition. What the actors decide is theirs.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import trio

from ...actors.coordinator import Coordinator
from ...actors.coordinator_events import Refactor
from ...actors.coordinator_machine import CoordinatorMachine
from ...actors.event_log import EventLog
from ...actors.generation import GenerationRequest, ModelFacts
from ...actors.link_place import NamedPlaces
from ...actors.pipeline import Pipeline
from ...actors.pipeline_spec import CoordinatorLimits, PipelineSpec
from ...actors.refactor import RefactorReport
from ...actors.route import StagePlacement
from ...actors.scheduler import Scheduler
from ...actors.scheduler_machine import SchedulerLimits
from ...actors.worker_machine import WorkerLimits
from ...actors.worker_pool import BoundDoors, WorkerPool
from ...runtime.interface import BLOCK_TOKENS, EngineSpec, SamplingParams
from ...transport.memory import MemoryNetwork
from ...transport.memory_wire import Weather
from ..memory_journal import MemoryJournal
from ..task_launcher import TaskLauncher
from ..virtual_time import run_virtual
from .calibration import Calibration
from .case import Case
from .observed import Observed, ObservedChange
from .timed_engine import MODEL, Host, TimedEngine, atom_edges

RUN_S_MAX = 24 * 3600.0
READY_LOOK_S = 0.01
QUEUE_MAX = 1 << 20


class RunFailedError(Exception):
    """A simulated run in which something was refused or lost, which no case asks for; the sentence says what."""


class _Nowhere:
    """A log that nobody reads."""

    def write(self, text: str, /) -> None:
        """Forget it."""

    def flush(self) -> None:
        """Nothing waits."""


def run_in_world(case: Case, calibration: Calibration, seed: int = 0) -> Observed:
    """Let the case happen. Raises `RunFailedError`."""
    return run_virtual(lambda: _World(case, calibration, seed).run(), seed, RUN_S_MAX)


class _World:
    def __init__(self, case: Case, calibration: Calibration, seed: int) -> None:
        self._case = case
        self._host = Host(calibration)
        self._network = MemoryNetwork(seed, Weather(calibration.hop_s, calibration.hop_s))
        count = len(case.trace)
        self._arrival_s, self._first_s, self._end_s = np.zeros(count), np.full(count, np.nan), np.full(count, np.nan)
        self._changes: list[ObservedChange] = []
        self._log = EventLog(_Nowhere(), clock=trio.current_time, process="daemon")

    async def run(self) -> Observed:
        """From the first start until the last request has ended."""
        async with trio.open_nursery() as nursery, self._network.open("daemon") as transport:
            known = self._host.calibration
            spec = PipelineSpec(
                EngineSpec(),
                _placements(self._case.stages, tuple(range(self._case.stages))),
                MODEL.layers_of,
                known.kv_tokens // BLOCK_TOKENS,
                known.kv_tokens,
            )
            limits = SchedulerLimits(QUEUE_MAX, known.requests_max, known.limits)
            scheduler = Scheduler(
                limits, self._log, context_tokens=known.kv_tokens, steps_under_way_max=known.steps_max
            )
            launcher = TaskLauncher(self._network, nursery, lambda: TimedEngine(self._host), _Nowhere())
            doors = BoundDoors(transport, "memory://control-{worker}")
            pool = WorkerPool(launcher, doors, scheduler, WorkerLimits(), self._log)
            machine = CoordinatorMachine(spec, CoordinatorLimits(), NamedPlaces("memory://{epoch}-{link}"))
            coordinator = Coordinator(machine, pool, scheduler, MemoryJournal(), self._log)
            facts = ModelFacts(known.model, "modelled", MODEL.layers, known.kv_tokens)
            pipeline = Pipeline(0, facts, scheduler, coordinator, pool)
            nursery.start_soon(pipeline.run)
            while not pipeline.status().ready or machine.change is not None:  # noqa: ASYNC110 - it costs no time here
                await trio.sleep(READY_LOOK_S)
            await self._live(scheduler, coordinator)
            pipeline.stop()
            nursery.cancel_scope.cancel()
        return Observed(
            self._arrival_s, self._first_s, self._end_s, self._case.trace.output_tokens, tuple(self._changes)
        )

    async def _live(self, scheduler: Scheduler, coordinator: Coordinator) -> None:
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(len(self._case.trace)):
                nursery.start_soon(self._ask, scheduler, number, began_s)
            nursery.start_soon(self._change, coordinator, began_s)

    async def _ask(self, scheduler: Scheduler, number: int, began_s: float) -> None:
        trace = self._case.trace
        await trio.sleep_until(began_s + float(trace.arrival_s[number]))
        self._arrival_s[number] = trio.current_time()
        prompt = tuple(range(int(trace.input_tokens[number])))
        request = GenerationRequest(
            tuple(token % MODEL.vocabulary for token in prompt),
            SamplingParams(temperature=0.0),
            int(trace.output_tokens[number]),
        )
        async with scheduler.open(request) as events:
            async for event in events:
                if event.index == 0:
                    self._first_s[number] = trio.current_time()
        self._end_s[number] = trio.current_time()

    async def _change(self, coordinator: Coordinator, began_s: float) -> None:
        stages = self._case.stages
        for planned in self._case.changes:
            await trio.sleep_until(began_s + planned.at_s)
            asked_s = trio.current_time()
            self._host.load_s = self._host.calibration.change_takes_s(stages, planned.stages)
            self._host.changing = True
            report = await self._refactored(coordinator, planned.stages)
            self._host.changing = False
            pause_ms = report.pauses.p50_ms
            took_s = trio.current_time() - asked_s
            self._changes.append(ObservedChange(planned.stages, took_s, None if pause_ms is None else pause_ms / 1000))
            stages = planned.stages

    async def _refactored(self, coordinator: Coordinator, stages: int) -> RefactorReport:
        machine = coordinator.machine
        kept = machine.route.workers[:stages]
        new = range(machine.roster.next_worker, machine.roster.next_worker + stages - len(kept))
        change = Refactor(machine.epoch, _placements(stages, (*kept, *new)), "precopy", allow_preempt=False)
        final = [event async for event in coordinator.refactor(change).events()][-1]
        if not isinstance(final, RefactorReport):
            raise RunFailedError(f"a change to {stages} stages did not come off: {final}")
        return final


def _placements(stages: int, workers: tuple[int, ...]) -> tuple[StagePlacement, ...]:
    return tuple(
        StagePlacement(worker, first, end, f"cpu:{worker}", 1)
        for worker, (first, end) in zip(workers, pairwise(atom_edges(stages)), strict=True)
    )
