"""The replicas of one simulated model as a system handles them: where they could start, what they would become, what is warm.

Owns the turning of "so many replicas of so many stages" into actions on a `View`. It must never know why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil

from ...policies.kv_room import NoRoomError
from ..cluster.pipeline_times import kv_room
from ..cluster.served_model import ServedModel
from ..cluster.system import Action, How, ReplicaView, Reshape, StageAt, Start, Stop, View
from .model_shapes import ModelShapes
from .nested_change import kv_tokens_after, nested_stages
from .placing import Placer, Site, Stages


@dataclass(slots=True)
class Warmth:
    """Which layers of a model lie in which nodes' host memory: those that a replica there has loaded."""

    layers: dict[int, set[int]] = field(default_factory=dict)

    def see(self, model: int, view: View) -> None:
        """Note what serving replicas have loaded."""
        for replica in view.of(model):
            if replica.state == "serving":
                for stage in replica.stages:
                    node = int(view.cluster.node_of[stage.device])
                    self.layers.setdefault(node, set()).update(range(stage.first, stage.end))


@dataclass(frozen=True, slots=True)
class Fleet:
    """Model number ``model`` in ``view``; ``placer`` finds devices, ``warm`` says where weights are in host memory.

    No replica asks for more KV room than ``kv_tokens_max``.
    """

    view: View
    model: int
    placer: Placer
    warm: Warmth
    kv_tokens_max: int | None = None

    @property
    def served(self) -> ServedModel:
        """The model."""
        return self.view.models[self.model]

    @property
    def replicas(self) -> tuple[ReplicaView, ...]:
        """Those that serve or start; one that drains is as good as gone."""
        return tuple(replica for replica in self.view.of(self.model) if replica.state != "draining")

    @property
    def devices(self) -> frozenset[int]:
        """All that stages of the model are on, draining ones too: no other stage of it may go there."""
        return _devices(replica.stages for replica in self.view.of(self.model))

    def starts(self, stages: int, count: int, tag: str = "") -> list[Action]:
        """Up to ``count`` new replicas, fewer where devices run out."""
        site, actions = self._site(self.devices), []
        for _ in range(count):
            found = self.placer(self.served, stages, site)
            if found is None:
                break
            actions.append(Start(self.model, found, self._kv_tokens(found), tag=tag))
            site = site.without(found)
        return list(actions)

    def stops(self, count: int, *, drain: bool = True, tag: str = "") -> list[Action]:
        """The ``count`` youngest go; those that start still before those that serve."""
        order = sorted(self.replicas, key=lambda replica: (replica.state != "starting", -replica.number))
        return [Stop(replica.number, drain, tag) for replica in order[:count]]

    def reshapes(self, stages: int, how: How = "live", tag: str = "") -> list[Action]:
        """Every replica takes so many stages, split or merged where it is. Raises `NoChangeError` where one of them cannot."""
        actions: list[Action] = []
        taken = self.devices
        for replica in self.replicas:
            if replica.state != "serving" or len(replica.stages) == stages:
                continue
            site = self._site(taken)
            found = nested_stages(self.served, replica, stages, site)
            room = (
                kv_tokens_after(self.served, replica, found, site) if how == "live" else self._kv_tokens(found, replica)
            )
            if self.kv_tokens_max is not None and room is not None:
                room = min(room, self.kv_tokens_max)
            actions.append(Reshape(replica.number, found, how, room, tag=tag))
            taken = taken | _devices([found])
        return actions

    def _kv_tokens(self, stages: Stages, present: ReplicaView | None = None) -> int | None:
        """The KV room to ask for: None for all there is."""
        if self.kv_tokens_max is None:
            return None
        before = () if present is None else present.stages
        try:
            room = kv_room(self.view.cluster, self.served, stages, before, 0 if present is None else present.kv_tokens)
        except NoRoomError:
            return None  # the start is refused then, with the reason
        return min(room, self.kv_tokens_max)

    def _site(self, taken: frozenset[int]) -> Site:
        warm = {node: frozenset(layers) for node, layers in self.warm.layers.items()}
        return Site(self.view.cluster, taken, warm)


def replicas_for(shapes: ModelShapes, depth: int, work: float) -> int:
    """The fewest replicas of this depth that can do ``work`` per second, at least one."""
    return max(1, ceil(work / shapes.facts.capacity(depth)))


def first_starts(fleet: Fleet, shapes: ModelShapes, work: float) -> list[Action]:
    """Replicas that can do ``work`` per second, at the least depth with room for them; the most there can be where none has."""
    most: list[Action] = []
    most_work = 0.0
    for depth in shapes.depths:
        wanted = replicas_for(shapes, depth, work)
        found = fleet.starts(depth, wanted)
        if len(found) == wanted:
            return found
        if len(found) * shapes.facts.capacity(depth) > most_work:
            most, most_work = found, len(found) * shapes.facts.capacity(depth)
    return most


def _devices(stages_of: Iterable[tuple[StageAt, ...] | Stages]) -> frozenset[int]:
    return frozenset(stage.device for stages in stages_of for stage in stages)
