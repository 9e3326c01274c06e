"""What placement is asked and what it answers: a request, a plan with every term of its cost, or the reason why none exists.

Owns the arithmetic of the objective. It must never know how a plan is searched for. Times are integer nanoseconds, sizes
integer bytes and weights integer thousandths, so that two plans compare exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..cluster.cluster_map import ClusterMap, SeenEpoch
from ..types import AtomCost, StageCost

STAGES_MAX = 32
"""Stages of one replica."""
WHOLE_PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class ObjectiveWeights:
    """What a plan's terms are worth against each other, in thousandths.

    ``tpot``, ``bottleneck``, ``startup`` and ``move`` weigh nanoseconds; ``fragmentation`` weighs KiB by which the expected
    fragmentation grows. With the defaults a millisecond of a token's way through the pipeline is worth as much as one of the
    bottleneck, as one second of start-up, and as a GiB of new fragments.
    """

    tpot: int = 1000
    bottleneck: int = 1000
    startup: int = 1
    move: int = 1
    fragmentation: int = 1000

    def __post_init__(self) -> None:
        """Refuse weights that reward what they should punish."""
        if min(self.tpot, self.bottleneck, self.startup, self.move, self.fragmentation) < 0:
            raise ValueError("an objective's weights must not be negative")


@dataclass(frozen=True, slots=True)
class CostTerms:
    """One replica's cost, term by term.

    ``tpot_ns`` is one step's way through all stages and hops, ``bottleneck_ns`` the slowest stage's compute and send.
    ``startup_ns`` is the longest time that a node takes to load what its stages lack; stages of a node share its link.
    ``move_ns`` is how long the KV that changes device is on its way, one stage after the other: no pause is longer.
    ``fragmentation_kib`` is the growth of expected fragmentation over the request's mix; it may be negative.
    """

    tpot_ns: int
    bottleneck_ns: int
    startup_ns: int
    move_ns: int
    moved_bytes: int
    fragmentation_kib: int

    def cost(self, weights: ObjectiveWeights) -> int:
        """The weighted sum, in thousandths of a nanosecond's worth."""
        return (
            weights.tpot * self.tpot_ns
            + weights.bottleneck * self.bottleneck_ns
            + weights.startup * self.startup_ns
            + weights.move * self.move_ns
            + weights.fragmentation * self.fragmentation_kib
        )


@dataclass(frozen=True, slots=True)
class PresentStage:
    """A stage that serves now: atoms ``[first_atom, end_atom)`` in the device's row. ``held_bytes`` come free when it goes."""

    device: int
    first_atom: int
    end_atom: int
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What to place. Rows are those of the `ClusterMap` that it is asked of.

    Each replica takes ``stages_min`` to ``stages_max`` devices, and no device twice: nor one in ``occupied``, where other
    stages of this model run. Each stage has room for its weights, KV for ``kv_tokens`` and ``workspace_bytes``.
    There are ``replicas`` of them, and more, up to ``replicas_max``, until they make ``steps_per_s`` together.
    ``warm`` are the atoms whose weights a node keeps in host memory; ``present`` the stages of each replica that serves now
    (replica ``r`` of the plan replaces the ``r``-th), with ``held_kv_tokens`` of context that would have to move.
    ``fragment_mix`` are the stage sizes in bytes that will be asked for next, each with its share in millionths.
    A stage's step may take ``step_ns_max`` at most, and a token's way ``tpot_ns_max``.
    """

    atoms: tuple[AtomCost, ...]
    stages_max: int
    kv_tokens: int = 0
    workspace_bytes: int = 0
    stages_min: int = 1
    replicas: int = 1
    replicas_max: int = 0
    steps_per_s: float = 0.0
    occupied: frozenset[int] = frozenset()
    warm: Mapping[int, frozenset[int]] = field(default_factory=dict)
    present: tuple[tuple[PresentStage, ...], ...] = ()
    held_kv_tokens: int = 0
    fragment_mix: tuple[tuple[int, int], ...] = ()
    weights: ObjectiveWeights = ObjectiveWeights()
    step_ns_max: int | None = None
    tpot_ns_max: int | None = None

    def __post_init__(self) -> None:
        """Refuse what nobody can have meant."""
        if not self.atoms:
            raise ValueError("there is nothing to place: the model has no atoms")
        if not 1 <= self.stages_min <= self.stages_max <= STAGES_MAX:
            raise ValueError(
                f"{self.stages_min} to {self.stages_max} stages are wanted; ask for 1 to {STAGES_MAX}, the least first"
            )
        if self.replicas < 1 or min(self.kv_tokens, self.workspace_bytes, self.held_kv_tokens) < 0:
            raise ValueError("a request needs a replica, and no negative tokens or workspace")
        if any(size < 0 or share < 0 for size, share in self.fragment_mix):
            raise ValueError("sizes and shares of a fragment mix must not be negative")
        if sum(share for _, share in self.fragment_mix) > WHOLE_PPM:
            raise ValueError(f"the shares of a fragment mix are more than a whole ({WHOLE_PPM} millionths)")

    def memory_bytes(self, atom: AtomCost) -> int:
        """What one atom takes on its device: weights, and KV for the planned tokens."""
        return atom.weight_bytes + self.kv_tokens * atom.kv_bytes_per_token


@dataclass(frozen=True, slots=True)
class PlacedStage:
    """A stage in its device's row. ``load_ns`` is its share of its node's start-up; the rest as in `CostTerms`."""

    device: int
    cost: StageCost
    load_ns: int
    move_ns: int
    moved_bytes: int
    fragmentation_kib: int


@dataclass(frozen=True, slots=True)
class PlacedReplica:
    """The stages of one replica, in the order of their atoms."""

    stages: tuple[PlacedStage, ...]
    terms: CostTerms


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan.

    ``cost`` is its weighted terms' sum over replicas, and no plan at all costs less than ``bound``. ``seen`` are its devices
    with the epochs of the facts that it was made from.
    """

    replicas: tuple[PlacedReplica, ...]
    cost: int
    bound: int
    seen: tuple[SeenEpoch, ...]

    @property
    def proved(self) -> bool:
        """Whether no cheaper plan exists."""
        return self.bound >= self.cost

    @property
    def devices(self) -> tuple[int, ...]:
        """The rows that it takes."""
        return tuple(stage.device for replica in self.replicas for stage in replica.stages)


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """There is no plan: ``reason`` names the tightest constraint and what is missing.

    ``missing_bytes`` is what memory lacks at least, 0 where memory is not the reason. Where not ``proved``, the search gave up
    with no plan, and does not know that there is none.
    """

    reason: str
    missing_bytes: int = 0
    proved: bool = True


@dataclass(frozen=True, slots=True)
class StalePlacement:
    """A plan's device has changed since: plan again. ``device`` is its name."""

    device: str
    planned_epoch: int
    epoch: int

    @property
    def reason(self) -> str:
        """In a sentence."""
        return (
            f"device {self.device} has changed since the plan was made (epoch {self.planned_epoch}, now {self.epoch}): "
            "plan again"
        )


def stale(cluster: ClusterMap, placement: Placement) -> StalePlacement | None:
    """The first device of the plan whose facts are no longer those that the plan was made from; None where all are."""
    for row, epoch in placement.seen:
        if int(cluster.epoch[row]) != epoch:
            return StalePlacement(cluster.device_names[row], epoch, int(cluster.epoch[row]))
    return None
