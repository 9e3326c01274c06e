"""Which worker holds which atoms in one epoch: the *route*. Values and pure functions; nothing here moves anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

Strategy = str
"""One of `STRATEGIES`."""
STRATEGIES = ("precopy", "stop-copy", "recompute", "restart")
"""How requests get across a change: pages copied before the cut, pages copied at the cut, KV computed again, all begun anew."""


class RouteError(Exception):
    """A route that cannot be: the sentence says what is wrong with it and what to do."""


class StagePlacement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Atoms ``[first_atom, end_atom)`` at ``worker``, which runs on ``device`` with ``threads`` threads.

    ``first_name`` and ``last_name`` are atom names, for people.
    """

    worker: int
    first_atom: int
    end_atom: int
    device: str
    threads: int
    first_name: str = ""
    last_name: str = ""

    @property
    def atoms(self) -> range:
        """The atoms."""
        return range(self.first_atom, self.end_atom)


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The stages of one epoch in pipeline order."""

    epoch: int
    stages: tuple[StagePlacement, ...]

    @property
    def workers(self) -> tuple[int, ...]:
        """The workers in pipeline order."""
        return tuple(stage.worker for stage in self.stages)

    def stage_of(self, worker: int) -> int | None:
        """The worker's place in the route, None where it has none."""
        return next((place for place, stage in enumerate(self.stages) if stage.worker == worker), None)

    def check(self, atoms: int) -> None:
        """Raise `RouteError` unless the stages cover all ``atoms`` in order, once, each at a worker and device of its own."""
        expected = 0
        for place, stage in enumerate(self.stages):
            if stage.first_atom != expected or stage.end_atom <= stage.first_atom:
                raise RouteError(
                    f"stage {place} would hold atoms {stage.first_atom} to {stage.end_atom}; the stages must follow each other "
                    f"without gaps, so it has to begin at atom {expected}"
                )
            expected = stage.end_atom
        if expected != atoms:
            raise RouteError(f"the stages would hold {expected} atoms; the model has {atoms}")
        for what, values in (("worker", self.workers), ("device", [stage.device for stage in self.stages])):
            if len(set(values)) != len(self.stages):
                raise RouteError(f"a {what} would hold two stages; two stages of one model never share a {what}")


def moved_layers(
    old: Route, new: Route, layers_of: Mapping[int, Iterable[int]]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Which KV layers go from which worker to which: (donor, acquirer) → layers, where the two routes differ.

    ``layers_of`` says which layers' KV each atom owns.
    """
    home = {atom: stage.worker for stage in old.stages for atom in stage.atoms}
    moves: dict[tuple[int, int], list[int]] = {}
    for stage in new.stages:
        for atom in stage.atoms:
            if home[atom] != stage.worker:
                moves.setdefault((home[atom], stage.worker), []).extend(layers_of.get(atom, ()))
    return {pair: tuple(sorted(layers)) for pair, layers in sorted(moves.items()) if layers}
