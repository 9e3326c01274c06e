"""How far a cost model's capacity is from what a pipeline was seen to serve.

Only a saturated pipeline shows its capacity: with less to do it serves what comes. The factor is one for all shapes, since what a
model gets wrong about a machine (its processor, its other tenants) is wrong for all of them alike. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING = 0.2
"""Weight of the last interval in the factor: about five are remembered."""
FACTOR_MIN, FACTOR_MAX = 0.05, 20.0
"""A model that is further off than this is wrong about something else."""


@dataclass(frozen=True, slots=True)
class CapacityCorrection:
    """``factor`` times a modelled capacity is what to expect; token times are modelled times divided by it."""

    factor: float = 1.0

    def after(self, served_tokens_per_s: float, modelled_tokens_per_s: float) -> CapacityCorrection:
        """With one more saturated interval, in which the pipeline served that much where the model says this."""
        if not (served_tokens_per_s > 0 and modelled_tokens_per_s > 0):
            return self
        seen = min(max(served_tokens_per_s / modelled_tokens_per_s, FACTOR_MIN), FACTOR_MAX)
        return CapacityCorrection(self.factor + SMOOTHING * (seen - self.factor))
