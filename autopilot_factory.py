"""Makes the autopilot of a served model from its settings: signals, policy, limits and guard, all at the pace that was asked for.

Part of the composition root (`daemon`). It decides nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace

import trio

from .actors.autopilot import BEAT_S, AutopilotSettings, ShapesNow
from .actors.config import ServeConfig
from .actors.devices import cuda_devices, parse_devices, stated_memory
from .actors.route import Route
from .policies.certificate.serving_certificate import controller_guard
from .policies.certificate.serving_facts import RouterFacts
from .policies.control.decision import Limits
from .policies.control.granularity import GranularityPolicy
from .policies.control.granularity_fluid import FluidPolicy
from .policies.control.granularity_paper import PaperPolicy
from .policies.control.signals import SignalSettings
from .preparation import PLANNED_REQUESTS, PreparedModel, costs_for, prompt_weight
from .refactor_planning import RefactorPlanner
from .shape_planning import DecodeLoad, Running, ShapePlanner

DRAIN_S_MIN = 10.0
"""Within how long a backlog is to be gone, at whatever pace: workers start no faster for it, and the certificate asks for 1.3
times as long as that takes."""
BEAT_S_MIN = 0.05
"""Least time between two decisions, at whatever pace: each weighs some dozens of shapes."""


def settings_for(config: ServeConfig) -> AutopilotSettings:
    """How the autopilot of a server with ``config`` decides."""
    policy: GranularityPolicy = PaperPolicy() if config.policy == "paper" else FluidPolicy()
    return AutopilotSettings(
        policy=policy,
        limits=_limits(config),
        guard=controller_guard(RouterFacts()),
        dry_run=config.dry_run,
        beat_s=max(BEAT_S / config.pace, BEAT_S_MIN),
    )


def signal_settings(pace: float) -> SignalSettings:
    """The usual ones with all times divided by ``pace``, but for those that tell a clock that jumped."""
    usual = SignalSettings()
    return replace(
        usual,
        bin_s=usual.bin_s / pace,
        history_s=usual.history_s / pace,
        envelope_s=usual.envelope_s / pace,
        rate_window_s=usual.rate_window_s / pace,
        slope_window_s=usual.slope_window_s / pace,
        taus_s=tuple(tau_s / pace for tau_s in usual.taus_s),
        envelope_windows_s=tuple(window_s / pace for window_s in usual.envelope_windows_s),
    )


def _limits(config: ServeConfig) -> Limits:
    usual, pace = Limits(), config.pace
    return replace(
        usual,
        confirm_grow_s=usual.confirm_grow_s / pace,
        confirm_shrink_s=usual.confirm_shrink_s / pace,
        dwell_s_min=usual.dwell_s_min / pace,
        changes_per_hour_max=round(config.changes_per_hour * max(pace, 1.0)),
        drain_s=max(usual.drain_s / pace, DRAIN_S_MIN),
        observed_s_min=usual.observed_s_min / pace,
        failure_pause_s=usual.failure_pause_s / pace,
        failure_pause_s_max=usual.failure_pause_s_max / pace,
    )


class PlannedShapes:
    """The `Shapes` of a daemon: plans in a thread, and anew only where something is different."""

    def __init__(self, planner: ShapePlanner) -> None:
        self.prompt_weight = planner.load.prompt_weight
        self._planner = planner
        self._known: tuple[object, ShapesNow] | None = None

    async def now(self, routes: tuple[Route, ...], live_tokens: int) -> ShapesNow:
        """See `Shapes.now`. Tokens are rounded up to a power of two: what they weigh need not be known better."""
        running = Running(routes, 1 << live_tokens.bit_length() if live_tokens else 0)
        if self._known is None or self._known[0] != running:
            self._known = running, await trio.to_thread.run_sync(self._plan, running)
        return self._known[1]

    def _plan(self, running: Running) -> ShapesNow:
        present = self._planner.present(running)
        steps = self._planner.steps_at_once(present.stages, present.replicas)
        return ShapesNow(present, self._planner.candidates(running), steps * self._planner.load.rows)


def shapes_for(
    model: PreparedModel, config: ServeConfig, planner: RefactorPlanner, kv_tokens_max: int
) -> PlannedShapes:
    """The shapes that ``model`` could take on this node, whose server allows ``kv_tokens_max`` tokens of context in all."""
    atoms = costs_for(model.program, config.dtype)
    load = DecodeLoad(PLANNED_REQUESTS, prompt_weight(model.program, config.dtype), kv_tokens_max)
    devices = parse_devices(config.devices) if config.devices else _devices_here(model)
    return PlannedShapes(ShapePlanner(atoms, planner, load, devices, stated_memory(config.devices)))


def _devices_here(model: PreparedModel) -> tuple[str, ...]:
    """Where nothing else is said: all GPUs, or a CPU worker for each core."""
    stages = len(model.plan.stages)
    if cuda_devices() >= stages:
        return parse_devices("cuda")
    return parse_devices(f"cpu:{max(stages, len(os.sched_getaffinity(0)))}")
