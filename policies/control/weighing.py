"""Which of a pipeline's candidates may be had at all, and what a policy makes of those: the present against the rest.

Owns who is in and who is out, each by a named reason, and the order of those that are in. It must never know how long anything
has been so (`control.controller`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .decision import Limits, Reason
from .granularity import GranularityPolicy, Score, Shape
from .observation import Observation

Verdict = tuple[Reason, str]
"""Why nothing is changed, and the sentence that says so."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of one pipeline at one moment. ``asked`` is the capacity that the load asks for, tokens/s."""

    observation: Observation
    present: Shape
    policy: GranularityPolicy
    limits: Limits
    asked: float

    def needs(self, shape: Shape) -> bool:
        """Whether the load asks for more than there is, and ``shape`` has more."""
        has = self.present.capacity_tokens_per_s
        return has < self.asked and shape.capacity_tokens_per_s > has


@dataclass(frozen=True, slots=True)
class Weighed:
    """``scores`` as given, the present shape's first; ``others`` are those that can be had, best first.

    ``excess`` is how many shapes are out only because the load does not ask for them.
    """

    scores: tuple[Score, ...]
    others: tuple[Score, ...]
    excess: int

    @property
    def here(self) -> float:
        """The cost of staying."""
        return cost_of(self.scores[0])

    @property
    def best(self) -> Shape:
        """The best there is, the present one on a tie."""
        if self.others and cost_of(self.others[0]) < self.here:
            return self.others[0].shape
        return self.scores[0].shape

    def gain(self, score: Score) -> float:
        """The share of the present cost that ``score`` saves."""
        return 1 - cost_of(score) / self.here

    def is_worth(self, score: Score, limits: Limits) -> bool:
        """Whether it is better by enough."""
        needed = limits.gain_for(self.scores[0].shape, score.shape)
        return cost_of(score) < self.here and self.gain(score) >= needed

    def worthwhile(self, limits: Limits) -> Score | None:
        """The best of those that are better by enough."""
        return next((score for score in self.others if self.is_worth(score, limits)), None)

    def nothing_better(self, limits: Limits) -> Verdict | None:
        """Why the present shape stays whatever time passes; None where another is better by enough."""
        if not self.others:
            return self._none_possible()
        first = self.others[0]
        if cost_of(first) >= self.here:
            words = self.scores[0].shape.words
            return "best-already", f"{words} is the best there is; next comes {first.shape.words}"
        if self.worthwhile(limits) is None:
            saved = f"{first.shape.words} would save {self.gain(first):.0%} of the cost"
            needed = limits.gain_for(self.scores[0].shape, first.shape)
            return "gain-too-small", f"{saved}, a change needs {needed:.0%}"
        return None

    def _none_possible(self) -> Verdict:
        words, refused = self.scores[0].shape.words, self.scores[1:]
        if not refused:
            return "no-candidate", f"there is nothing else than {words}"
        if self.excess:
            return "best-already", f"{words} is enough; what else can be had is more than the load asks for"
        first = f"{refused[0].shape.words}: {refused[0].refused}"
        return "no-candidate", f"none of {len(refused)} other shapes can be had; {first}"


def weigh(question: Question, candidates: Sequence[Shape]) -> Weighed:
    """Scores of the present shape, which has no flaw, and of every other candidate; those that cannot be had say why."""
    present = question.present
    judged = [_judged(shape) for shape in candidates if not shape.same_as(present)]
    others = _without_excess(question, judged)
    excess = sum(shape.refused is not None for shape in others) - sum(shape.refused is not None for shape in judged)
    possible = [present, *(shape for shape in others if shape.refused is None)]
    weighed = iter(question.policy.scores(question.observation, present, possible, forecast=question.limits.forecast))
    here = next(weighed)
    scores = [Score(shape, None, refused=shape.refused) if shape.refused else next(weighed) for shape in others]
    ranked = sorted((score for score in scores if score.refused is None), key=_rank)
    return Weighed((here, *scores), tuple(ranked), excess)


def cost_of(score: Score) -> float:
    """The cost of a score that is not refused."""
    assert score.cost is not None
    return score.cost


def _judged(shape: Shape) -> Shape:
    """``shape``, or where it has a flaw its name with nothing but that."""
    flaw = shape.flaw()
    return shape if flaw is None else Shape(shape.stages, shape.replicas, refused=flaw)


def _without_excess(question: Question, shapes: Sequence[Shape]) -> list[Shape]:
    """Refuses more devices for more capacity than is asked for with some to spare, or than the least candidate that has enough."""
    capacities = [shape.capacity_tokens_per_s for shape in (question.present, *shapes) if shape.refused is None]
    enough = [capacity for capacity in capacities if capacity >= question.asked]
    if not enough:
        return list(shapes)
    ceiling = max(question.asked * question.limits.overshoot_max, min(enough))
    return [
        replace(shape, refused=_too_much(shape, question))
        if shape.refused is None and shape.devices > question.present.devices and shape.capacity_tokens_per_s > ceiling
        else shape
        for shape in shapes
    ]


def _too_much(shape: Shape, question: Question) -> str:
    return (
        f"the load asks for {question.asked:.0f} tokens/s, and it is {shape.capacity_tokens_per_s:.0f} for more devices"
    )


def _rank(score: Score) -> tuple[float, int, int]:
    """Cheapest first; of equals the one with fewer devices, then with fewer stages."""
    return cost_of(score), score.shape.devices, score.shape.stages
