"""Drives `control.controller` for one served model: samples the load, has a decision made, writes it down, carries it out.

Owns the beat and the acting. What shapes there are is a `Shapes`' to know, which is best the policy's, whether to change the
controller's, how to change the `Refactorer`'s. In a dry run it decides and writes down, and the pipeline stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from ..policies.control.capacity_correction import CapacityCorrection
from ..policies.control.controller import decide, settled
from ..policies.control.decision import ControllerMemory, Decision, Guard, Limits
from ..policies.control.granularity import GranularityPolicy, Shape
from ..policies.control.signals import Signals
from ..runtime.interface import BLOCK_TOKENS
from .decision_journal import DecisionJournal
from .load_meter import LoadMeter
from .refactor import (
    Refactorer,
    RefactorFailed,
    RefactorRefusedError,
    RefactorReport,
    RefactorRequest,
    SameShapeRefusedError,
)
from .replicas import Replicas
from .route import Route

BEAT_S = 1.0
"""From one decision to the next at pace 1."""
SATURATED_S = 1.0
"""How long there must be more to do than can be done, for what was served to show the capacity: several steps, at whatever pace."""


@dataclass(frozen=True, slots=True)
class ShapesNow:
    """The present shape and the others, and what saturates the present one: requests in all its steps together."""

    present: Shape
    candidates: tuple[Shape, ...]
    full_rows: int


class Shapes(Protocol):
    """Knows which shapes a model could take."""

    async def now(self, routes: tuple[Route, ...], live_tokens: int) -> ShapesNow:
        """Given the replicas' routes, the oldest first, and the tokens of context that their requests hold."""
        ...


@dataclass(frozen=True, slots=True)
class AutopilotSettings:
    """How to decide. ``beat_s`` passes between decisions."""

    policy: GranularityPolicy
    limits: Limits
    guard: Guard | None = None
    dry_run: bool = False
    beat_s: float = BEAT_S


class Autopilot:
    """See the module. ``busy`` says whether somebody else changes the pipeline just now."""

    def __init__(
        self,
        settings: AutopilotSettings,
        replicas: Replicas,
        refactorer: Refactorer,
        shapes: Shapes,
        signals: Signals,
        meter: LoadMeter,
        journal: DecisionJournal,
        busy: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._replicas = replicas
        self._refactorer = refactorer
        self._shapes = shapes
        self._signals = signals
        self._meter = meter
        self._journal = journal
        self._busy = busy
        self._memory = ControllerMemory()
        self._correction = CapacityCorrection()
        self._full_since: tuple[float, float] | None = None  # (time, tokens served until then)

    async def run(self) -> None:
        """Decide at every beat until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._settings.beat_s)
                decision = await self._decide()
                if decision is not None and decision.action == "change":
                    nursery.start_soon(self._act, decision)

    async def _decide(self) -> Decision | None:
        """The next decision, written down; None while no replica serves or somebody else changes one."""
        pipelines = [replica.pipeline for replica in self._replicas.present if replica.pipeline.is_serving]
        if not pipelines or (self._busy() and not self._memory.under_way):
            self._full_since = None
            return None
        counts = [pipeline.counts for pipeline in pipelines]
        used, blocks = sum(count.kv_blocks_used for count in counts), sum(count.kv_blocks for count in counts)
        running, waiting = sum(count.running for count in counts), sum(count.waiting for count in counts)
        now = await self._shapes.now(tuple(pipeline.route for pipeline in pipelines), used * BLOCK_TOKENS)
        now_s = trio.current_time()
        # What runs beyond full steps only makes them slower: in effect it waits.
        queue = waiting + max(0, running - now.full_rows)
        self._signals.sample(now_s, queue, running, used / max(blocks, 1))
        self._correct(now.present, now_s, full=running + waiting >= now.full_rows)
        present, *candidates = (self._corrected(shape) for shape in (now.present, *now.candidates))
        observation = self._signals.observe(now_s)
        settings = self._settings
        self._memory, decision = decide(
            self._memory, observation, present, candidates, settings.policy, settings.limits, settings.guard
        )
        self._journal.write(decision)
        return decision

    def _correct(self, present: Shape, now_s: float, *, full: bool) -> None:
        """Learn from what was served while there was more to do than could be done."""
        if not full or self._memory.under_way:
            self._full_since = None
            return
        served = self._meter.served_tokens
        if self._full_since is None:
            self._full_since = now_s, served
        since_s, before = self._full_since
        if now_s - since_s >= SATURATED_S:
            self._correction = self._correction.after(
                (served - before) / (now_s - since_s), present.capacity_tokens_per_s
            )
            self._full_since = now_s, served

    def _corrected(self, shape: Shape) -> Shape:
        factor = self._correction.factor
        return replace(shape, tpot_s=shape.tpot_s / factor, capacity_tokens_per_s=shape.capacity_tokens_per_s * factor)

    async def _act(self, decision: Decision) -> None:
        """Make the wanted shape, and tell the controller how it went."""
        assert decision.wanted is not None
        began_s = trio.current_time()
        sentence = "" if self._settings.dry_run else await self._change(decision.present, decision.wanted)
        ended_s = trio.current_time()
        if not sentence and not self._settings.dry_run and decision.wanted.devices > decision.present.devices:
            self._signals.started_up(ended_s, ended_s - began_s)
        self._memory = settled(self._memory, self._memory.at_s or 0.0, succeeded=not sentence)
        self._journal.acted(decision.wanted, ended_s - began_s, sentence, dry_run=self._settings.dry_run)

    async def _change(self, present: Shape, wanted: Shape) -> str:
        """Carry it out, capacity first: the replicas that stay take their stages, and only then others go. "" or what failed.

        Where there is no room for that, those that go free their devices first. More replicas come last, shaped like the others.
        """
        fewer, reshapes = wanted.replicas < present.replicas, wanted.stages != present.stages
        if fewer and reshapes:
            made, sentence = await self._reshape_kept(wanted)
            if made or sentence:
                return sentence or await self._carry_out(RefactorRequest(replicas=wanted.replicas))
        requests = [
            *([RefactorRequest(replicas=wanted.replicas)] if fewer else []),
            *([RefactorRequest(stages=wanted.stages)] if reshapes else []),
            *([RefactorRequest(replicas=wanted.replicas)] if wanted.replicas > present.replicas else []),
        ]
        for request in requests:
            sentence = await self._carry_out(request)
            if sentence:
                return sentence
        return ""

    async def _reshape_kept(self, wanted: Shape) -> tuple[bool, str]:
        """(whether the replicas that stay have the wanted stages now, what failed on the way).

        One that is refused for want of room leaves those before it changed: retiring others first will give it room.
        """
        for replica in self._replicas.present[: wanted.replicas]:
            try:
                sentence = await self._done(RefactorRequest(stages=wanted.stages, replica=replica.number))
            except SameShapeRefusedError:
                continue
            except RefactorRefusedError:
                return False, ""
            if sentence:
                return False, sentence
        return True, ""

    async def _carry_out(self, request: RefactorRequest) -> str:
        """Empty, or why it was refused, or failed."""
        try:
            return await self._done(request)
        except RefactorRefusedError as refusal:
            return str(refusal)

    async def _done(self, request: RefactorRequest) -> str:
        """Empty, or what failed. Raises `RefactorRefusedError`."""
        async with aclosing(self._refactorer.refactor(request)) as events:
            async for event in events:
                if isinstance(event, RefactorReport):
                    return ""
                if isinstance(event, RefactorFailed):
                    return event.sentence
        raise AssertionError("the events of a change ended without a last one")
