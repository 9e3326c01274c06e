"""A pipeline as a fluid, driven by the real signals and the real controller: work comes, waits, and is served at capacity.

Starting up takes time, during which the old shape serves, as in a refactoring. A tick is a second, and nothing is drawn by chance.
"""

from dataclasses import dataclass, field

from flexpipe.policies.control.controller import decide, settled
from flexpipe.policies.control.decision import ControllerMemory
from flexpipe.policies.control.granularity import Shape
from flexpipe.policies.control.signals import Signals, SignalSettings

TOKENS = 200  # of work in a request

SHAPES = tuple(
    Shape(
        stages,
        replicas,
        tpot_s=0.02 * (1 + 0.05 * (stages - 1)),
        capacity_tokens_per_s=1000.0 * stages * replicas / (1 + 0.05 * (stages - 1)),
        startup_s=1 + 8 / stages,
        switch_s=0.02,
        kv_tokens=50_000 * stages * replicas,
    )
    for stages in (1, 2, 4)
    for replicas in (1, 2)
)


@dataclass
class Run:
    """What happened: a time and a shape per change begun, decisions, and the longest wait of the backlog, in seconds."""

    changes: list = field(default_factory=list)
    decisions: list = field(default_factory=list)
    wait_s: float = 0.0

    def most_changes_within(self, span_s):
        begun = [at_s for at_s, _ in self.changes]
        return max((sum(at_s <= other < at_s + span_s for other in begun) for at_s in begun), default=0)


def run(requests_per_s, duration_s, policy, limits, *, guard=None, settings=None, clock=lambda at_s: at_s, fails=False):
    """Serves ``requests_per_s(at_s)`` for so long. ``clock`` distorts the times that signals are told; ``fails`` fails changes."""
    signals = Signals(settings or SignalSettings(history_s=600.0, envelope_s=60.0))
    memory, present, target, ready_s = ControllerMemory(), SHAPES[0], None, 0
    backlog, owed, result = 0.0, 0.0, Run()
    for tick in range(duration_s):
        owed += requests_per_s(tick)
        for number in range(int(owed)):
            signals.arrived(clock(tick + number / (int(owed) + 1)), TOKENS)
            backlog += TOKENS
        owed -= int(owed)
        backlog = max(backlog - present.capacity_tokens_per_s, 0.0)
        result.wait_s = max(result.wait_s, backlog / present.capacity_tokens_per_s)
        signals.sample(clock(tick + 1), int(backlog / TOKENS), 8, 0.25)
        seen = signals.observe(clock(tick + 1))
        if target is not None and tick >= ready_s:
            present, target = (present if fails else target), None
            memory = settled(memory, seen.at_s, succeeded=not fails)
        memory, decision = decide(memory, seen, present, SHAPES, policy, limits, guard)
        result.decisions.append(decision)
        if decision.action == "change":
            target, ready_s = decision.wanted, tick + decision.wanted.startup_s
            result.changes.append((tick, decision.wanted))
    return result


def square_wave(period_s, low, high):
    """``high`` requests/s for half of each period, then ``low``."""
    return lambda at_s: high if at_s % period_s < period_s / 2 else low
