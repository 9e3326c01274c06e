"""What a simulated run leaves behind: every request's fate, who held what when, and what became of each action.

Owns the values and the laws that every run obeys. It must never know what is concluded from them (`metrics`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .state import ABSENT, DECODES, DONE, FAILED, REFUSED, WAITS, Records
from .system import Outcome


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One system under one workload.

    ``requests`` are `state.REQUEST` records in the order of arrival. ``load_s`` is the time of the last arrival, ``ended_s`` when
    the simulation stopped. ``timeline`` are (moment, devices held from then on). ``served_tokens`` and ``prompt_tokens`` were
    computed by replicas, those lost to preemption among them. ``over_bytes_max`` is the most by which a device held more than it
    has: never above 0.
    """

    system: str
    requests: Records
    models: tuple[str, ...]
    devices: int
    load_s: float
    ended_s: float
    timeline: tuple[tuple[float, int], ...]
    outcomes: tuple[Outcome, ...]
    events: int
    ticks: int
    served_tokens: float
    prompt_tokens: float
    over_bytes_max: int

    def flaw(self) -> str:
        """Which law of all runs was broken, in a sentence; "" where none was."""
        phase, requests = self.requests["phase"], self.requests
        done = requests[phase == DONE]
        if (phase == ABSENT).any() and self.ended_s >= self.load_s:
            return "a request never arrived"
        if len(done) and not (done["made"] == done["output"]).all():
            return "a request ended with another number of tokens than it asked for"
        times = (done["arrival_s"], done["begun_s"], done["first_s"], done["end_s"])
        if any((later < earlier - 1e-6).any() for earlier, later in pairwise(times)):
            return "a request had its first token before its first step, or ended before it"
        if self.over_bytes_max > 0:
            return f"a device held {self.over_bytes_max} bytes more than it has"
        return self._unconserved()

    def _unconserved(self) -> str:
        """Which work was computed that nobody asked for, or delivered without having been computed; "" where none was."""
        requests = self.requests
        made, again = float(requests["made"].astype(np.int64).sum()), int(requests["preempted"].sum())
        under_way = requests[requests["phase"] == DECODES]  # what they have made is written down when they end
        could = made + float((under_way["output"].astype(np.int64) - under_way["made"]).sum())
        near = made * 1e-6 + 1
        if not made - near <= self.served_tokens <= could + again + near:  # a preempted request loses less than a token
            return f"{made:.0f} tokens were delivered, {self.served_tokens:.0f} were computed"
        done = requests[requests["phase"] == DONE]
        asked = float(done["prompt"].astype(np.int64).sum())
        near = asked * 1e-6 + 1
        if self.prompt_tokens < asked - near:
            return f"prompts of {asked:.0f} tokens were answered, {self.prompt_tokens:.0f} were computed"
        if not again and len(done) == len(requests) and self.prompt_tokens > asked + near:
            return (
                f"prompts had {asked:.0f} tokens, {self.prompt_tokens:.0f} were computed though nothing was preempted"
            )
        return ""

    def counts(self) -> dict[str, int]:
        """Requests by what became of them; all of them are in it once."""
        phase = self.requests["phase"]
        named = {"done": DONE, "refused": REFUSED, "failed": FAILED, "waiting": WAITS, "absent": ABSENT}
        counts = {name: int((phase == number).sum()) for name, number in named.items()}
        return {**counts, "running": len(phase) - sum(counts.values())}
