"""A system that the product's controller drives: signals, controller and placement of `policies`, as a daemon's autopilot has them.

Owns the beat and the acting in a simulated cluster, as `actors.autopilot` owns them in a real one; every decision is
`policies.controller.decide`'s. Simplified against the daemon: each model has one controller of its own; all replicas of a model
are reshaped in one go where the daemon takes one after the other; a replica lost with its node is started anew at once.

A replica that comes or goes alone is asked for and counts at once: the next decision does not wait for it. A change of depth splits
or merges stages where they are (`nested_change`), and old and new have to fit beside each other. Replicas fill their devices with
KV, so a split finds room and keeps the KV room that there was, while most merges are refused, as the product refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ...policies.certificate.serving_certificate import controller_guard
from ...policies.certificate.serving_facts import RouterFacts
from ...policies.control.capacity_correction import CapacityCorrection
from ...policies.control.controller import decide, settled
from ...policies.control.decision import ControllerMemory, Decision, Guard, Limits
from ...policies.control.granularity import GranularityPolicy, Shape
from ..cluster.served_model import PLANNED_ROWS
from ..cluster.system import Action, Dispatch, How, Start, View
from .fleet import Fleet, Warmth, first_starts
from .load_view import LoadView
from .model_shapes import STAGE_COUNTS, ModelShapes
from .nested_change import NoChangeError
from .placing import Placer, planned
from .situation import Situation

BEAT_S = 1.0
"""From one decision to the next: `actors.autopilot`'s."""
SATURATED_S = 1.0
"""How long replicas must be full for what they served to show their capacity; likewise."""
FIRST_HEADROOM = 1.2
"""Capacity at time 0 over the mean load of the history, for all systems that adapt."""


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """How to decide, and what may be changed at all: ``depths``, and the replica count unless ``fixed_replicas``.

    No replica is given more KV room than ``kv_tokens_max``. With ``drain`` a replica that goes ends its requests first; else
    others go on with them at once, their KV computed anew.
    """

    policy: GranularityPolicy
    limits: Limits = field(default_factory=Limits)
    guard: Guard | None = None
    depths: tuple[int, ...] = STAGE_COUNTS
    fixed_replicas: bool = False
    placer: Placer = planned
    how: How = "live"
    drain: bool = True
    kv_tokens_max: int | None = None


def usual_guard() -> Guard:
    """The certificate by which the daemon guards its changes."""
    return controller_guard(RouterFacts())


Phase = Literal["reshape", "start", "wait"]


@dataclass(slots=True)
class _Change:
    """A change on its way: what is still to be asked for, and how many outcomes are awaited."""

    wanted: Shape
    tag: str
    todo: list[Phase]
    awaited: int = 0
    failed: str = ""


class ControlledModel:
    """One model under control; see the module."""

    def __init__(self, situation: Situation, model: int, settings: ControlSettings) -> None:
        self.decisions: list[Decision] = []
        self._model = model
        self._settings = settings
        self._shapes = ModelShapes(situation.facts[model], settings.depths)
        self._load = LoadView(model, situation.facts[model].prompt_weight, situation.mean_outputs(model))
        self._memory = ControllerMemory()
        self._correction = CapacityCorrection()
        self._full_since: tuple[float, float] | None = None
        self._warm = Warmth()
        self._change: _Change | None = None
        self._changes = 0
        self._mean_work = situation.mean_work(model)

    def begin(self, view: View) -> list[Action]:
        """Replicas for the mean load with some to spare, at the least depth of which there is room for as many."""
        return first_starts(self._fleet(view), self._shapes, self._mean_work * FIRST_HEADROOM)

    def tick(self, view: View) -> list[Action]:
        """Learn, decide, act."""
        fleet = self._fleet(view)
        serving = [replica for replica in fleet.replicas if replica.state == "serving"]
        full_rows = sum(len(replica.stages) for replica in fleet.replicas) * PLANNED_ROWS
        present = self._present(fleet) if serving else None
        self._load.see(view, full_rows, present.kv_tokens if present else 0)
        self._warm.see(self._model, view)
        actions = self._go_on(fleet)
        if present is None:
            self._full_since = None
            return actions + self._restart(fleet)
        busy = sum(replica.waiting + replica.running for replica in serving) + view.unplaced[self._model]
        self._correct(present, view.now_s, full=busy >= full_rows and len(serving) == len(fleet.replicas))
        decision = self._decide(fleet, present)
        self.decisions.append(decision)
        if decision.action == "change":
            actions += self._begin(fleet, decision)
        return actions

    def _fleet(self, view: View) -> Fleet:
        return Fleet(view, self._model, self._settings.placer, self._warm, self._settings.kv_tokens_max)

    def _present(self, fleet: Fleet) -> Shape:
        """All replicas, those that start included: what is on its way is not asked for again."""
        facts, stages = self._shapes.facts, len(fleet.replicas[0].stages)
        kv_tokens = sum(replica.kv_tokens or facts.depths[len(replica.stages)].kv_tokens for replica in fleet.replicas)
        capacity = sum(facts.capacity(len(replica.stages)) for replica in fleet.replicas)
        shape = self._shapes.shape(stages, len(fleet.replicas), kv_tokens=kv_tokens)
        return replace(shape, capacity_tokens_per_s=capacity)

    def _decide(self, fleet: Fleet, present: Shape) -> Decision:
        settings, view = self._settings, fleet.view
        counts = (present.replicas,) if settings.fixed_replicas else None
        candidates = self._shapes.candidates(view.cluster, present, fleet.devices, counts)
        corrected = [self._corrected(shape) for shape in (present, *candidates)]
        self._memory, decision = decide(
            self._memory,
            self._load.observe(view.now_s),
            corrected[0],
            corrected[1:],
            settings.policy,
            settings.limits,
            settings.guard,
        )
        return decision

    def _correct(self, present: Shape, now_s: float, *, full: bool) -> None:
        """Learn from what was served while there was more to do than could be done."""
        if not full or self._memory.under_way:
            self._full_since = None
            return
        served = self._load.served_tokens
        if self._full_since is None:
            self._full_since = now_s, served
        since_s, before = self._full_since
        if now_s - since_s >= SATURATED_S:
            rate = (served - before) / (now_s - since_s)
            self._correction = self._correction.after(rate, present.capacity_tokens_per_s)
            self._full_since = now_s, served

    def _corrected(self, shape: Shape) -> Shape:
        factor = self._correction.factor
        if factor == 1.0:
            return shape
        return replace(shape, tpot_s=shape.tpot_s / factor, capacity_tokens_per_s=shape.capacity_tokens_per_s * factor)

    def _begin(self, fleet: Fleet, decision: Decision) -> list[Action]:
        """Fewer replicas first, which frees devices, then the stages, then more replicas: the autopilot's order."""
        present, wanted = decision.present, decision.wanted
        assert wanted is not None
        self._changes += 1
        change = _Change(wanted, f"{self._model}/{self._changes}", [])
        self._change = change
        if wanted.stages != present.stages:
            change.todo.append("reshape")
        if wanted.replicas > present.replicas:
            change.todo.append("start")
        fewer = max(0, present.replicas - wanted.replicas)
        if wanted.stages == present.stages:
            return self._replicas_only(fleet, change, fewer)
        actions = fleet.stops(fewer, drain=self._settings.drain, tag=change.tag)
        change.awaited = len(actions)  # what follows needs the devices that they are on
        return actions or self._go_on(fleet)

    def _replicas_only(self, fleet: Fleet, change: _Change, fewer: int) -> list[Action]:
        """Replicas come or go, and nothing waits for them: the next decision may be taken, and counts what is on its way."""
        self._change = None
        actions = (
            fleet.stops(fewer, drain=self._settings.drain, tag=change.tag)
            if fewer
            else fleet.starts(change.wanted.stages, change.wanted.replicas - len(fleet.replicas), change.tag)
        )
        self._memory = settled(self._memory, fleet.view.now_s, succeeded=bool(actions))
        return actions

    def _go_on(self, fleet: Fleet) -> list[Action]:
        """Take the outcomes in, and ask for the next part of the change under way once the one before is done."""
        self._learn(fleet.view)
        change = self._change
        if change is None:
            return []
        for outcome in fleet.view.outcomes:
            if outcome.action is not None and getattr(outcome.action, "tag", "") == change.tag:
                change.awaited -= 1
                if outcome.kind in {"refused", "failed"}:
                    change.failed = outcome.sentence or outcome.kind
        if change.awaited > 0:
            return []
        while change.todo and not change.failed:
            actions = self._part(fleet, change, change.todo.pop(0))
            if actions:
                change.awaited = len(actions)
                return actions
        self._change = None
        self._memory = settled(self._memory, fleet.view.now_s, succeeded=not change.failed)
        return []

    def _learn(self, view: View) -> None:
        """How long starts took; one of a replica alone that came to nothing makes the next change wait."""
        for outcome in view.outcomes:
            if not isinstance(outcome.action, Start) or outcome.action.model != self._model or not outcome.action.tag:
                continue
            if outcome.kind == "serving":
                self._load.signals.started_up(outcome.at_s, outcome.took_s)
            elif outcome.kind in {"refused", "failed"} and self._change is None:
                self._memory = settled(self._memory, view.now_s, succeeded=False)

    def _part(self, fleet: Fleet, change: _Change, phase: Phase) -> list[Action]:
        if phase == "reshape":
            try:
                return fleet.reshapes(change.wanted.stages, self._settings.how, change.tag)
            except NoChangeError as error:
                change.failed = str(error)
                return []
        missing = change.wanted.replicas - len(fleet.replicas)
        starts = fleet.starts(change.wanted.stages, missing, change.tag) if missing > 0 else []
        if missing > 0 and not starts:
            change.failed = f"there are no devices for {change.wanted.words}"
        return starts

    def _restart(self, fleet: Fleet) -> list[Action]:
        """Nothing serves and nothing starts: one replica, at the least depth that finds room."""
        if fleet.replicas or self._change is not None:
            return []
        for depth in self._shapes.depths:
            starts = fleet.starts(depth, 1)
            if starts:
                return starts
        return []


class Controlled:
    """A `System` of such models; ``settings`` gives those of each by its number."""

    dispatch: Dispatch = "least-work"
    tick_s = BEAT_S

    def __init__(self, name: str, situation: Situation, settings: Callable[[int], ControlSettings]) -> None:
        self._name = name
        self.models = [ControlledModel(situation, model, settings(model)) for model in range(len(situation.models))]

    @property
    def name(self) -> str:
        """See `System.name`."""
        return self._name

    def begin(self, view: View) -> Sequence[Action]:
        """See `System.begin`."""
        return [action for model in self.models for action in model.begin(view)]

    def tick(self, view: View) -> Sequence[Action]:
        """See `System.tick`."""
        return [action for model in self.models for action in model.tick(view)]
