"""Values that planning passes around: what an atom costs, what a stage may use, how atoms were shared out.

Owns the arithmetic that is the same for every policy. Times are integer nanoseconds and sizes integer bytes, so that sums
are exact, ties are ties, and one input has one answer on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NS_PER_S = 1_000_000_000


class PlanError(ValueError):
    """What was asked for is no plan of this model; the sentence says why."""


class InfeasiblePartition(Exception):  # noqa: N818 - the field's term; it is an answer more than an error
    """No partition meets the limits; the sentence names the tightest one and how much is missing.

    ``missing_bytes`` is by how much the most overloaded stage exceeds its memory in the partition that overloads least;
    0 where memory is not the reason.
    """

    def __init__(self, sentence: str, missing_bytes: int = 0) -> None:
        super().__init__(sentence)
        self.missing_bytes = missing_bytes


@dataclass(frozen=True, slots=True)
class AtomCost:
    """One atom under one load. ``compute_ns`` is one step's time on a device of speed 1.

    ``kv_bytes_per_token`` is what each token in a request's context keeps in its layers; ``activation_bytes`` crosses the
    cut after the atom in one step (0 after the last). ``blocks`` are the decoder layers that it belongs to, none for
    embedding and head.
    """

    name: str
    compute_ns: int
    weight_bytes: int
    kv_bytes_per_token: int
    activation_bytes: int
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse negative costs, which would make every optimum meaningless."""
        if min(self.compute_ns, self.weight_bytes, self.kv_bytes_per_token, self.activation_bytes) < 0:
            raise ValueError(f"atom {self.name} has a negative cost")


@dataclass(frozen=True, slots=True)
class StageLimit:
    """A place for one stage. ``memory_bytes`` holds weights, KV and ``workspace_bytes``; ``speed`` 2 halves compute times."""

    memory_bytes: int
    workspace_bytes: int = 0
    speed: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no place."""
        if self.memory_bytes < 0 or self.workspace_bytes < 0 or self.speed <= 0:
            raise ValueError("a stage's memory and workspace must not be negative, and its speed must be positive")


@dataclass(frozen=True, slots=True)
class Link:
    """What a hop between neighbouring stages costs: ``latency_ns`` plus bytes at ``bytes_per_s``."""

    latency_ns: int = 0
    bytes_per_s: float = 1e9

    def send_ns(self, size: int) -> int:
        """Nanoseconds until ``size`` bytes have arrived."""
        return self.latency_ns + round(size * NS_PER_S / self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class StageCost:
    """Atoms ``[first_atom, end_atom)`` on one place. ``memory_bytes`` is weights, KV for the planned tokens and workspace."""

    first_atom: int
    end_atom: int
    compute_ns: int
    send_ns: int
    weight_bytes: int
    kv_bytes_per_token: int
    memory_bytes: int

    @property
    def step_ns(self) -> int:
        """How long the stage is busy with one step: computing, then sending."""
        return self.compute_ns + self.send_ns


@dataclass(frozen=True, slots=True)
class Partition:
    """All atoms of a model, shared out to stages in order."""

    stages: tuple[StageCost, ...]

    @property
    def cuts(self) -> tuple[int, ...]:
        """The atoms at which stages but the first begin, ascending."""
        return tuple(stage.first_atom for stage in self.stages[1:])

    @property
    def bottleneck_ns(self) -> int:
        """The slowest stage's time for one step: the pipeline completes a step this often."""
        return max(stage.step_ns for stage in self.stages)

    @property
    def latency_ns(self) -> int:
        """One step's way through all stages."""
        return sum(stage.step_ns for stage in self.stages)

    def verify(self, atoms: Sequence[AtomCost], limits: Sequence[StageLimit], link: Link, kv_tokens: int) -> None:
        """Raise ValueError unless this covers ``atoms`` once, in order, within ``limits``, at the costs it states."""
        if len(self.stages) != len(limits):
            raise ValueError(f"{len(self.stages)} stages stand against {len(limits)} limits")
        expected = 0
        for number, (stage, limit) in enumerate(zip(self.stages, limits, strict=True)):
            if stage.first_atom != expected or stage.end_atom <= stage.first_atom:
                raise ValueError(
                    f"stage {number} holds atoms {stage.first_atom} to {stage.end_atom}, not from {expected} on"
                )
            if stage != stage_cost(atoms, stage.first_atom, stage.end_atom, limit, link, kv_tokens):
                raise ValueError(f"stage {number} states costs that its atoms do not have")
            if stage.memory_bytes > limit.memory_bytes:
                raise ValueError(f"stage {number} needs {stage.memory_bytes} bytes of {limit.memory_bytes}")
            expected = stage.end_atom
        if expected != len(atoms):
            raise ValueError(f"the stages hold {expected} of {len(atoms)} atoms")


def stage_cost(
    atoms: Sequence[AtomCost], first_atom: int, end_atom: int, limit: StageLimit, link: Link, kv_tokens: int
) -> StageCost:
    """What atoms ``[first_atom, end_atom)`` cost at one place, with KV room for ``kv_tokens`` tokens of context."""
    held = atoms[first_atom:end_atom]
    weight_bytes = sum(atom.weight_bytes for atom in held)
    kv_bytes_per_token = sum(atom.kv_bytes_per_token for atom in held)
    return StageCost(
        first_atom=first_atom,
        end_atom=end_atom,
        compute_ns=round(sum(atom.compute_ns for atom in held) / limit.speed),
        send_ns=link.send_ns(atoms[end_atom - 1].activation_bytes) if end_atom < len(atoms) else 0,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
        memory_bytes=weight_bytes + kv_tokens * kv_bytes_per_token + limit.workspace_bytes,
    )
