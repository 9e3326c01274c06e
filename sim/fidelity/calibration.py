"""What was measured of a real pipeline under synthetic load, frozen: what both simulators are given, and all that they are given.

Owns the file's format and what its numbers mean. It must never know the trace that simulators and pipeline are compared on.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...policies.batching import BatchLimits
from ..cluster.engine_times import StepTimes


class CalibrationError(Exception):
    """A file that is no calibration; the sentence says why."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model on one machine. Seconds and tokens unless said.

    - ``tokens`` ascending, and ``seconds[k]`` for each of them: from the plan of a step of so many tokens to its result, through
      all stages, where k + 1 steps are under way; all that a cycle takes is in it. ``seconds[0]`` is of one stage, ``seconds[1]``
      of two. A token of context that decoding rows read adds ``context_s``, a prompt of p tokens ``square_s`` p².
    - ``hop_s``: what one more message between two processes adds.
    - ``shares[n]``: what part of a step's computing each of n stages has.
    - ``change_s["a>b"]``: from asking for b stages in the place of a until the cut; steps take ``change_slowdown`` of their time
      longer meanwhile. ``cut_s``: how long the last pages take at the cut, ``cut_blocks`` of all layers.
    - A request has ``context_tokens`` at most; ``requests_max`` run at once, within ``kv_tokens`` in all; ``steps_max`` steps are
      under way at most.
    """

    model: str
    tokens: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    context_s: float
    square_s: float
    hop_s: float
    shares: dict[int, tuple[float, ...]]
    change_s: dict[str, float]
    change_slowdown: float
    cut_s: float
    cut_blocks: float
    step_tokens_max: int
    requests_max: int
    context_tokens: int
    kv_tokens: int
    steps_max: int

    @property
    def limits(self) -> BatchLimits:
        """Of one step."""
        return BatchLimits(self.step_tokens_max, min(self.requests_max, self.step_tokens_max))

    @property
    def times(self) -> StepTimes:
        """As one stage: what `hop_s` adds is in none of the tables."""
        alone, *crowded = self.seconds
        return StepTimes(
            tokens=tuple(map(float, self.tokens)),
            seconds=alone,
            context_s=self.context_s,
            square_s=self.square_s,
            crowded=tuple(
                tuple(seconds - more * self.hop_s for seconds in each) for more, each in enumerate(crowded, start=1)
            ),
        )

    def change_takes_s(self, before: int, after: int) -> float:
        """From asking to the cut; for a change that was not measured the mean of those that were."""
        return self.change_s.get(f"{before}>{after}", sum(self.change_s.values()) / max(1, len(self.change_s)))


def read_calibration(file: Path) -> Calibration:
    """The calibration in ``file``. Raises `CalibrationError`."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Calibration)
    except (OSError, msgspec.MsgspecError) as error:
        raise CalibrationError(f"{file} cannot be read as a calibration: {error}") from error
